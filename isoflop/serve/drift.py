"""Whether what comes is still what came first: prompts by their lengths and characters, answers by ratings.

Each block is compared once with a reference, the first that came. Prompts are the units of the tests, not
their characters, which depend on one another. Where the prompts of a block and of the reference are
independent draws of the same, at most the share `false_alarms` of the blocks says otherwise: the tests'
levels add up to it (Bonferroni), and ties only make them say less.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

CLASSES = (
    "lower case", "upper case", "digits", "spaces", "punctuation", "accented letters", "Greek and Cyrillic",
    "Hebrew and Arabic", "Indic letters", "kana and Hangul", "Chinese characters", "emoji",
    "other characters",
)  # fmt: skip
_FEATURES = ("tokens of a prompt", *(f"share of {name} in a prompt" for name in CLASSES))
READ = 4096  # characters of a prompt that are looked at
_LOWER, _UPPER, _DIGIT, _SPACE, _MARK, _LATIN, _GREEK, _ARABIC, _INDIC, _KANA, _HAN, _EMOJI, _OTHER = range(
    13
)
_RANGES = (  # first code point, and class up to the next
    (0x00, _SPACE), (0x21, _MARK), (0x30, _DIGIT), (0x3A, _MARK), (0x41, _UPPER), (0x5B, _MARK),
    (0x61, _LOWER), (0x7B, _MARK), (0x7F, _SPACE), (0xA1, _MARK), (0xC0, _LATIN), (0x250, _OTHER),
    (0x370, _GREEK), (0x530, _OTHER), (0x590, _ARABIC), (0x780, _OTHER), (0x900, _INDIC), (0xE00, _OTHER),
    (0x1100, _KANA), (0x1200, _OTHER), (0x1E00, _LATIN), (0x1F00, _GREEK), (0x2000, _MARK), (0x2600, _EMOJI),
    (0x27C0, _MARK), (0x2E80, _HAN), (0x3000, _MARK), (0x3040, _KANA), (0x3100, _HAN), (0x3130, _KANA),
    (0x3190, _HAN), (0x31F0, _KANA), (0x3200, _MARK), (0x3400, _HAN), (0xA000, _OTHER), (0xAC00, _KANA),
    (0xD7B0, _OTHER), (0xF900, _HAN), (0xFB00, _OTHER), (0xFB1D, _ARABIC), (0xFE00, _OTHER),
    (0xFE70, _ARABIC), (0xFF00, _MARK), (0xFF66, _KANA), (0xFFE0, _OTHER), (0x1F000, _EMOJI),
    (0x1FB00, _OTHER), (0x20000, _HAN), (0x32000, _OTHER),
)  # fmt: skip
_STARTS = np.array([start for start, _ in _RANGES], dtype=np.uint32)
_CLASS_OF = np.array([number for _, number in _RANGES])

Item = TypeVar("Item")


class Prompt(NamedTuple):
    """What is kept of one: no text."""

    tokens: int
    characters: tuple[int, ...]  # by class; () where nobody counted


class Shift(NamedTuple):
    """What is no longer as it was."""

    words: str
    p: float  # of the test, at this or below it by chance
    before: float
    now: float


class Watch(Generic[Item]):
    """The first `reference` items, and after them blocks of `block`, each compared by `differ` once."""

    def __init__(
        self, differ: Callable[[Sequence[Item], Sequence[Item]], Shift | None], *, reference: int, block: int
    ) -> None:
        self._differ, self._size, self._block_size = differ, reference, block
        self._reference: list[Item] = []
        self._block: list[Item] = []
        self._last: Shift | None = None

    def add(self, item: Item) -> None:
        (self._reference if len(self._reference) < self._size else self._block).append(item)

    def look(self) -> Shift | None:
        """What the last full block was, compared with the reference."""
        if len(self._block) >= self._block_size:
            block, self._block = self._block, []
            self._last = self._differ(self._reference, block)
        return self._last


def characters(text: str) -> tuple[int, ...]:
    """How many of a text's first characters are of each class."""
    codes = np.frombuffer(text[:READ].encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = _CLASS_OF[np.searchsorted(_STARTS, codes, side="right") - 1]
    return tuple(np.bincount(classes, minlength=len(CLASSES)).tolist())


def prompts_differ(false_alarms: float) -> Callable[[Sequence[Prompt], Sequence[Prompt]], Shift | None]:
    """By two-sample tests of Kolmogorov and Smirnov, of the lengths and of each class's share."""

    def differ(reference: Sequence[Prompt], block: Sequence[Prompt]) -> Shift | None:
        columns = zip(_FEATURES, _features(reference).T, _features(block).T, strict=True)
        vary = [part for part in columns if np.ptp(np.concatenate(part[1:]))]  # the others cannot differ
        from scipy import stats  # long to import, and without alerts nobody asks

        shifts = []
        for words, before, now in vary:
            p = float(stats.ks_2samp(before, now, method="asymp").pvalue)
            if p <= false_alarms / len(vary):
                shifts.append(Shift(words, p, float(before.mean()), float(now.mean())))
        return min(shifts, key=lambda shift: shift.p, default=None)

    return differ


def ratings_fall(false_alarms: float) -> Callable[[Sequence[bool], Sequence[bool]], Shift | None]:
    """Whether fewer of the ratings are good ones, by Fisher's exact test."""

    def differ(reference: Sequence[bool], block: Sequence[bool]) -> Shift | None:
        from scipy import stats

        table = [[sum(part), len(part) - sum(part)] for part in (block, reference)]
        p = float(stats.fisher_exact(table, alternative="less").pvalue)
        if p > false_alarms:
            return None
        before, now = (sum(part) / len(part) for part in (reference, block))
        return Shift("share of good ratings", p, before, now)

    return differ


def _features(prompts: Sequence[Prompt]) -> np.ndarray:
    """A row a prompt: its tokens, and the share of each class of characters."""
    counts = np.array([prompt.characters or (0,) * len(CLASSES) for prompt in prompts], dtype=float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.column_stack(([prompt.tokens for prompt in prompts], shares))
