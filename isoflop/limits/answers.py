"""What comes out: each limit with the interval of where it binds, and which binds first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isoflop.laws.intervals import quantiles
from isoflop.laws.solve import Array
from isoflop.records import Interval, Record


class Limit(Record):
    """What limits of the industry and of a project have in common."""

    name: str
    what: str
    flops: Interval  # training compute at the limit
    doublings: Interval  # until then, from the largest run, or from the project's last
    first: float  # share of all draws in which it binds before every other


class IndustryLimit(Limit):
    """One limit of the largest training run; infinite where it does not bind before the horizon."""

    applies: float  # share of draws in which it holds; what follows is of these, but for `first`
    date: Interval  # decimal year in which growth meets it
    feasible: Interval  # FLOPs that it allows at `IndustryAnswer.feasible_year`
    reached: float  # share of draws in which it binds before the horizon


class Band(Record):
    """Growth without limits: FLOPs of the largest run at decimal years."""

    years: tuple[float, ...]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]


class IndustryAnswer(Record):
    """Where the growth of the largest training run ends."""

    draws: int
    seed: int
    level: float
    start: float  # decimal year of the largest run
    frontier: Interval  # its FLOPs
    horizon: float  # decimal year at which looking ends
    feasible_year: float
    limits: tuple[IndustryLimit, ...]
    date: Interval  # at which the first limit binds
    flops: Interval
    doublings: Interval
    free: float  # share of draws in which none binds before the horizon
    band: Band
    growth: str  # the model of it, in words
    assumptions: str  # file
    snapshot: str  # its hash

    @property
    def sentence(self) -> str:
        """The answer in words."""
        if math.isinf(self.date.value):
            return f"In most draws no limit binds before {self.horizon:.0f}."
        return (
            f"The first limit binds in {date_words(self.date)}, {doublings_words(self.doublings)} beyond the"
            f" largest known run; {ranking(self.limits)}."
        )


class UserAnswer(Record):
    """What a project can still buy."""

    draws: int
    seed: int
    level: float
    start: str  # the plan or run that doublings are counted from
    flops: float  # its training compute
    limits: tuple[Limit, ...]  # doublings are negative where one is behind already
    doublings: Interval  # until the first limit
    irreducible: Interval | None  # the law's E; None in laws without it
    loss_now: Interval  # of a new run at the best split of `flops`
    loss_then: Interval | None  # and of what can still be bought; None where that is nothing
    notes: tuple[str, ...]
    snapshot: str  # of the assumptions

    @property
    def sentence(self) -> str:
        """The answer in words."""
        left = self.doublings
        if math.isinf(left.value):
            return "In most draws no limit is in sight."
        if left.value <= 0:
            return f"Nothing is left to buy: {doublings_words(left)}; {ranking(self.limits)}."
        return f"You can still buy {doublings_words(left)}; {ranking(self.limits)}."


def central(draws: Array, level: float, of: str) -> Interval:
    """Median and central interval of (n,) draws, infinite ones kept in order."""
    low, high = quantiles(draws, level)
    return Interval(value=float(np.sort(draws)[len(draws) // 2]), low=low, high=high, level=level, of=of)


def first_of(where: Array) -> Array:
    """(limits,) shares of draws in which each is the least of (n, limits); none where all are infinite."""
    least = where.argmin(axis=1)
    bound = np.isfinite(where.min(axis=1))
    return np.bincount(least[bound], minlength=where.shape[1]) / len(where)


def ranking(limits: Sequence[Limit]) -> str:
    """Which binds first: the likeliest with its share, and a second where that is close."""
    ordered = sorted(limits, key=lambda limit: -limit.first)
    best = ordered[0]
    if len(ordered) > 1 and ordered[1].first > 0.5 * best.first:
        second = ordered[1]
        return f"what binds first is {best.name} ({best.first:.0%}) or {second.name} ({second.first:.0%})"
    return f"what binds first is {best.name} ({best.first:.0%})"


def date_words(found: Interval) -> str:
    """Decimal years, or never."""
    return f"{_year(found.value)} [{_year(found.low)}, {_year(found.high)}]"


def _year(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else "never"


def doublings_words(found: Interval) -> str:
    """3.1 doublings [2.0, 4.4]."""
    return f"{found.value:.1f} doublings [{found.low:.1f}, {found.high:.1f}]"
