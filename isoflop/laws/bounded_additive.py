"""Additive terms between a floor and the loss of a model that knows nothing.

    L = (E + I g) / (1 + g),   g = A/N^alpha + B/D^beta

M4 of Alabdulmohsin et al. 2209.06640 at alpha = 1 (their eq. 2), with two covariates. L rises with g, so the
best split is that of g.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.solve import Array


def _starts(level: float) -> Array:
    shapes = grid((0.2, 0.4, 0.8), (0.2, 0.4, 0.8), (1.5, 3.0, 10.0))
    ceiling = level * shapes[:, 2]
    half = 0.5 * (level - 0.5 * level) / (ceiling - level)  # g at which L is `level`, shared equally
    return np.column_stack([np.full(len(shapes), 0.5 * level), ceiling, half, half, shapes[:, :2]])


def _same_split(theta: Array) -> Array:
    return np.column_stack([np.zeros(len(theta)), theta[:, 2:6]])


BOUNDED_ADDITIVE = Equation(
    name="bounded-additive",
    formula="L = (E + I g)/(1 + g), g = A/N^alpha + B/D^beta",
    equation="(E + I*(A/N**alpha + B/D**beta))/(1 + A/N**alpha + B/D**beta)",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("E"),
        Parameter("I"),
        Parameter("A", unit="N**alpha", log=True),
        Parameter("B", unit="D**beta", log=True),
        Parameter("alpha", 0.02, 3.0),
        Parameter("beta", 0.02, 3.0),
    ),
    linear=2,
    starts=_starts,
    source="Alabdulmohsin et al. 2209.06640, eq. 2, with the terms of Hoffmann et al. 2203.15556",
    exponents=("alpha", "beta"),
    same_split=_same_split,
)
