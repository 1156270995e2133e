"""Text as people really type it: changed with a seed at a stated rate.

A perturbation takes a text, a rate in [0, 1] and a generator of random numbers, and gives the changed text.
To add one, write its function and a line in PERTURBATIONS.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

WORD = re.compile(r"[^\W_]+")  # letters and digits
KEYS = ("1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm")  # rows of the keyboard


def typos(text: str, rate: float, rng: np.random.Generator) -> str:
    """That share of the words of two characters or more has one slip each.

    Of two neighbours swapped, one character left out, one doubled, or one replaced by its neighbour on an
    English keyboard, each slip is as likely as the others.
    """

    def slip(word: str) -> str:
        if len(word) < 2:
            return word
        at = int(rng.integers(len(word) - 1))
        before, here, after = word[:at], word[at], word[at + 1 :]
        made = (
            f"{before}{after[0]}{here}{after[1:]}", f"{before}{after}", f"{before}{here}{here}{after}",
            f"{before}{_beside(here, rng)}{after}",
        )  # fmt: skip
        return made[rng.integers(len(made))]

    return _some_words(text, rate, rng, slip)


def case(text: str, rate: float, rng: np.random.Generator) -> str:
    """That share of the words has small letters for capitals, and capitals for small ones."""
    return _some_words(text, rate, rng, str.swapcase)


def truncation(text: str, rate: float, rng: np.random.Generator) -> str:
    """That share of the text, its beginning, is left out."""
    return text[round(rate * len(text)) :]


PERTURBATIONS: dict[str, Callable[[str, float, np.random.Generator], str]] = {
    "typos": typos, "case": case, "truncation": truncation,
}  # fmt: skip


def _some_words(text: str, rate: float, rng: np.random.Generator, change: Callable[[str], str]) -> str:
    return WORD.sub(lambda found: change(found[0]) if rng.random() < rate else found[0], text)


def _beside(character: str, rng: np.random.Generator) -> str:
    """The key to the left or right of a character's; itself where it has none."""
    row = next((row for row in KEYS if character.lower() in row), character)
    at = row.index(character.lower()) if row != character else 0
    near = row[max(0, at - 1) : at] + row[at + 1 : at + 2] or character
    chosen = near[rng.integers(len(near))]
    return chosen.upper() if character.isupper() else chosen
