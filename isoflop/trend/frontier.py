"""Which points are the frontier: all, the running top K, those that set a record; and a quantile of all.

A point is of the running top K if no more than K - 1 points up to its date are larger. Membership depends on
the points that there are, so a bootstrap asks again in every draw; a point drawn twice takes two places.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import TrendError
from isoflop.trend.points import Floats


@dataclass(frozen=True)
class Frontier:
    """One definition; `top` is 0 for all points."""

    name: str
    top: int = 0
    strict: bool = False  # a record has to be above what there was
    falls: bool = False  # the best are the smallest, as of prices

    @classmethod
    def named(cls, name: str, falls: bool = False) -> Frontier:
        """From all, records, or topK such as top10. Raises TrendError for another word."""
        if name == "all":
            return cls(name)
        if name == "records":
            return cls(name, 1, strict=True, falls=falls)
        found = re.fullmatch(r"top([1-9]\d{0,3})", name)
        if found is None:
            raise TrendError(
                f"There is no frontier {name!r}.", hint="Use all, records, or topK such as top10."
            )
        return cls(name, int(found[1]), falls=falls)

    def members(self, years: Floats, logs: Floats, weights: Floats) -> NDArray[np.bool_]:
        """(D, n) whether each point belongs, in each of D tables.

        `years` is (n,) in order; `logs` is (D, n) or (1, n); `weights` (D, n) counts each point.
        """
        if not self.top:
            return weights > 0
        if self.falls:
            logs = -logs
        largest = np.full((len(weights), self.top), -np.inf)  # so far
        least = largest.min(axis=1)  # of them
        belongs = np.zeros(weights.shape, bool)
        edges = np.flatnonzero(np.diff(years)) + 1
        for day in np.split(np.arange(len(years)), edges):
            before = least.copy()
            for i in day:
                value = np.broadcast_to(logs[:, i], least.shape)
                rows, copies = np.flatnonzero((weights[:, i] > 0) & (value > least)), 1
                while len(rows):
                    inside = largest[rows]
                    inside[np.arange(len(rows)), inside.argmin(axis=1)] = value[rows]
                    largest[rows], least[rows] = inside, inside.min(axis=1)
                    rows = rows[(weights[rows, i] > copies) & (value[rows] > least[rows])]
                    copies += 1
            floor = logs[:, day] >= least[:, None]
            if self.strict:
                floor &= logs[:, day] > before[:, None]
            belongs[:, day] = floor & (weights[:, day] > 0)
        return belongs


def quantile_line(years: Floats, logs: Floats, weights: Floats, quantile: float) -> tuple[float, float]:
    """Level at the mean date and slope of the line that leaves `quantile` of the (n,) points below it.

    Koenker and Bassett 1978: the least sum of tilted absolute residuals; solved as its dual linear program,
    max y'a with X'a = (1 - quantile) X'w and 0 <= a <= w, whose multipliers are the coefficients.
    """
    from scipy.optimize import linprog

    X = np.stack([np.ones_like(years), years - years.mean()])
    room = np.stack([np.zeros_like(weights), weights], axis=1)
    found = linprog(-logs, A_eq=X, b_eq=(1 - quantile) * (X @ weights), bounds=room, method="highs")
    level, slope = -found.eqlin.marginals
    return float(level), float(slope)
