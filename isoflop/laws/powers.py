"""Laws in one covariate x (compute, size, tokens, images, hours): powers, floored and shifted.

M1 to M3 as numbered by Alabdulmohsin et al. 2209.06640, with the sign of c such that it is positive.
"""

from __future__ import annotations

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published

X = (Covariate("x", "x", "X"),)
RATES = (0.03, 0.1, 0.25, 0.5, 1.0)

POWER = Equation(
    name="power",
    formula="y = beta x^-c",
    equation="beta*x**(-c)",
    covariates=X,
    parameters=(Parameter("beta", unit="X**c"), Parameter("c", 0.0, 5.0)),
    linear=1,
    starts=lambda level: grid(level, RATES),
    source="M1 of Alabdulmohsin et al. 2209.06640",
    published=(
        Published(
            "kaplan-2020-params", {"beta": 8.8e13**0.076, "c": 0.076}, "Kaplan et al. 2001.08361, eq. 1.1"
        ),
        Published(
            "kaplan-2020-tokens", {"beta": 5.4e13**0.095, "c": 0.095}, "Kaplan et al. 2001.08361, eq. 1.2"
        ),
        Published(
            "kaplan-2020-compute",
            {"beta": (3.1e8 * 8.64e19) ** 0.050, "c": 0.050},
            "Kaplan et al. 2001.08361, eq. 1.3; x in FLOPs, at the best batch",
        ),
    ),
)

FLOORED = Equation(
    name="power-floor",
    formula="y = E + beta x^-c",
    equation="E + beta*x**(-c)",
    covariates=X,
    parameters=(Parameter("E"), Parameter("beta", unit="X**c"), Parameter("c", 0.0, 5.0)),
    linear=2,
    starts=lambda level: grid(0.5 * level, 0.5 * level, RATES),
    source="M2 of Alabdulmohsin et al. 2209.06640",
)

SHIFTED = Equation(
    name="shifted",
    formula="y = beta (1/x + gamma)^c",
    equation="beta*(1/x + gamma)**c",
    covariates=X,
    parameters=(
        Parameter("beta", unit="X**c"),
        Parameter("gamma", unit="1/X"),
        Parameter("c", 0.0, 5.0),
    ),
    linear=1,
    starts=lambda level: grid(level, (0.01, 0.1, 1.0), RATES),
    source="M3 of Alabdulmohsin et al. 2209.06640; Bansal et al. 2202.01994",
)

SATURATING = Equation(
    name="saturating",
    formula="y = E + a (x + d)^-b",
    equation="E + a*(x + d)**(-b)",
    covariates=X,
    parameters=(
        Parameter("E"),
        Parameter("a", unit="X**b"),
        Parameter("d", unit="X"),
        Parameter("b", 0.0, 5.0),
    ),
    linear=2,
    starts=lambda level: grid(0.5 * level, 0.5 * level, (0.01, 0.1, 1.0), RATES),
    source="Zhai et al. 2106.04560, section 2.2",
    published=(
        Published(
            "zhai-2021-finetune",
            {"E": 0.09, "a": 0.26, "d": 0.01, "b": 0.35},
            "Zhai et al. 2106.04560, figure 2: ImageNet error after fine-tuning; x in TPUv3 core-days",
            target="error",
        ),
        Published(
            "zhai-2021-10-shot",
            {"E": 0.12, "a": 0.63, "d": 0.52, "b": 0.32},
            "Zhai et al. 2106.04560, figure 2: 10-shot ImageNet error; x in TPUv3 core-days",
            target="error",
        ),
    ),
)
