"""Precision of training and of quantization after it: Kumar et al. 2411.04330.

Bits of weights, activations and key-value cache act as a loss of parameters (eq. 4), each factor
1 - exp(-P/gamma + n); the offsets n are in the paper's fits, not in its main text. Quantizing after training
adds C_T D^gamma_D / N^gamma_N exp(-P_post/gamma_post) (eq. 2), so that a model trained longer loses more.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array

ND = (Covariate("N", "params", "N"), Covariate("D", "tokens", "D"))
_FACTORS = "*".join(f"(1 - exp(-P_{x}/gamma_{x} + n_{x}))" for x in ("w", "a", "kv"))
CHINCHILLA_PART = (
    Parameter("E"),
    Parameter("A", unit="N**alpha", log=True),
    Parameter("B", unit="D**beta"),
    Parameter("alpha", 0.02, 2.0),
    Parameter("beta", 0.02, 2.0),
)
SENSITIVITIES = {"gamma_w": 2.6745, "n_w": 0.3037, "gamma_a": 2.2102, "n_a": 1.4072, "gamma_kv": 0.9578,
                 "n_kv": 2.4185}  # fmt: skip
RANGES = {"params": (3e7, 1.7e9), "tokens": (1.5e9, 2.6e10)}  # the largest size validated, not fitted
FULL_PRECISION = {"E": 2.7648, "A": 4.299e3, "B": 1.806e4, "alpha": 0.4965, "beta": 0.4965}


def _thirds(level: float, *rest: float | tuple[float, ...]) -> Array:
    third = level / 3.0
    return grid(third, third, third, (0.25, 0.5), (0.25, 0.5), *rest)


PRECISION = Equation(
    name="precision",
    formula="L = E + A/N_eff^alpha + B/D^beta, N_eff = N prod_x (1 - exp(-P_x/gamma_x + n_x)), x in w, a, kv",
    equation=f"E + A/(N*{_FACTORS})**alpha + B/D**beta",
    covariates=(
        *ND,
        Covariate("P_w", "bits_weights"),
        Covariate("P_a", "bits_activations"),
        Covariate("P_kv", "bits_kv"),
    ),
    parameters=(
        *CHINCHILLA_PART,
        *(
            Parameter(f"{name}_{x}", *bounds)
            for x in ("w", "a", "kv")
            for name, bounds in (("gamma", (0.2, 20.0)), ("n", (-5.0, 5.0)))
        ),
    ),
    linear=1,
    starts=lambda level: _thirds(level, *SENSITIVITIES.values()),
    source="Kumar et al. 2411.04330, eq. 4 with the offsets of its appendix K; N without embeddings",
    exponents=("alpha", "beta"),
    held={name: value for name, value in SENSITIVITIES.items() if name.startswith("n_")},
    published=(
        Published(
            "kumar-2024",
            {**FULL_PRECISION, **SENSITIVITIES},
            "Kumar et al. 2411.04330, appendix K; small models on Dolma, do not extrapolate E",
            ranges=RANGES,
        ),
    ),
    exact_hessian=False,
)

POST_TRAINING = Equation(
    name="post-training-quantization",
    formula="L = E + A/N^alpha + B/D^beta + C_T D^gamma_D N^-gamma_N exp(-P_post/gamma_post)",
    equation="E + A/N**alpha + B/D**beta + C_T*D**gamma_D*N**(-gamma_N)*exp(-P_post/gamma_post)",
    covariates=(*ND, Covariate("P_post", "bits_post")),
    parameters=(
        *CHINCHILLA_PART,
        Parameter("C_T", unit="N**gamma_N*D**(-gamma_D)"),
        Parameter("gamma_D", 0.0, 2.0),
        Parameter("gamma_N", 0.0, 2.0),
        Parameter("gamma_post", 0.1, 10.0),
    ),
    linear=1,
    starts=lambda level: _thirds(level, 1.0, 0.5, 0.35, (0.6, 1.2)),
    source="Kumar et al. 2411.04330, eq. 2; N without embeddings",
    exponents=("alpha", "beta"),
    published=(
        Published(
            "kumar-2024-post",
            {**FULL_PRECISION, "C_T": 0.0598, "gamma_D": 0.5068, "gamma_N": 0.3439, "gamma_post": 0.5907},
            "Kumar et al. 2411.04330, appendix K, without its offset b; small models on Dolma",
            ranges=RANGES,
        ),
    ),
    exact_hessian=False,
)


def best_bits(gamma: float) -> float:
    """The tied training precision P* that minimises the loss at fixed FLOPs, which cost in proportion to P.

    Without offsets it solves 3 P/gamma = exp(P/gamma) - 1, whatever the compute (their eq. 7): 1.904 gamma.
    """
    from scipy.optimize import brentq

    return float(gamma * brentq(lambda z: np.expm1(z) - 3.0 * z, 1.0, 5.0))
