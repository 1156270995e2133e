"""The mean of numbers that were computed elsewhere, so that it has the intervals of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.metrics.bootstrap import scored
from isoflop.metrics.protocol import Array, Score


class Mean:
    """Of one number an example; those that are not finite are left out."""

    name: ClassVar[str] = "mean"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    says: ClassVar[str] = "mean over examples"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        values = np.asarray(predictions, np.float64)
        known = np.isfinite(values)
        return np.stack([np.where(known, values, 0.0), known.astype(np.float64)], axis=1)

    def value(self, sums: Array) -> Array:
        unknown = np.full(len(sums), np.nan)
        return np.asarray(np.divide(sums[:, 0], sums[:, 1], out=unknown, where=sums[:, 1] > 0))


def mean_score(values: Array, *, seed: int = 0) -> Score:
    """Of numbers (n,), with the interval over examples."""
    return scored(Mean(), values.tolist(), values.tolist(), seed=seed)
