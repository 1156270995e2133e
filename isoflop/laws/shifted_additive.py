"""Hoffmann's law with finite ends at small scale: each covariate shifted, as Zhai et al. shift compute."""

from __future__ import annotations

from isoflop.laws.equation import Covariate, Equation, Parameter, grid

SHIFTED_ADDITIVE = Equation(
    name="shifted-additive",
    formula="L = E + A/(N + s_N)^alpha + B/(D + s_D)^beta",
    equation="E + A*(N + s_N)**(-alpha) + B*(D + s_D)**(-beta)",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("E"),
        Parameter("A", unit="N**alpha"),
        Parameter("B", unit="D**beta"),
        Parameter("alpha", 0.02, 3.0),
        Parameter("beta", 0.02, 3.0),
        Parameter("s_N", unit="N"),
        Parameter("s_D", unit="D"),
    ),
    linear=3,
    starts=lambda level: grid(
        level / 3, level / 3, level / 3, (0.2, 0.5), (0.2, 0.5), (0.0, 0.05, 0.5), (0.0, 0.05, 0.5)
    ),
    source="the shift of Zhai et al. 2106.04560, section 2.2, for each term of Hoffmann et al. 2203.15556",
    exponents=("alpha", "beta"),
)
