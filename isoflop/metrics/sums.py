"""Formulas that metrics share, on sums over examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.metrics.protocol import Array


def counted(values: Sequence[float] | Array) -> Array:
    """(n, 2): a value of each example, and 1; their `ratio` is the mean."""
    return np.stack([np.asarray(values, np.float64), np.ones(len(values))], axis=1)


def ratio(sums: Array) -> Array:
    """(r,) of (r, 2)."""
    return np.asarray(sums[:, 0] / sums[:, 1])


def f1(hits: Array, mentions: Array) -> Array:
    """2 TP / (2 TP + FP + FN) of twice the true positives and the mentions of both sides; NaN without any."""
    return np.divide(hits, mentions, out=np.full_like(hits, np.nan), where=mentions > 0)
