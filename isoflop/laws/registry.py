"""The laws by name: adding one is its own file and one line here."""

from __future__ import annotations

from isoflop.errors import FitError
from isoflop.laws.chinchilla import Chinchilla
from isoflop.laws.solve import Law

LAWS: dict[str, Law] = {
    "chinchilla": Chinchilla(),
}


def law_named(name: str) -> Law:
    """The law of that name; raises FitError when there is none."""
    if name not in LAWS:
        raise FitError(f"There is no law named {name!r}.", hint=f"Use one of: {', '.join(sorted(LAWS))}.")
    return LAWS[name]
