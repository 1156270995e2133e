"""Metrics of several labels an example: predictions are probabilities (C,), references 0 or 1 (C,)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import f1

THRESHOLD = 0.5


class MicroF1:
    """2 TP / (2 TP + FP + FN) over all labels together; 0 where neither side has any."""

    name: ClassVar[str] = "micro_f1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "F1 of all labels together; those of probability one half or more are said"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """(n, 2): twice the true positives, and all mentions."""
        hits, mentions = _counts(predictions, references)
        return np.stack([hits.sum(1), mentions.sum(1)], axis=1)

    def value(self, sums: Array) -> Array:
        return np.nan_to_num(f1(sums[:, 0], sums[:, 1]))


class MacroF1Labels:
    """Mean over labels of 2 TP / (2 TP + FP + FN); a label that neither side has is left out.

    0 where neither side has any.
    """

    name: ClassVar[str] = "macro_f1_labels"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean over labels of their F1; those of probability one half or more are said"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """(n, 2C): of each label, twice its true positives and all of its mentions."""
        return np.concatenate(_counts(predictions, references), axis=1)

    def value(self, sums: Array) -> Array:
        each = f1(*np.split(sums, 2, axis=1))
        return np.asarray(np.nansum(each, axis=1) / np.maximum(np.isfinite(each).sum(axis=1), 1))


def _counts(predictions: Sequence[Any], references: Sequence[Any]) -> tuple[Array, Array]:
    """(n, C) each."""
    found = np.asarray(predictions, np.float64) >= THRESHOLD
    true = np.asarray(references, np.float64) > 0
    return 2.0 * (found & true).astype(np.float64), found.astype(np.float64) + true
