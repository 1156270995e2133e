"""Byte-level BPE tokenizers: the size one deserves, training one, accepting one, and encoding quickly."""

from __future__ import annotations

import json
import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike, NDArray

from isoflop.errors import CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_VOCABULARY = 4096
SMALLEST, LARGEST = 512, 65_536
END = "<|endoftext|>"
OTHER_ENDS = ("<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>")
TABLE_WORDS = 200_000  # then the table starts anew: about 40 MB
TABLE_CHARS = 64  # longer words are seldom seen twice
SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
BMP = 0x10000


def vocab_for(flops: float | None) -> int:
    """Vocabulary size (a power of two in [512, 65536]) for a training budget in FLOPs; 4096 without one.

    The rule is approach 1 of Tao et al. 2024 (Scaling Laws with Vocabulary, arXiv 2407.13623): the
    compute-optimal model has `N_nv = 0.08 * C**0.50` parameters outside the vocabulary and
    `N_v = 0.20 * C**0.42` in it. The width follows from `N_nv = 12 * layers * d**2` with
    `layers = d / 64`, so `d = (N_nv * 64 / 12)**(1/3)`, and the vocabulary is `2 * N_v / d`, rounded up
    to a power of two. (The factor 2 is measured: at 2.5e12 and 8e12 FLOPs 2,048 beats 1,024 by 1% in bits
    a byte, and 4,096 loses 1 to 2%; docs/LOG.md.)
    """
    if flops is None:
        return DEFAULT_VOCABULARY
    width = (0.08 * flops**0.50 * 64 / 12) ** (1 / 3)
    power = max(0, math.ceil(math.log2(2 * 0.20 * flops**0.42 / width)))
    return min(max(1 << power, SMALLEST), LARGEST)


def train_bpe(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with GPT-2's pre-tokenizer, all 256 bytes and `<|endoftext|>` (id 0)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < 257:
        raise CorpusError(
            f"A vocabulary of {vocab_size} cannot hold the 256 bytes and {END}.",
            hint="Ask for 257 or more.",
        )
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # silences a warning about forks
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def read_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a `tokenizer.json`, ready for plain text: nothing added, cut or padded.

    Without `<|endoftext|>` its own end token serves, if it has one of `OTHER_ENDS`; else
    `<|endoftext|>` is added. Raises `CorpusError` when the file cannot be read or is not byte-level.
    """
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise CorpusError(
            f"The tokenizer {path} cannot be read: {error}.",
            hint="Give a tokenizer.json of Hugging Face's tokenizers.",
        ) from error
    loaded.no_padding()
    loaded.no_truncation()
    loaded.encode_special_tokens = True  # a document that contains "<|endoftext|>" spells it in bytes
    missing = [character for character in byte_alphabet() if loaded.token_to_id(character) is None]
    if missing:
        raise CorpusError(
            f"The tokenizer {path} is not byte-level: {len(missing)} of the 256 bytes have no token.",
            hint="Use a byte-level BPE tokenizer (GPT-2, Llama 3, Qwen), or let one be trained.",
        )
    if end_token(loaded) is None:
        loaded.add_special_tokens([END])
    return loaded


def end_token(tokenizer: Tokenizer) -> int | None:
    """Id of the token that follows each document."""
    ids = (tokenizer.token_to_id(name) for name in (END, *OTHER_ENDS))
    return next((i for i in ids if i is not None), None)


def count_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """UTF-8 bytes that each token id stands for; 0 for special tokens and unused ids."""
    added = tokenizer.get_added_tokens_decoder()
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    counts = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for text, token in vocabulary.items():
        if token not in added:
            counts[token] = len(text)  # each character spells one byte
        elif not added[token].special:
            counts[token] = len(text.encode())
    return counts


def word_edges(tokenizer: Tokenizer) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether the first and the last byte of each token are of a word: a letter, a digit, or beyond ASCII."""
    parts = {c for byte, c in enumerate(byte_alphabet()) if byte > 127 or chr(byte).isalnum()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    opens, closes = np.zeros((2, len(count_bytes(tokenizer))), bool)
    for text, token in vocabulary.items():
        opens[token], closes[token] = text[:1] in parts, text[-1:] in parts
    return opens, closes


def byte_alphabet() -> list[str]:
    """GPT-2's 256 characters, each spelling one byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The integer type of token files."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encoder(tokenizer: Tokenizer, dtype: DTypeLike) -> Callable[[str], bytes]:
    """A function from text to its ids as bytes of `dtype`; special tokens in the text are plain text.

    Several times faster than the library for the common pre-tokenizer: GPT-2's pattern cuts text into
    words that are encoded one by one, so a table from word to ids gives the ids of the tokenizer itself.
    """

    def slow(text: str) -> bytes:
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype).tobytes()

    if not _splits_like_gpt2(tokenizer):
        return slow
    words = _Words(slow)

    def fast(text: str) -> bytes:
        if not text.isascii() and any(map(_is_rare, set(text))):
            return slow(text)
        if len(words) > TABLE_WORDS:
            words.clear()
        return b"".join(map(words.__getitem__, _pattern(text.isascii()).findall(text)))

    return fast


class _Words(dict[str, bytes]):
    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= TABLE_CHARS:
            self[word] = ids
        return ids


def _splits_like_gpt2(tokenizer: Tokenizer) -> bool:
    shape = json.loads(tokenizer.to_str())
    split = shape["pre_tokenizer"] or {}
    plain_added = [token for token in shape["added_tokens"] if not token["special"]]
    return (
        shape["normalizer"] is None
        and not plain_added
        and split.get("type") == "ByteLevel"
        and split.get("use_regex", True)
        and not split.get("add_prefix_space")
    )


@cache
def _pattern(ascii_only: bool) -> re.Pattern[str]:
    """GPT-2's pattern: contractions, letters, numbers, other signs, white space up to the last one."""
    if ascii_only:
        space, letter, number = r"\t-\r ", "A-Za-z", "0-9"
    else:
        space, letter, number = SPACES, _characters("L"), _characters("N")
    return re.compile(
        f" ?[{letter}]++| ?[{number}]++|'(?:s|t|re|ve|m|ll|d)| ?[^{space}{letter}{number}]++"
        f"|[{space}]+(?![^{space}])|[{space}]++"
    )


@cache
def _characters(category: str) -> str:
    """The Basic Multilingual Plane's characters of a category, as ranges of a regular expression."""
    inside = [unicodedata.category(chr(code)).startswith(category) for code in range(BMP)] + [False]
    edges = [code for code in range(BMP + 1) if inside[code] != (code > 0 and inside[code - 1])]
    return "".join(f"\\u{a:04x}-\\u{b - 1:04x}" for a, b in zip(edges[::2], edges[1::2], strict=True))


def _is_rare(character: str) -> bool:
    """Whether the fast pattern may judge it otherwise than the tokenizer, whose Unicode may be newer."""
    category = unicodedata.category(character)
    return category == "Cn" or (ord(character) >= BMP and category[0] in "LN")
