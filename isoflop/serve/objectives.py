"""What a server promises; what breaks it is told, by Prometheus or by webhook."""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.errors import FitError
from isoflop.quantities import COUNT, SECONDS, SHARE, Quantity
from isoflop.records import Record


class Objectives(Record):
    """The last three are for Prometheus alone, which asks from outside."""

    first_token: float = 1.0  # seconds in which 95% of requests have their first token
    errors: float = 0.01  # share of requests that the server fails
    queue: float = 4.0  # requests that may wait on average
    busy: float = 0.9  # share of slots in use
    idle: float = 900.0  # seconds without an answer


UNITS: Mapping[str, Quantity] = {
    "first_token": SECONDS, "errors": SHARE, "queue": COUNT, "busy": SHARE, "idle": SECONDS,
}  # fmt: skip
DEFAULTS: Mapping[str, float] = Objectives().model_dump()


def objectives(given: Mapping[str, str]) -> Objectives:
    """As typed, the others as they are by default. Raises FitError for an unknown name or no such number."""
    found = {}
    for name, text in given.items():
        if name not in UNITS:
            raise FitError(f"there is no objective {name!r}", hint=f"name one of: {', '.join(UNITS)}")
        found[name] = UNITS[name].read(f"--objective {name}", text)
        if found[name] <= 0:
            raise FitError(
                f"--objective {name} is {text}, not above zero", hint=f"the default is {DEFAULTS[name]:g}"
            )
    return Objectives(**found)
