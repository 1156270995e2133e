"""Metrics of the rank, from 1, at which the right thing was found; references are not looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted, ratio


class MeanReciprocalRank:
    name: ClassVar[str] = "mrr"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean of 1 over the rank of the right one"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        ranks = np.asarray(predictions, np.float64)
        return counted(1 / ranks)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class RecallAt1:
    name: ClassVar[str] = "recall_at_1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "share of cases in which the right one is first"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        ranks = np.asarray(predictions, np.float64)
        return counted((ranks == 1).astype(np.float64))

    def value(self, sums: Array) -> Array:
        return ratio(sums)
