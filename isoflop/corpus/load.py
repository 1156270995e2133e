"""A built corpus read back: its record, tokens, documents and tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isoflop.corpus import bpe
from isoflop.corpus.tokens import AGAIN, Tokens
from isoflop.errors import CorpusError, CorruptError
from isoflop.records import Corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SCAN_TOKENS = 1 << 20


def load_corpus(folder: Path, *, verify: bool = False) -> Corpus:
    """Read `corpus.json` and check that its files are there and complete.

    `verify` also compares their SHA-256. Raises `CorpusError` when `folder` holds no corpus and
    `CorruptError` when a file is not what was written.
    """
    path = folder / "corpus.json"
    if not path.is_file():
        raise CorpusError(f"{folder} holds no corpus.", hint="Build one first, or check the path.")
    try:
        corpus = Corpus.from_json(path.read_bytes()).model_copy(update={"folder": folder})
    except ValueError as error:
        raise CorruptError(f"{path} is not a corpus record: {error}", hint="Build it again.") from error
    sizes = {f"{side}.bin": _size(corpus, side) for side in ("train", "heldout")}
    for name in corpus.hashes:
        _check_size(folder / name, sizes.get(name))
    if verify:
        for name, expected in corpus.hashes.items():
            if (actual := sha256(folder / name)) != expected:
                raise CorruptError(
                    f"{folder / name} has SHA-256 {actual}, not {expected} as written.",
                    hint="Delete the folder and build the corpus again.",
                )
    return corpus


def train_tokens(corpus: Corpus) -> Tokens:
    """The training tokens; each document ends with the end token."""
    return _tokens(corpus, "train")


def train_stamp(corpus: Corpus) -> tuple[int, int]:
    """Size and time of the training tokens' file: another one after anybody has written to it."""
    found = (corpus.folder / "train.bin").stat()
    return found.st_size, found.st_mtime_ns


def check_train_tokens(corpus: Corpus, stamp: Sequence[int]) -> None:
    """Raises `CorruptError` when the training tokens have changed since the file had this `stamp`."""
    path = corpus.folder / "train.bin"
    _check_size(path, _size(corpus, "train"))
    if train_stamp(corpus) != tuple(stamp) and sha256(path) != corpus.hashes["train.bin"]:
        raise CorruptError(
            f"{path} was changed while a run was training on it.",
            hint=AGAIN,
        )


def heldout_tokens(corpus: Corpus) -> Tokens:
    """The held-out tokens; each document ends with the end token."""
    return _tokens(corpus, "heldout")


def token_bytes(corpus: Corpus) -> NDArray[np.int64]:
    """UTF-8 bytes of text that each token id stands for, shape (vocab_size,); 0 for the end token."""
    return _token_bytes(corpus.folder / "tokenizer.json", corpus.hashes["tokenizer.json"])


@lru_cache(maxsize=4)
def _token_bytes(path: Path, sha256: str) -> NDArray[np.int64]:
    return bpe.count_bytes(bpe.read_tokenizer(path))


def word_edges(corpus: Corpus) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each token id's first and last byte are of a word, shapes (vocab_size,)."""
    return _word_edges(corpus.folder / "tokenizer.json", corpus.hashes["tokenizer.json"])


@lru_cache(maxsize=4)
def _word_edges(path: Path, sha256: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    return bpe.word_edges(bpe.read_tokenizer(path))


def end_token(corpus: Corpus) -> int:
    """Id of the token that follows each document."""
    return _special(corpus.folder / "tokenizer.json", corpus.hashes["tokenizer.json"])[0]


def special_tokens(corpus: Corpus) -> Mapping[str, int]:
    """The special tokens of the corpus's tokenizer, by name."""
    return _special(corpus.folder / "tokenizer.json", corpus.hashes["tokenizer.json"])[1]


@lru_cache(maxsize=4)
def _special(path: Path, sha256: str) -> tuple[int, Mapping[str, int]]:
    found = bpe.read_tokenizer(path)
    end = bpe.end_token(found)
    assert end is not None  # `read_tokenizer` sees to it
    return end, {str(token): i for i, token in found.get_added_tokens_decoder().items()}


def tokenizer(corpus: Corpus) -> Tokenizer:
    """The corpus's tokenizer. Raises `CorpusError` when its file cannot be read."""
    return bpe.read_tokenizer(corpus.folder / "tokenizer.json")


def train_documents(corpus: Corpus) -> Iterator[str]:
    """The training documents' text, decoded from the tokens."""
    return _documents(corpus, "train")


def heldout_documents(corpus: Corpus) -> Iterator[str]:
    """The held-out documents' text, decoded from the tokens."""
    return _documents(corpus, "heldout")


def heldout_spans(corpus: Corpus) -> NDArray[np.int64]:
    """Where each held-out document's tokens begin, and where its end token is, shape (documents, 2)."""
    return np.array(list(_spans(corpus, "heldout")), np.int64).reshape(-1, 2)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _tokens(corpus: Corpus, side: str) -> Tokens:
    path = corpus.folder / f"{side}.bin"
    return Tokens(path, bpe.token_type(corpus.vocab_size), _count(corpus, side))


def _count(corpus: Corpus, side: str) -> int:
    return corpus.train_tokens if side == "train" else corpus.heldout_tokens


def _size(corpus: Corpus, side: str) -> int:
    """Bytes of a file of tokens."""
    return _count(corpus, side) * np.dtype(bpe.token_type(corpus.vocab_size)).itemsize


def _documents(corpus: Corpus, side: str) -> Iterator[str]:
    decoder, tokens = tokenizer(corpus), _tokens(corpus, side)
    for begin, end in _spans(corpus, side):
        yield decoder.decode(tokens[begin:end].tolist(), skip_special_tokens=False)


def _spans(corpus: Corpus, side: str) -> Iterator[tuple[int, int]]:
    """Where each document's tokens begin, and where its end token is."""
    mark, tokens, begin = end_token(corpus), _tokens(corpus, side), 0
    for at in range(0, len(tokens), SCAN_TOKENS):
        for stop in (np.flatnonzero(tokens[at : at + SCAN_TOKENS] == mark) + at).tolist():
            yield begin, stop
            begin = stop + 1


def _check_size(path: Path, size: int | None) -> None:
    if not path.is_file():
        raise CorruptError(f"{path} is missing.", hint="Delete the folder and build the corpus again.")
    if size is not None and path.stat().st_size != size:
        raise CorruptError(
            f"{path} has {path.stat().st_size} bytes, not {size} as written.",
            hint="Delete the folder and build the corpus again.",
        )
