"""Repeated data and excess parameters: Muennighoff et al. 2305.16264 (eqs. 5 and 6, appendix A).

U unique tokens are repeated R_D = D/U - 1 times; U_N is the size that would be compute-optimal for them.
Repeats and parameters beyond it count for less and less:

    D' = U + U R_D* (1 - exp(-R_D/R_D*)),   N' = U_N + U_N R_N* (1 - exp(-R_N/R_N*))

A trap: even at one epoch (D = U) N' < N for N > U_N, so the law is not Hoffmann's there.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array

_UN = "U**(beta/alpha)*(alpha*A/(beta*B))**(1/alpha)"  # U_N = (U G)^(beta/alpha) G with G of eq. 4
_N = f"Piecewise((N, N <= {_UN}), ({_UN}*(1 + RN_star*(1 - exp(-(N/({_UN}) - 1)/RN_star))), True))"
_D = "U*(1 + RD_star*(1 - exp(-(D/U - 1)/RD_star)))"

STAGE_1 = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974), "alpha": 0.3526596,
           "beta": 0.3526596}  # fmt: skip


RD_STAR, RN_STAR = 15.387756, 5.309743


def effective_tokens(tokens: Array, unique_tokens: float | Array) -> Array:
    """D' (eq. 5): fresh tokens worth as much as `tokens` from `unique_tokens`, at the published R_D*."""
    unique = np.minimum(unique_tokens, tokens)
    return np.asarray(unique * (1.0 - RD_STAR * np.expm1(-(tokens / unique - 1.0) / RD_STAR)))


def _starts(level: float) -> Array:
    exponents = grid((0.25, 0.4), (0.25, 0.4), (3.0, 15.0, 60.0), (2.0, 8.0))
    third = np.full((len(exponents), 3), level / 3.0)
    return np.column_stack([third, exponents])


REPEATED = Equation(
    name="repeated-data",
    formula="L = E + A/N'^alpha + B/D'^beta, D' = U (1 + R_D* (1 - exp(-(D/U - 1)/R_D*))), N' likewise",
    equation=f"E + A/({_N})**alpha + B/({_D})**beta",
    covariates=(
        Covariate("N", "params", "N"),
        Covariate("D", "tokens", "D"),
        Covariate("U", "unique_tokens", "D"),
    ),
    parameters=(
        Parameter("E"),
        Parameter("A", unit="N**alpha", log=True),
        Parameter("B", unit="D**beta", log=True),
        Parameter("alpha", 0.02, 2.0),
        Parameter("beta", 0.02, 2.0),
        Parameter("RD_star", log=True),
        Parameter("RN_star", log=True),
    ),
    linear=1,
    starts=_starts,
    source="Muennighoff et al. 2305.16264, eqs. 5 and 6, appendix A",
    exponents=("alpha", "beta"),
    published=(
        Published(
            "muennighoff-2023",
            {**STAGE_1, "RD_star": RD_STAR, "RN_star": RN_STAR},
            "Muennighoff et al. 2305.16264, appendix A; C4",
        ),
    ),
    exact_hessian=False,
)
