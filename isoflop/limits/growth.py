"""How the largest training run would grow if nothing stopped it: by an assumed rate, or by a table.

Only the shape of growth counts here; its level is that of the largest run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.laws.solve import Array
from isoflop.limits.assumptions import Assumptions, Quantity
from isoflop.trend.frontier import Frontier
from isoflop.trend.growth import Draws, Growth, fit_all
from isoflop.trend.points import Points
from isoflop.trend.rates import Window, as_they_are
from isoflop.trend.series import series
from isoflop.trend.tables import read_table

SINCE, FRONTIER = 2018.0, "top10"  # what a table's growth is fitted to, as the published rates are


@dataclass(frozen=True)
class Exponential:
    """A steady rate, known within an interval."""

    rate: Quantity  # x a year
    words: str

    @classmethod
    def of(cls, assumptions: Assumptions) -> Exponential:
        """By the rate of the assumptions."""
        rate = assumptions.quantities["growth.rate"]
        return cls(rate, f"{rate.low:g} to {rate.high:g}x a year, as assumed")

    def draws(self, at_years: Array, n: int, rng: np.random.Generator) -> Array:
        """(n, len(at_years)) of ln(FLOP), 0 at the first year."""
        rates = np.log(self.rate.draws(n, rng))
        return np.asarray(rates[:, None] * (at_years - at_years[0]))


@dataclass(frozen=True)
class Averaged:
    """Several growth models, each in its share of the draws."""

    models: Sequence[Draws]
    shares: Array  # (models,) that add up to 1
    words: str

    @classmethod
    def of(cls, found: Sequence[Growth], label: str) -> Averaged:
        """By Akaike weights exp(-AICc/2): Burnham and Anderson 2002, section 2.9."""
        aicc = np.array([np.inf if g.aicc is None else g.aicc for g in found])
        weight = np.exp(-0.5 * (aicc - aicc.min()))
        shares = weight / weight.sum()
        likely = sorted(zip(shares, (g.model for g in found), strict=True), reverse=True)[:3]
        mix = ", ".join(f"{name} {share:.0%}" for share, name in likely)
        return cls(found, shares, f"as {label} ({mix})")

    def draws(self, at_years: Array, n: int, rng: np.random.Generator) -> Array:
        """(n, len(at_years)) of ln(FLOP)."""
        counts = rng.multinomial(n, self.shares)
        parts = [m.draws(at_years, k, rng) for m, k in zip(self.models, counts, strict=True) if k]
        return rng.permutation(np.concatenate(parts))


def fitted(points: Points, label: str) -> Averaged:
    """Every growth model that the running top 10 since 2018 allows. Raises TrendError for too few points."""
    tables = as_they_are(points, Window(SINCE), Frontier.named(FRONTIER))
    rows = np.flatnonzero(tables.weights[0] > 0)
    found, _ = fit_all(points.years[rows], np.log(points.values[rows]))
    return Averaged.of(tuple(found.values()), f"the top 10 since {SINCE:.0f} of {label}")


def of_table(path: Path) -> Averaged:
    """Growth of the training compute in a table. Raises TrendError for one that cannot be read."""
    return fitted(series(read_table(path), "compute"), path.name)
