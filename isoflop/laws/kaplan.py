"""The joint law of Kaplan et al. 2001.08361 (eq. 1.5): no floor, data and size coupled."""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array


def _starts(level: float) -> Array:
    """At N = D = 1 (scaled) the two terms of the bracket share level^(1/alpha_D) equally."""
    alphas = grid((0.05, 0.1, 0.2), (0.05, 0.1, 0.2))
    alpha_N, alpha_D = alphas.T
    half = 0.5 * level ** (1.0 / alpha_D)
    return np.stack([half ** (alpha_D / alpha_N), half, alpha_N, alpha_D], axis=1)


def _same_split(theta: Array) -> Array:
    """The bracket is a Chinchilla law with A = N_c^(alpha_N/alpha_D), B = D_c and beta = 1."""
    N_c, D_c, alpha_N, alpha_D = theta.T
    alpha = alpha_N / alpha_D
    return np.stack([np.zeros_like(N_c), N_c**alpha, D_c, alpha, np.ones_like(N_c)], axis=1)


KAPLAN = Equation(
    name="kaplan",
    formula="L = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D",
    equation="((N_c/N)**(alpha_N/alpha_D) + D_c/D)**alpha_D",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("N_c", unit="N", log=True),
        Parameter("D_c", unit="D", log=True),
        Parameter("alpha_N", 0.005, 2.0),
        Parameter("alpha_D", 0.005, 2.0),
    ),
    linear=0,
    starts=_starts,
    source="Kaplan et al. 2001.08361, eq. 1.5; N without embeddings",
    published=(
        Published(
            "kaplan-2020",
            {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
            "Kaplan et al. 2001.08361, table 2; N without embeddings",
        ),
    ),
    same_split=_same_split,
)
