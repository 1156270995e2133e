"""Intervals of metrics over examples, and of the difference of two models on the same examples.

Examples are drawn again with replacement (Efron, 1979); of two models the same ones (Koehn, 2004,
"Statistical significance tests for machine translation evaluation", section 3). A resample is how
often it has each example, so that its sums are one product of matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from isoflop.metrics.protocol import Array, Comparison, Metric, Score

RESAMPLES = 1000
LEVEL = 0.9
BLOCK = 1 << 22  # counts of resamples held at once


def scored(
    metric: Metric, predictions: Sequence[Any], references: Sequence[Any], *, resamples: int = RESAMPLES,
    level: float = LEVEL, seed: int = 0,
) -> Score:  # fmt: skip
    """A metric with its percentile interval."""
    stats = metric.statistics(predictions, references)
    drawn = metric.value(_sums(stats, resamples, seed))
    low, high = central(drawn, level)
    value = float(metric.value(stats.sum(0, keepdims=True))[0])
    return Score(
        metric=metric.name, value=value, low=low, high=high, level=level, examples=len(stats),
        unit=metric.unit, says=metric.says,
    )  # fmt: skip


def value_of(metric: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """A metric without its interval."""
    return float(metric.value(metric.statistics(predictions, references).sum(0, keepdims=True))[0])


def resampled(
    metric: Metric, predictions: Sequence[Any], references: Sequence[Any], *, resamples: int = RESAMPLES,
    seed: int = 0,
) -> Array:  # fmt: skip
    """(r,): the metric of each resample. Equal seeds and numbers of examples give the same examples."""
    return metric.value(_sums(metric.statistics(predictions, references), resamples, seed))


def central(drawn: Array, level: float = LEVEL) -> tuple[float, float]:
    """The interval that holds the middle share `level` of what was drawn."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compared(
    metric: Metric, first: Sequence[Any], second: Sequence[Any], references: Sequence[Any], *,
    resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0,
) -> Comparison:  # fmt: skip
    """Predictions of two models on the same examples. A tie is half better."""
    stats = [metric.statistics(predictions, references) for predictions in (first, second)]
    a, b = (float(metric.value(s.sum(0, keepdims=True))[0]) for s in stats)
    drawn_a, drawn_b = (metric.value(_sums(s, resamples, seed)) for s in stats)
    more = drawn_b - drawn_a
    low, high = central(more, level)
    gain = more if metric.higher_is_better else -more
    return Comparison(
        metric=metric.name, first=a, second=b, difference=b - a, low=low, high=high, level=level,
        p_better=float(np.mean(gain > 0) + np.mean(gain == 0) / 2), examples=len(stats[0]),
    )  # fmt: skip


def _sums(stats: Array, resamples: int, seed: int) -> Array:
    """Of each resample (r, k)."""
    return np.concatenate([counts @ stats for counts in _counts(len(stats), resamples, seed)])


def _counts(n: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each example is in each resample, some resamples at a time."""
    rng = np.random.default_rng(seed)
    rows = max(1, min(resamples, BLOCK // n))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64)
