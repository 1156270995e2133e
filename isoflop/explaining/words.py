"""Words of a text: what attributions are summed over, and what slices are made by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

CHINESE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # and Japanese: written without blanks
WORD = re.compile(rf"[{CHINESE}]|[^\W_{CHINESE}]+")  # a character of those, or letters and digits


def words_of(text: str) -> set[str]:
    """In small letters; of Chinese, characters and pairs of neighbours."""
    found = [(m[0].lower(), m.start(), m.end()) for m in WORD.finditer(text)]
    pairs = {
        a + b
        for (a, _, end), (b, start, _) in pairwise(found)
        if end == start and _unspaced(a) and _unspaced(b)
    }
    return {word for word, _, _ in found} | pairs


def joined(text: str, spans: Sequence[tuple[int, int]]) -> list[int]:
    """Number of the word of each token, by its characters [start, end); -1 of a token without any.

    Tokens belong to one word when they share a character, or touch between two letters or digits of a
    script with blanks: a tokenizer's own notion of a word may be a whole clause of Chinese.
    """
    numbers: list[int] = []
    number, last = -1, -1
    for start, end in spans:
        start += len(text[start:end]) - len(text[start:end].lstrip())
        if start >= end:
            numbers.append(-1)
            continue
        within = last > start or (last == start and start > 0 and _one_word(text[start - 1], text[start]))
        number += not within
        last = end
        numbers.append(number)
    return numbers


def _one_word(a: str, b: str) -> bool:
    return a.isalnum() and b.isalnum() and not (_unspaced(a) or _unspaced(b))


def _unspaced(character: str) -> bool:
    return re.fullmatch(f"[{CHINESE}]", character) is not None
