"""How the largest training run would grow if nothing stopped it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from isoflop.laws.solve import Array
from isoflop.limits.assumptions import Assumptions, Quantity


class GrowthModel(Protocol):
    """A growth model with its uncertainty; only its shape counts here, the level is the largest run's."""

    def draws(self, at_years: Array, n: int, rng: np.random.Generator) -> Array:
        """(n, len(at_years)) draws of ln(FLOP) at decimal years."""
        ...


@dataclass(frozen=True)
class Exponential:
    """A steady rate, known within an interval."""

    rate: Quantity  # x a year
    year: float  # at which ln(FLOP) is taken as 0

    @classmethod
    def of(cls, assumptions: Assumptions) -> Exponential:
        """By the rate of the assumptions."""
        year = assumptions.quantities["growth.frontier"].year
        assert year is not None  # the reader saw to it
        return cls(assumptions.quantities["growth.rate"], year)

    def draws(self, at_years: Array, n: int, rng: np.random.Generator) -> Array:
        return np.log(self.rate.draws(n, rng))[:, None] * (at_years - self.year)
