"""What a growth model is fitted to: dated values of named things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Points:
    """Values of one metric, n of them, the earliest first."""

    metric: str  # e.g. "compute"
    unit: str  # e.g. "FLOP"
    names: tuple[str, ...]
    groups: tuple[str, ...]  # who made it: what a bootstrap draws together
    years: Floats  # decimal, `decimal_year`
    values: Floats  # above zero
    log_sd: Floats  # of the error of log(value), by its stated confidence; 0: none
    snapshot: str  # hash of the table
    undisclosed: int = 0  # rows of the table in the same window that do not state the metric
    notes: tuple[str, ...] = ()  # what was left out or is doubtful, in sentences

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: NDArray[np.intp] | Sequence[int]) -> Points:
        """These rows, in this order; a row may come more than once."""
        chosen = np.asarray(rows, dtype=np.intp)
        return replace(
            self, names=tuple(self.names[i] for i in chosen), groups=tuple(self.groups[i] for i in chosen),
            years=self.years[chosen], values=self.values[chosen], log_sd=self.log_sd[chosen],
        )  # fmt: skip


def decimal_year(day: date) -> float:
    """2024-07-02 is 2024.5: the share of the year that is over when the day begins."""
    start, end = date(day.year, 1, 1), date(day.year + 1, 1, 1)
    return day.year + (day - start).days / (end - start).days
