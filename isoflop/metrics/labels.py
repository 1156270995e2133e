"""Metrics of labels: one label an example, as its number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted, f1, ratio


class Accuracy:
    """Share of examples whose label is right."""

    name: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "share of examples whose label is right"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        right = [_label(p) == r for p, r in zip(predictions, references, strict=True)]
        return counted(right)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class MacroF1:
    """Mean over labels of 2 TP / (2 TP + FP + FN); a label that neither side has is left out."""

    name: ClassVar[str] = "macro_f1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean over labels of the harmonic mean of precision and recall"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """(n, 2C): of each label, twice its true positives and all of its mentions."""
        found = np.array([_label(p) for p in predictions], int)
        true = np.array(references, int)
        labels = np.arange(int(max(found.max(), true.max())) + 1)
        is_found, is_true = found[:, None] == labels, true[:, None] == labels
        hits = 2.0 * (is_found & is_true)
        mentions = is_found.astype(np.float64) + is_true
        return np.concatenate([hits, mentions], axis=1)

    def value(self, sums: Array) -> Array:
        hits, mentions = np.split(sums, 2, axis=1)
        return np.asarray(np.nanmean(f1(hits, mentions), axis=1))


def _label(prediction: Any) -> int:
    """Of probabilities (C,), or a label as it is."""
    return int(np.argmax(prediction)) if np.ndim(prediction) else int(prediction)
