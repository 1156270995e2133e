"""A product of powers above a floor: size and data help each other and neither alone sets a limit."""

from __future__ import annotations

from isoflop.laws.equation import Covariate, Equation, Parameter, grid

EXPONENTS = (0.03, 0.1, 0.2, 0.4, 0.8)

MULTIPLICATIVE = Equation(
    name="multiplicative",
    formula="L = E + A N^-alpha D^-beta",
    equation="E + A*N**(-alpha)*D**(-beta)",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("E"),
        Parameter("A", unit="N**alpha*D**beta"),
        Parameter("alpha", 0.0, 3.0),
        Parameter("beta", 0.0, 3.0),
    ),
    linear=2,
    starts=lambda level: grid(0.5 * level, 0.5 * level, EXPONENTS, EXPONENTS),
    source="the multiplicative law of simple-scaling-laws; Yao et al. 2303.10158 for one covariate each",
)
