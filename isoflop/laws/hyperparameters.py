"""Best learning rates and batch sizes as powers of N, D or C, fitted to sweeps or taken as published."""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published

SLOPES = (-0.7, -0.3, 0.0, 0.3, 0.7)
BATCH = "batch, tokens"

RATE = Equation(
    name="hyperparameter",
    target="learning rate or batch",
    formula="y = c N^p D^q",
    equation="c*N**p*D**q",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("c", unit="N**(-p)*D**(-q)"),
        Parameter("p", -3.0, 3.0),
        Parameter("q", -3.0, 3.0),
    ),
    linear=1,
    starts=lambda level: grid(level, SLOPES, SLOPES),
    source="Step Law, Li et al. 2503.04715; y is the best peak learning rate or batch, in tokens",
    published=(
        Published(
            "step-law-lr",
            {"c": 1.79, "p": -0.713, "q": 0.307},
            "Li et al. 2503.04715; N without the vocabulary",
            target="learning rate",
        ),
        Published(
            "step-law-batch",
            {"c": 0.58, "p": 0.0, "q": 0.571},
            "Li et al. 2503.04715; tokens",
            target=BATCH,
        ),
        Published(
            "porian-2024-lr",
            {"c": 0.0047 * 108e6 ** (1 / 3), "p": -1 / 3, "q": 0.0},
            "Porian et al. 2406.19146, the rounded fit of their code",
            target="learning rate",
        ),
        Published(
            "porian-2024-batch",
            {"c": 160 * 2048 / 108e6 ** (2 / 3), "p": 2 / 3, "q": 0.0},
            "Porian et al. 2406.19146, the rounded fit of their code; tokens",
            target=BATCH,
        ),
    ),
)

COMPUTE_RATE = Equation(
    name="hyperparameter-compute",
    target="learning rate or batch",
    formula="y = c x^p",
    equation="c*x**p",
    covariates=(Covariate("x", "x", "X"),),
    parameters=(Parameter("c", unit="X**(-p)"), Parameter("p", -3.0, 3.0)),
    linear=1,
    starts=lambda level: grid(level, np.array(SLOPES)),
    source="DeepSeek LLM 2401.02954, eq. 1; x in FLOPs",
    published=(
        Published(
            "deepseek-2024-lr",
            {"c": 0.3118, "p": -0.1250},
            "DeepSeek LLM 2401.02954, eq. 1",
            target="learning rate",
        ),
        Published(
            "deepseek-2024-batch",
            {"c": 0.2920, "p": 0.3271},
            "DeepSeek LLM 2401.02954, eq. 1; tokens",
            target=BATCH,
        ),
        Published(
            "llama3-2024-tokens",
            {"c": 0.29, "p": 0.53},
            "Llama 3, 2407.21783: best tokens for x FLOPs",
            target="best tokens",
        ),
    ),
)
