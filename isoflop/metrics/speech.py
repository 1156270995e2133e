"""Error rates of transcripts: edits over the length of what was said, in words or characters (jiwer).

Both sides are compared in lower case, without punctuation, and with single spaces.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.errors import AdaptError
from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import ratio


class WordErrorRate:
    name: ClassVar[str] = "wer"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "edits of words over words said (jiwer); lower case, without punctuation"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _edits("process_words", predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class CharacterErrorRate:
    name: ClassVar[str] = "cer"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "edits of characters over characters said (jiwer); lower case, without punctuation"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _edits("process_characters", predictions, references)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


def spoken(text: str) -> str:
    """Without what is not heard: case, punctuation, and spaces but single ones."""
    kept = "".join(c for c in text.lower() if not unicodedata.category(c).startswith("P"))
    return " ".join(kept.split())


def _edits(process: str, predictions: Sequence[str], references: Sequence[str]) -> Array:
    """(n, 2): edits, and the length of the reference."""
    try:
        import jiwer
    except ImportError:
        raise AdaptError("jiwer is not installed", hint="pip install 'isoflop[adapt]'") from None
    made = []
    for prediction, reference in zip(predictions, references, strict=True):
        found = getattr(jiwer, process)(spoken(reference), spoken(prediction))
        wrong = found.substitutions + found.deletions
        made.append((wrong + found.insertions, found.hits + wrong))
    return np.asarray(made, np.float64)
