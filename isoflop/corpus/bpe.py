"""Byte-level BPE tokenizers: training one, accepting one, and what each token stands for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import CorpusError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END = "<|endoftext|>"
OTHER_ENDS = ("<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>")


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


def byte_alphabet() -> list[str]:
    """GPT-2's 256 characters, each spelling one byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
