"""Is growth slowing? Changes of the rate, dates of breaks, and how often breaks are found where none is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isoflop.laws.intervals import quantiles
from isoflop.laws.likelihood import deviance
from isoflop.records import Interval, Record
from isoflop.trend.growth import Growth, solve
from isoflop.trend.points import Floats
from isoflop.trend.rates import Tables
from isoflop.trend.shapes import SHAPES

DRAWS, SIMULATIONS = 500, 400
NIL = 1e-9  # a change of the rate that is rounding
BROKEN = ("kinked", "kinked-2", "discontinuous")
SLOWING, SPEEDING, NO_EVIDENCE = "slowing", "speeding up", "no evidence of a change"


class Break(Record):
    """The break dates of one model, and how much better BIC likes it than a constant rate."""

    model: str
    dates: tuple[Interval, ...]  # decimal years
    bic_gain: float  # above zero: the break is preferred
    false_rate: float  # how often BIC prefers it in series simulated without a break


class Slowing(Record):
    """Evidence that the rate changes: two intervals of its change, each a year of ln(value)."""

    verdict: str
    change: Interval | None  # the kinked model's last rate less its earlier one
    curvature: Interval | None  # twice the quadratic term: by how much the rate changes each year
    breaks: tuple[Break, ...]
    false_breaks: float | None  # how often BIC prefers some break in series simulated without one
    simulations: int


class Bent(NamedTuple):
    """Draws of one model: (D, p) coefficients and (D, q) shape parameters."""

    c: Floats
    s: Floats


def slowing(growths: dict[str, Growth], tables: Tables, level: float, rng: np.random.Generator) -> Slowing:
    """From fits to the frontier in a window, and `tables` of the same points resampled."""
    used = tables.weights.any(axis=0)
    fewer = Tables(tables.years[used], tables.weights[:DRAWS, used], tables.logs[:DRAWS, used])
    drawn = {
        name: _bent(growths[name], fewer)
        for name in (*BROKEN, "quadratic") if name in growths
    }  # fmt: skip
    change = curvature = None
    if "kinked" in growths:
        change = _interval(growths["kinked"].params["change"], drawn["kinked"].c[:, 2], level, "difference")
    if "quadratic" in growths:
        value = growths["quadratic"].params["curvature"]
        curvature = _interval(2 * value, 2 * drawn["quadratic"].c[:, 2], level, "difference")
    verdict = _verdict(change, curvature, growths["exponential"].params["rate"])
    alone, any_break = false_breaks(growths, rng)
    breaks = tuple(
        Break(model=name, bic_gain=growths["exponential"].bic - growths[name].bic, false_rate=alone[name],
              dates=tuple(_interval(float(at), drawn[name].s[:, i], level, "date")
                          for i, at in enumerate(growths[name].s + growths[name].span.centre)))
        for name in BROKEN if name in growths
    )  # fmt: skip
    return Slowing(verdict=verdict, change=change, curvature=curvature, breaks=breaks,
                   false_breaks=any_break, simulations=SIMULATIONS)  # fmt: skip


def false_breaks(
    growths: dict[str, Growth], rng: np.random.Generator
) -> tuple[dict[str, float], float | None]:
    """How often BIC prefers each break model, and any, in series of exponential growth at the same dates.

    Their noise is drawn from the exponential fit's residuals, widened for its degrees of freedom.
    """
    base = growths["exponential"]
    n, u = base.n, base.years - base.span.centre
    residual = base.logs - base.predict(base.years)
    residual = (residual - residual.mean()) * np.sqrt(n / max(n - 2, 1))
    y = base.predict(base.years) + residual[rng.integers(n, size=(SIMULATIONS, n))]
    ones = np.ones((1, n))

    def bic(name: str) -> Floats:
        shape = SHAPES[name]
        rss = solve(shape, u, y, ones, shape.grid(u, base.logs, base.span), base.span).rss
        return np.asarray(deviance(np.maximum(rss, 0.0) / 2, n, np.inf) + shape.k * np.log(n))

    constant = bic("exponential")
    better = {name: bic(name) < constant for name in BROKEN if name in growths}
    some = float(np.logical_or.reduce(list(better.values())).mean()) if better else None
    return {name: float(found.mean()) for name, found in better.items()}, some


def _bent(growth: Growth, tables: Tables) -> Bent:
    """Refits of resampled tables; the grid of breaks is that of the fit."""
    shape, span = SHAPES[growth.model], growth.span
    s = shape.grid(growth.years - span.centre, growth.logs, span)
    found = solve(shape, tables.years - span.centre, tables.logs, tables.weights, s, span)
    return Bent(found.c, s[found.at] + span.centre)


def _interval(value: float, drawn: Floats, level: float, of: str) -> Interval:
    low, high = quantiles(drawn, level)
    return Interval(value=value, low=low, high=high, level=level, of=of)


def _verdict(change: Interval | None, curvature: Interval | None, rate: float) -> str:
    """A change is claimed where both intervals lie on one side of zero; a falling value slows by rising."""
    both = [part for part in (change, curvature) if part is not None]
    signs = {(part.low > NIL) - (part.high < -NIL) for part in both}
    if signs == {1} or signs == {-1}:
        return SPEEDING if (1 in signs) == (rate >= 0) else SLOWING
    return NO_EVIDENCE
