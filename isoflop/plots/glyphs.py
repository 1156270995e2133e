"""Faces for words of any script: what a picture can write, and what stands for the rest."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from matplotlib.font_manager import fontManager
from matplotlib.ft2font import FT2Font

FIRST = "DejaVu Sans Mono"  # comes with matplotlib
BOXES = "Last Resort"  # has every character as a box
INSTEAD = "·"  # of a character that no face has
NAMED = 5  # characters in a sentence


def faces_for(words: Iterable[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Installed faces that have the characters of the words, FIRST before others; and those that none has.

    Of the others the one is taken that has most of what is missing, until none has any.
    """
    files = {entry.name: entry.fname for entry in fontManager.ttflist if BOXES not in entry.name}
    missing = {c for word in words for c in word if not c.isspace()}
    missing -= _had(files[FIRST], missing)
    chosen = [FIRST]
    while missing:
        had = {name: _had(file, missing) for name, file in sorted(files.items())}
        best = max(had, key=lambda name: len(had[name]))
        if not had[best]:
            break
        chosen.append(best)
        missing -= had[best]
    return tuple(chosen), frozenset(missing)


def _had(file: str, characters: set[str]) -> set[str]:
    """Those that a file has glyphs of."""
    font = FT2Font(file)
    return {c for c in characters if font.get_char_index(ord(c))}


def written(word: str, missing: frozenset[str]) -> str:
    """With a dot in the place of each column of a character that is missing."""
    return "".join(INSTEAD * columns(c) if c in missing else c for c in word)


def columns(text: str) -> int:
    """Of a text in a face of equal widths; Chinese characters have two, marks above others none."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def note(missing: frozenset[str]) -> str:
    """What a reader has to know of a picture with dots in it."""
    shown = sorted(missing)[:NAMED]
    more = " …" if len(missing) > NAMED else ""
    return (
        f"no installed font has {len(missing)} of the characters ({' '.join(shown)}{more}): pictures show "
        f"{INSTEAD} instead; install one that has them, such as Noto Sans CJK for Chinese"
    )
