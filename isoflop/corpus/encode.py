"""Text to token ids, several times faster than the library for the common pre-tokenizer.

GPT-2's pattern cuts text into words that are encoded one by one, so a table from word to ids gives
the same ids as the tokenizer itself.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import DTypeLike

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TABLE_WORDS = 200_000  # then the table starts anew: about 40 MB
TABLE_CHARS = 64  # longer words are seldom seen twice
SPACES = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
BMP = 0x10000


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """The integer type of token files."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def encoder(tokenizer: Tokenizer, dtype: DTypeLike) -> Callable[[str], bytes]:
    """A function from text to its ids as bytes of `dtype`; special tokens in the text are plain text."""

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
