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
from isoflop.trend.answer import question
from isoflop.trend.growth import Draws, Growth, fit_all
from isoflop.trend.points import Points

SINCE, FRONTIER = "2018", "top10"  # what a table's growth is fitted to, as the published rates are


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
    def of_points(cls, points: Points, label: str) -> Averaged:
        """Every growth model that the points allow."""
        found, _ = fit_all(points.years, np.log(points.values))
        return cls.of(tuple(found.values()), label)

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


def of_table(path: Path) -> Averaged:
    """Every growth model of a table's training compute: its running top 10 since 2018.

    Raises TrendError for one that cannot be read or has too few points.
    """
    _, asked = question("compute", path=path, since=SINCE, frontier=FRONTIER)
    return Averaged.of_points(asked.chosen(), f"the {FRONTIER} since {SINCE} of {path.name}")
