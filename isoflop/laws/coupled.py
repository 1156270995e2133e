"""Additive terms under a common power: L = E + (A/N^alpha + B/D^beta)^k.

With k = 1 it is Hoffmann's law, with E = 0 and beta = 1 Kaplan's. Since the power is monotone, k does not
move the compute-optimal split.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array


def _starts(level: float) -> Array:
    shapes = grid((0.2, 0.4, 0.8), (0.2, 0.4, 0.8), (0.3, 0.6, 1.0))
    half = 0.5 * (0.5 * level) ** (1.0 / shapes[:, 2])
    return np.column_stack([np.full(len(shapes), 0.5 * level), half, half, shapes])


def _same_split(theta: Array) -> Array:
    return np.column_stack([np.zeros(len(theta)), theta[:, 1:5]])


COUPLED = Equation(
    name="coupled",
    formula="L = E + (A/N^alpha + B/D^beta)^k",
    equation="E + (A/N**alpha + B/D**beta)**k",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("E"),
        Parameter("A", unit="N**alpha", log=True),
        Parameter("B", unit="D**beta", log=True),
        Parameter("alpha", 0.02, 3.0),
        Parameter("beta", 0.02, 3.0),
        Parameter("k", 0.05, 3.0),
    ),
    linear=1,
    starts=_starts,
    source="Videau et al. 2026 (Skaling, arXiv 2608.07222); Busbridge et al. 2502.08606, eq. 1",
    exponents=("alpha", "beta"),
    published=(
        Published(
            "busbridge-2025-supervised",
            {"E": 1.220, "A": 3355.0, "B": 18186.0, "alpha": 0.408, "beta": 0.431, "k": 0.452},
            "Busbridge et al. 2502.08606, table 6; N without embeddings, C4",
        ),
    ),
    same_split=_same_split,
)
