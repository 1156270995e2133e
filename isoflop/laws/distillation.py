"""The student's loss when it is distilled from a teacher of loss L_T: Busbridge et al. 2502.08606, eq. 8.

    L_S = L_T + L_T^-c0 (1 + (L_T / (L' d1))^(1/f1))^(-c1 f1) (A/N^alpha + B/D^beta)^gamma

L' is the loss of the same student trained without a teacher, a coupled law (their eq. 1) whose six
parameters (ending in _s) are held at the published ones unless the caller gives its own.

The law promises a giant student nearly the teacher's loss after a handful of tokens, so that its best split
of compute can lie where no student was trained: splits of less than one token a parameter are not considered
(our assumption; the paper seeks best tokens and teachers for students of a given size).
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.coupled import COUPLED
from isoflop.laws.equation import Covariate, Equation, Parameter
from isoflop.laws.published import Published
from isoflop.laws.solve import Array

SUPERVISED = {f"{name}_s": value for name, value in COUPLED.published[0].values.items()}
STUDENT = {"A": 2243.0, "B": 24181.0, "alpha": 0.321, "beta": 0.637, "gamma": 0.764,
           "c0": 2.549, "c1": 522.6, "f1": 0.090, "d1": 1.315}  # fmt: skip

# Sizes and tokens: section 1, whose "a few billion" is taken as 1e9; teachers: 198M to 7.75B parameters with
# 20 tokens each (section 4.2), by eq. 1.
RANGES = {"params": (1.43e8, 1.26e10), "tokens": (1e9, 5.12e11), "teacher_loss": (2.0, 2.8)}


def untaught(theta: Array) -> Array:
    """(m, 6) parameters of the coupled law of the same models without a teacher, from (m, p) of this law."""
    return theta[:, [DISTILLATION.names.index(name) for name in SUPERVISED]]


def _starts(level: float) -> Array:
    """Around the published shape: the middle factor has c1 f1 = 47, which no coarse grid would find."""
    shape = [STUDENT[name] for name in ("alpha", "beta", "gamma", "c0", "c1", "f1", "d1")]
    halves = np.array([0.25, 1.0, 4.0])[:, None] * np.ones(2)
    supervised = [
        0.5 * level,
        0.5 * level,
        0.5 * level,
        *(SUPERVISED[f"{k}_s"] for k in ("alpha", "beta", "k")),
    ]
    return np.column_stack([halves, np.tile([*shape, *supervised], (3, 1))])


_UNTAUGHT = "(E_s + (A_s/N**alpha_s + B_s/D**beta_s)**k_s)"

DISTILLATION = Equation(
    name="distillation",
    formula="L_S = L_T + L_T^-c0 (1 + (L_T/(L' d1))^(1/f1))^(-c1 f1) (A/N^alpha + B/D^beta)^gamma",
    # log1p-exp form of the middle factor: it is 1e-20 and less far from the published constants
    equation=f"T + T**(-c0)*exp(-c1*f1*log(1 + exp(log(T/({_UNTAUGHT}*d1))/f1)))"
    "*(A/N**alpha + B/D**beta)**gamma",
    covariates=(
        Covariate("N", "params", "N"),
        Covariate("D", "tokens", "D"),
        Covariate("T", "teacher_loss"),
    ),
    parameters=(
        Parameter("A", unit="N**alpha", log=True),
        Parameter("B", unit="D**beta", log=True),
        Parameter("alpha", 0.02, 2.0),
        Parameter("beta", 0.02, 2.0),
        Parameter("gamma", 0.05, 3.0),
        Parameter("c0", -10.0, 10.0),
        Parameter("c1", log=True),
        Parameter("f1", log=True),
        Parameter("d1", log=True),
        Parameter("E_s"),
        Parameter("A_s", unit="N**alpha_s", log=True),
        Parameter("B_s", unit="D**beta_s", log=True),
        Parameter("alpha_s", 0.02, 3.0),
        Parameter("beta_s", 0.02, 3.0),
        Parameter("k_s", 0.05, 3.0),
    ),
    linear=0,
    starts=_starts,
    source="Busbridge et al. 2502.08606, eq. 8; N without embeddings",
    exponents=("alpha", "beta"),
    held=SUPERVISED,
    least_ratio=1.0,
    published=(
        Published(
            "busbridge-2025",
            {**STUDENT, **SUPERVISED},
            "Busbridge et al. 2502.08606, table 6; N without embeddings, C4",
            ranges=RANGES,
        ),
    ),
    exact_hessian=False,
)
