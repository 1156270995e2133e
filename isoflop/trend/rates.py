"""The rate of growth with its interval, by three bootstraps; doubling times; what each point moves.

A rate is a factor a year, exp of the slope of ln(value): 4.35 is 4.35 times a year. Doubling time is made of
the rate's interval, not of draws of itself: where growth may be nil it has no upper end.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isoflop.errors import TrendError
from isoflop.laws.intervals import clusters_of, pairs_weights, quantiles
from isoflop.records import Interval, Record
from isoflop.trend.frontier import Frontier
from isoflop.trend.points import Floats, Points

BOOTSTRAPS = {
    "rows": "rows drawn one by one",
    "organisations": "all rows of an organisation drawn together",
    "errors": "rows drawn one by one, each value moved by its stated error",
}
DRAWS = 2000
INFLUENTIAL, LEFT_OUT = 5, 600  # shown; tried at most
NEVER = float("inf")


class Tables(NamedTuple):
    """D tables of the same n points: how often a point is there, 0 outside the frontier and window."""

    years: Floats  # (n,)
    weights: Floats  # (D, n)
    logs: Floats  # (D, n), or (1, n)


class Rate(Record):
    """Growth with its interval by one bootstrap."""

    per_year: Interval  # a factor
    doubling_months: Interval  # inf: no end; below zero: the value halves
    bootstrap: str  # of BOOTSTRAPS
    draws: int


class Influence(Record):
    """What the rate would be without a point."""

    name: str
    year: float
    value: float
    rate_without: float  # a factor a year
    change: float  # of the rate, by having the point: rate - rate_without


def as_they_are(points: Points, since: float, frontier: Frontier) -> Tables:
    """The one table that was not resampled."""
    return _chosen(points, since, frontier, np.ones((1, len(points))), np.log(points.values)[None])


def resampled(
    points: Points, since: float, frontier: Frontier, bootstrap: str, draws: int, rng: np.random.Generator
) -> Tables:
    """`draws` tables by one of BOOTSTRAPS; the frontier is found in each anew."""
    if not frontier.top:  # what came before the window does not matter
        points = points.take(np.flatnonzero(points.years >= since))
    n, logs = len(points), np.log(points.values)[None]
    clusters = clusters_of(points.groups, n) if bootstrap == "organisations" else np.arange(n)
    weights = pairs_weights(clusters, draws, rng)
    if bootstrap == "errors":
        logs = logs + points.log_sd * rng.standard_normal((draws, n))
    return _chosen(points, since, frontier, weights, logs)


def _chosen(points: Points, since: float, frontier: Frontier, weights: Floats, logs: Floats) -> Tables:
    inside = points.years >= since
    return Tables(points.years, weights * (frontier.members(points.years, logs, weights) & inside), logs)


def slopes(tables: Tables) -> Floats:
    """(D,) slopes of ln(value) a year, by weighted least squares; nan where a table has one date only."""
    years, w, y = tables
    u = years - years.mean()
    total, wu = w.sum(axis=1), w @ u
    wy = w * y
    spread = w @ u**2 - wu**2 / np.maximum(total, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = (wy @ u - wu * wy.sum(axis=1) / np.maximum(total, 1)) / spread
    return np.where(spread > 1e-9, slope, np.nan)


def rate_of(slope: float, drawn: Floats, level: float, bootstrap: str) -> Rate:
    """The rate and doubling time of a slope, from its draws."""
    low, high = ends(drawn, level)
    factor = Interval(value=np.exp(slope), low=np.exp(low), high=np.exp(high), level=level, of="rate")
    return Rate(per_year=factor, doubling_months=doubling(slope, low, high, level), bootstrap=bootstrap,
                draws=int(np.isfinite(drawn).sum()))  # fmt: skip


def ends(drawn: Floats, level: float) -> tuple[float, float]:
    """Central interval of (D,) draws, those that are not numbers left out."""
    known = drawn[~np.isnan(drawn)]
    if len(known) < len(drawn) / 2:
        raise TrendError(
            "More than half of the resampled tables have too few points for a rate.", hint="Take more points."
        )
    return quantiles(known, level)


def doubling(slope: float, low: float, high: float, level: float) -> Interval:
    """Months until the value doubles (below zero: halves), by inverting the slope's interval.

    An interval that holds zero has an unbounded side, and the other sign's times are left out of it.
    """
    months = [12 * np.log(2) / v if v else NEVER for v in (slope, low, high)]
    if low <= 0 <= high:
        end = months[2] if slope >= 0 else months[1]
        reach = (end, NEVER) if slope >= 0 else (-NEVER, end)
        return Interval(value=months[0], low=reach[0], high=reach[1], level=level, of="doubling time")
    return Interval(value=months[0], low=months[2], high=months[1], level=level, of="doubling time")


def influences(points: Points, since: float, frontier: Frontier) -> tuple[Influence, ...]:
    """The points whose absence moves the rate most; the frontier is found again without each.

    Of many points only those are tried whose leverage times residual is largest.
    """
    whole = as_they_are(points, since, frontier)
    rows = np.flatnonzero(whole.weights[0])
    u, y = points.years[rows], whole.logs[0, rows]
    line = np.polyfit(u - u.mean(), y, 1)
    pull = np.abs((u - u.mean()) * (y - np.polyval(line, u - u.mean())))
    rows = rows[np.argsort(-pull, kind="stable")[:LEFT_OUT]]
    weights = np.ones((len(rows), len(points)))
    weights[np.arange(len(rows)), rows] = 0
    without = np.exp(slopes(_chosen(points, since, frontier, weights, whole.logs)))
    rate = float(np.exp(slopes(whole)[0]))
    order = np.argsort(-np.nan_to_num(np.abs(without - rate)), kind="stable")[:INFLUENTIAL]
    return tuple(
        Influence(name=points.names[rows[i]], year=points.years[rows[i]], value=points.values[rows[i]],
                  rate_without=without[i], change=rate - without[i]) for i in order
    )  # fmt: skip
