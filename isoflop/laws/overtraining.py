"""Over-training at M tokens a parameter: Gadre et al. 2403.08540 (eq. 4), Hoffmann's with alpha = beta."""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array


def _same_split(theta: Array) -> Array:
    """A = a 6^-eta, B = b 6^-eta, alpha = beta = 2 eta (their eqs. 3 and 4)."""
    E, a, b, eta = theta.T
    return np.stack([E, a * 6.0**-eta, b * 6.0**-eta, 2 * eta, 2 * eta], axis=1)


def _published(name: str, E: float, a: float, b: float, eta: float, corpus: str) -> Published:
    source = f"Gadre et al. 2403.08540, table 6, trained on {corpus}; loss on C4"
    return Published(name, {"E": E, "a": a, "b": b, "eta": eta}, source)


OVERTRAINING = Equation(
    name="over-training",
    formula="L = E + (a M^eta + b M^-eta) C^-eta with C = 6 N D, M = D/N",
    equation="E + (a*(D/N)**eta + b*(N/D)**eta)*(6*N*D)**(-eta)",
    covariates=(Covariate("N", "params", "N"), Covariate("D", "tokens", "D")),
    parameters=(
        Parameter("E"),
        Parameter("a", unit="N**(2*eta)"),
        Parameter("b", unit="D**(2*eta)"),
        Parameter("eta", 0.01, 1.0),
    ),
    linear=3,
    starts=lambda level: grid(level / 3, level / 3, level / 3, (0.03, 0.06, 0.12, 0.25, 0.5)),
    source="Gadre et al. 2403.08540, eq. 4",
    published=(
        _published("gadre-2024-c4", 1.51, 141.0, 190.0, 0.121, "C4"),
        _published("gadre-2024-redpajama", 1.84, 212.0, 367.0, 0.136, "RedPajama"),
        _published("gadre-2024-refinedweb", 1.73, 157.0, 246.0, 0.127, "RefinedWeb"),
    ),
    same_split=_same_split,
)
