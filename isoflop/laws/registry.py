"""The laws by name, and the published constants: adding a law is its own file and one line here."""

from __future__ import annotations

import difflib

from isoflop.errors import FitError
from isoflop.laws.bounded import Bounded
from isoflop.laws.bounded_additive import BOUNDED_ADDITIVE
from isoflop.laws.broken import BROKEN
from isoflop.laws.chinchilla import Chinchilla
from isoflop.laws.coupled import COUPLED
from isoflop.laws.distillation import DISTILLATION
from isoflop.laws.downstream import ERROR_EXPONENTIAL, SIGMOID
from isoflop.laws.hyperparameters import COMPUTE_RATE, RATE
from isoflop.laws.kaplan import KAPLAN
from isoflop.laws.multiplicative import MULTIPLICATIVE
from isoflop.laws.overtraining import OVERTRAINING
from isoflop.laws.powers import FLOORED, POWER, SATURATING, SHIFTED
from isoflop.laws.precision import POST_TRAINING, PRECISION
from isoflop.laws.published import Published
from isoflop.laws.repeated import REPEATED
from isoflop.laws.shifted_additive import SHIFTED_ADDITIVE
from isoflop.laws.solve import Law
from isoflop.laws.sparsity import SPARSITY

_ALL: tuple[Law, ...] = (
    Chinchilla(),
    COUPLED,
    KAPLAN,
    MULTIPLICATIVE,
    SHIFTED_ADDITIVE,
    BOUNDED_ADDITIVE,
    OVERTRAINING,
    REPEATED,
    PRECISION,
    POST_TRAINING,
    DISTILLATION,
    SPARSITY,
    POWER,
    FLOORED,
    SHIFTED,
    SATURATING,
    Bounded(),
    *BROKEN,
    ERROR_EXPONENTIAL,
    SIGMOID,
    RATE,
    COMPUTE_RATE,
)
LAWS: dict[str, Law] = {law.name: law for law in _ALL}
PUBLISHED: dict[str, tuple[Law, Published]] = {
    constants.name: (law, constants) for law in _ALL for constants in law.published
}


NAMED = 6  # names in a hint


def law_named(name: str) -> Law:
    """The law of that name; raises FitError when there is none."""
    if name not in LAWS:
        raise FitError(
            f"There is no law named {name!r}.",
            hint=f"Use e.g. {', '.join(_near(name, LAWS))}; all: isoflop laws.",
        )
    return LAWS[name]


def published(name: str) -> tuple[Law, Published]:
    """The law and constants published under that name; raises FitError when there are none."""
    if name not in PUBLISHED:
        raise FitError(
            f"{name!r} is neither a file nor a published law.",
            hint="Save a fit with isoflop fit TABLE --out FILE, or use e.g. "
            f"{', '.join(_near(name, PUBLISHED))}; all: isoflop laws.",
        )
    return PUBLISHED[name]


def _near(name: str, known: object) -> list[str]:
    names = sorted(known)  # type: ignore[call-overload]
    return difflib.get_close_matches(name, names, n=5, cutoff=0.5) or names[:NAMED]
