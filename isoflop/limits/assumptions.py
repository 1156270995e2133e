"""The assumptions behind limits: a readable file of quantities, each with its uncertainty and its source."""

from __future__ import annotations

import difflib
import hashlib
import math
import tomllib
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from isoflop.errors import FitError, TrendError
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.laws.split import splits
from isoflop.records import Record

PACKAGED = Path(__file__).with_name("assumptions.toml")
TAIL = NormalDist().inv_cdf(0.95)  # low and high are the 5% and 95% quantiles

# The file's tables: for each quantity its unit.
LIMIT_UNITS: dict[str, dict[str, str]] = {
    "data": {"tokens": "tokens", "growth": "x a year", "beyond_text": "x", "overtraining": "x"},
    "campus-power": {"watts": "W", "growth": "x a year"},
    "spread-power": {"watts": "W", "growth": "x a year"},
    "chips": {
        "made": "H100-equivalents a year", "growth": "x a year", "years": "years", "share": "share",
    },
    "money": {"usd": "USD", "growth": "x a year"},
    "latency": {"flops": "FLOP"},
    "loss": {"gap": "nats"},
}  # fmt: skip
UNITS: dict[str, dict[str, str]] = {
    "growth": {"frontier": "FLOP", "rate": "x a year"},
    "run": {
        "days": "days", "utilisation": "share", "precision": "x", "chip_flops": "FLOP/s",
        "flops_per_joule": "FLOP/J", "efficiency_growth": "x a year", "usd_per_chip_hour": "USD",
        "price_performance": "x a year",
    },
    **LIMIT_UNITS,
    "user": {"epochs": "epochs", "speed": "x"},
}  # fmt: skip
LIMITS = tuple(LIMIT_UNITS)
DATED = {  # what changes with time, so its year must be known
    "growth.frontier", "run.flops_per_joule", "run.usd_per_chip_hour", "data.tokens", "campus-power.watts",
    "spread-power.watts", "chips.made", "money.usd",
}  # fmt: skip
EARLIEST, HORIZON = 1950.0, 2060.0  # years of values; looking for limits ends at the horizon
BINDS, YEAR = "binds", "year"  # a limit given by dates, and their unit
FIELDS = ("low", "high", "likeliest", "unit", "year", "date", "source")
NEEDED = ("low", "high", "unit", "date", "source")
HINT = "Copy the packaged file and change that: isoflop limit --industry says where it is."


class Quantity(Record):
    """A number that is not known well: a lognormal, or a triangle when it has a likeliest value."""

    low: float  # 5% quantile, or the triangle's end
    high: float  # 95% quantile, or the triangle's end
    likeliest: float | None = None
    unit: str
    year: float | None = None  # that the value is of
    date: str  # of the source
    source: str

    def draws(self, n: int, rng: np.random.Generator) -> Array:
        """(n,) draws; shares stop at 1."""
        if self.likeliest is not None:
            if self.low == self.high:
                return np.full(n, self.low)
            return rng.triangular(self.low, self.likeliest, self.high, n)
        middle = 0.5 * (math.log(self.low) + math.log(self.high))
        sd = 0.5 * (math.log(self.high) - math.log(self.low)) / TAIL
        found = np.exp(middle + sd * rng.standard_normal(n))
        return np.minimum(found, 1.0) if self.unit == "share" else found


class Assumptions(Record):
    """Everything that `isoflop limit` assumes; quantities are named TABLE.NAME."""

    law: str  # a published one
    quantities: dict[str, Quantity]
    applies: dict[str, float]  # the share of draws in which each limit holds
    path: str
    snapshot: str  # hash of the file

    def draws(self, n: int, rng: np.random.Generator) -> dict[str, Array]:
        """(n,) joint draws of every quantity: what limits share, such as a run's days, is drawn once."""
        return {name: quantity.draws(n, rng) for name, quantity in self.quantities.items()}


def read_assumptions(path: Path | None = None) -> Assumptions:
    """Read the file, or the packaged one. Raises TrendError that names the table and what is wrong in it."""
    place = path or PACKAGED
    try:
        body = place.read_bytes()
        document = tomllib.loads(body.decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TrendError(f"The assumptions {place} cannot be read: {why}.", hint=HINT) from None
    law = document.pop("law", None)
    _check_names(place, document, (*UNITS, "law"), "table or limit")
    quantities: dict[str, Quantity] = {}
    applies: dict[str, float] = {}
    for name, units in UNITS.items():
        if not isinstance(document.get(name), dict):
            off = " To leave a limit out, write applies = 0 in its table." if name in LIMITS else ""
            raise TrendError(f"{place} has no table [{name}].", hint=HINT + off)
        section = dict(document[name])
        if name in LIMITS:
            applies[name] = _share(place, name, section.pop("applies", 1.0))
            if BINDS in section:
                units = {BINDS: YEAR}
        _check_names(place, section, units, f"quantity of [{name}]")
        quantities |= {f"{name}.{part}": _quantity(place, name, part, section, units[part]) for part in units}
    return Assumptions(
        law=_law(place, law), quantities=quantities, applies=applies, path=str(place),
        snapshot=hashlib.sha256(body).hexdigest()[:16],
    )  # fmt: skip


def _quantity(place: Path, section: str, name: str, tables: Mapping[str, Any], unit: str) -> Quantity:
    """The quantity of one table, every field checked."""
    label, fields = f"[{section}.{name}]", tables.get(name)
    if not isinstance(fields, dict):
        raise TrendError(f"{place} has no table {label}.", hint=HINT)
    _check_names(place, fields, FIELDS, f"field of {label}")
    needed = NEEDED + (("year",) if f"{section}.{name}" in DATED else ())
    needed += ("likeliest",) if unit == YEAR else ()
    for field in needed:
        if field not in fields:
            raise TrendError(f"{label} in {place} has no {field}.", hint=f"It needs {', '.join(needed)}.")
    if fields["unit"] != unit:
        raise TrendError(
            f"{label} in {place} is in {fields['unit']!r}, not in {unit!r}.", hint=f'Write unit = "{unit}".'
        )
    low, high = (_positive(place, label, field, fields[field]) for field in ("low", "high"))
    if low > high:
        raise TrendError(
            f"{label} in {place} has low = {low:g} above high = {high:g}.", hint="Swap the quantiles."
        )
    if unit == "share" and high > 1:
        raise TrendError(f"{label} in {place} is a share of {high:g}.", hint="Shares end at 1.")
    likeliest = None
    if "likeliest" in fields:
        likeliest = _positive(place, label, "likeliest", fields["likeliest"])
        if not low <= likeliest <= high:
            raise TrendError(
                f"{label} in {place} has likeliest = {likeliest:g} outside [{low:g}, {high:g}].",
                hint="Give a value between low and high.",
            )
    year = _positive(place, label, "year", fields["year"]) if "year" in fields else None
    if year is not None and not EARLIEST <= year < HORIZON:
        raise TrendError(
            f"{label} in {place} is of the year {year:g}.",
            hint=f"Give one from {EARLIEST:.0f} to {HORIZON:.0f}, e.g. 2025.5 for the middle of 2025.",
        )
    day = fields["date"]
    return Quantity(
        low=low, high=high, likeliest=likeliest, unit=unit, year=year, source=str(fields["source"]),
        date=day.isoformat() if isinstance(day, date) else str(day),
    )  # fmt: skip


def _positive(place: Path, label: str, field: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise TrendError(
            f"{label} in {place} has {field} = {value!r}, which is no number above zero.",
            hint="Write e.g. 1e14.",
        )
    return float(value)


def _share(place: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise TrendError(
            f"[{name}] in {place} has applies = {value!r}, which is no share.",
            hint="Give a number from 0 to 1.",
        )
    return float(value)


def _law(place: Path, name: object) -> str:
    """Raises TrendError unless it is a published law of the loss by size and data."""
    try:
        law = law_named(Fit.of_published(str(name)).law)
    except FitError as error:
        raise TrendError(
            f"{place} names the law {name!r}, which is not published.", hint=error.hint
        ) from None
    if not splits(law) or law.columns != ("params", "tokens") or "E" not in law.names:
        raise TrendError(
            f"{place} names the law {name!r}, which is none of N and D with an irreducible loss.",
            hint="Use e.g. besiroglu-2024.",
        )
    return str(name)


def _check_names(place: Path, given: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises TrendError for a name that nothing reads, with the nearest that is read."""
    names = list(known)
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise TrendError(
                f"{place} has an unknown {what}: {name!r}.", hint=f"{hint}Known: {', '.join(names)}."
            )
