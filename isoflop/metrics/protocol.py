"""A metric is a function of sums over examples, so that one pass over the examples serves any resample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.records import Record

Array = NDArray[np.float64]


class Metric(Protocol):
    """`value(sum over examples of statistics)`; e.g. accuracy is (correct, 1) and their ratio.

    n examples, k statistics of each; r resamples.
    """

    name: ClassVar[str]
    higher_is_better: ClassVar[bool]
    unit: ClassVar[str]  # "share", "points of 100", "nats a token" ...

    @property
    def says(self) -> str:
        """Its definition or signature, e.g. sacrebleu's."""

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """(n, k)."""

    def value(self, sums: Array) -> Array:
        """(r,) of sums (r, k)."""


class Score(Record):
    """A metric on so many examples, with its bootstrap interval over them."""

    metric: str
    value: float
    low: float
    high: float
    level: float = 0.9
    examples: int
    unit: str
    says: str = ""


class Comparison(Record):
    """Two models on the same examples: the paired bootstrap of their difference."""

    metric: str
    first: float
    second: float
    difference: float  # second - first
    low: float
    high: float
    level: float = 0.9
    p_better: float  # share of resamples in which the second is better
    examples: int
