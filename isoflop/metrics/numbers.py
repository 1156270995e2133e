"""Metrics of a number an example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted

ROUNDING = 1e-12  # of a variance of 1: below it a side is constant


class RootMeanSquare:
    """Of the differences, in the unit of the numbers."""

    name: ClassVar[str] = "rmse"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "of the target"
    says: ClassVar[str] = "root of the mean squared difference"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        found, true = _numbers(predictions), _numbers(references)
        return counted((found - true) ** 2)

    def value(self, sums: Array) -> Array:
        return np.asarray(np.sqrt(sums[:, 0] / sums[:, 1]))


class Pearson:
    """Correlation of the numbers; nothing (NaN) where either side is constant."""

    name: ClassVar[str] = "pearson"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "correlation"
    says: ClassVar[str] = "Pearson's correlation"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return _moments(_numbers(predictions), _numbers(references))

    def value(self, sums: Array) -> Array:
        return _correlation(sums)


class Spearman:
    """Correlation of ranks, ties sharing their mean.

    The ranks are those of all examples: a resample keeps them, where ranking anew would cost a sort of each.
    """

    name: ClassVar[str] = "spearman"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "correlation"
    says: ClassVar[str] = "Spearman's correlation of ranks; resamples keep the ranks of the whole"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        from scipy.stats import rankdata

        return _moments(rankdata(_numbers(predictions)), rankdata(_numbers(references)))

    def value(self, sums: Array) -> Array:
        return _correlation(sums)


def _numbers(values: Sequence[Any]) -> Array:
    """(n,)."""
    return np.asarray(values, np.float64).reshape(len(values))


def _moments(x: Array, y: Array) -> Array:
    """(n, 6): 1, x, y, xx, xy, yy, in units in which rounding does not matter."""
    x, y = (_standard(values) for values in (x, y))
    return np.stack([np.ones(len(x)), x, y, x * x, x * y, y * y], axis=1)


def _standard(values: Array) -> Array:
    centred = values - values.mean()
    return np.asarray(centred / (centred.std() or 1.0))


def _correlation(sums: Array) -> Array:
    n, x, y, xx, xy, yy = sums.T
    over = n * xy - x * y
    under = np.sqrt(np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0))
    made = np.divide(over, under, out=np.full_like(over, np.nan), where=under > ROUNDING * n * n)
    return np.asarray(np.clip(made, -1, 1))
