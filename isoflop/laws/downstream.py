"""From held-out loss to the error or accuracy of a task: exponential (Gadre) and sigmoid (OLMo's ladder).

The covariate is the loss itself, column `task_loss`; `chain` in `isoflop.laws.chain` joins such a law to a
law of that loss, so that the score follows from N and D.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.equation import Covariate, Equation, Parameter, grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array

LOSS = (Covariate("L", "task_loss"),)


def _gadre(name: str, epsilon: float, k: float, gamma: float, corpus: str) -> Published:
    source = (
        f"Gadre et al. 2403.08540, table 6, trained on {corpus}: mean top-1 error of 17 tasks, loss on C4"
    )
    return Published(name, {"epsilon": epsilon, "k": k, "gamma": gamma}, source)


def _sigmoid_starts(level: float) -> Array:
    """A rise or a fall around each of several losses; the linear part is projected from there."""
    return grid((-0.7 * level, 0.7 * level), level, (2.0, 5.0, 12.0), np.linspace(0.5, 5.0, 7))


ERROR_EXPONENTIAL = Equation(
    name="downstream-exponential",
    target="error",
    formula="Err = epsilon - k exp(-gamma L)",
    equation="epsilon - k*exp(-gamma*L)",
    covariates=LOSS,
    parameters=(Parameter("epsilon"), Parameter("k"), Parameter("gamma", 0.01, 20.0)),
    linear=2,
    starts=lambda level: grid(1.3 * level, level, (0.2, 0.5, 1.0, 2.0, 4.0)),
    source="Gadre et al. 2403.08540, eq. 5",
    published=(
        _gadre("gadre-2024-error-c4", 0.850, 2.08, 0.756, "C4"),
        _gadre("gadre-2024-error-redpajama", 0.857, 2.21, 0.715, "RedPajama"),
        _gadre("gadre-2024-error-refinedweb", 0.865, 2.21, 0.707, "RefinedWeb"),
    ),
)

SIGMOID = Equation(
    name="downstream-sigmoid",
    target="score",
    formula="P = b + a/(1 + exp(-k (L - L0)))",
    equation="b + a/(1 + exp(-k*(L - L0)))",
    covariates=LOSS,
    parameters=(
        Parameter("a", -np.inf),
        Parameter("b"),
        Parameter("k", 0.01, 100.0),
        Parameter("L0", -10.0, 50.0),
    ),
    linear=2,
    starts=_sigmoid_starts,
    source="Bhagia et al. 2412.04403, eq. 2 (a < 0 for an accuracy); Llama 3, 2407.21783",
)
