"""Numbers as people write them: 7B tokens, 8GiB, 20ms, 900GB/s."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from isoflop.errors import FitError

MULTIPLES = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
PATTERN = re.compile(r"\s*([-+]?[0-9._]+(?:e[-+]?[0-9]+)?)\s*(\S*)\s*", re.IGNORECASE)


def split_unit(text: str) -> tuple[float, str]:
    """The number and the unit after it, as written. Raises ValueError where there is no number."""
    found = PATTERN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} does not begin with a number")
    return float(found[1]), found[2]


def bits(bpb: float | None) -> str:
    """Bits per byte in words; a masked model has none."""
    return "no bits per byte" if bpb is None else f"{bpb:.4f} bits per byte"


def cell(value: float | None) -> str:
    """A score in a table; nan is one that is not known, such as the standard error of one value."""
    return "–" if value is None or math.isnan(value) else f"{value:.4f}"


@dataclass(frozen=True)
class Quantity:
    """What an option counts: its units by name, and examples."""

    name: str
    units: Mapping[str, float]
    examples: str

    def read(self, label: str, text: str) -> float:
        """The number in base units. Raises FitError that names `label` and the text."""
        try:
            value, unit = split_unit(text)
            value *= self.units[unit]
            if math.isfinite(value):
                return value
        except (ValueError, KeyError):
            pass
        raise FitError(f"{label} is {text!r}, not {self.name}.", hint=f"Write e.g. {self.examples}.")


def _bytes(suffix: str = "") -> dict[str, float]:
    """Decimal and binary units of bytes. Gb is not among them: it means bits."""
    out = {"": 1.0, f"B{suffix}": 1.0}
    for i, prefix in enumerate("kMGT", start=1):
        for form in (f"{prefix}B", f"{prefix.upper()}B", f"{prefix.lower()}b"):
            out[form + suffix] = 1e3**i
        for form in (f"{prefix.upper()}iB", f"{prefix.lower()}ib"):
            out[form + suffix] = 1024.0**i
    return out


NUMBER = Quantity("a number", {"": 1.0}, "2.1")
COUNT = Quantity(
    "a number",
    {"": 1.0, **MULTIPLES, **{unit.lower(): times for unit, times in MULTIPLES.items()}},
    "7e9, 7B, 1.4T or 7_000_000_000",
)
BYTES = Quantity("a number of bytes", _bytes(), "8GB, 8GiB, 512MB or 8e9")
SHARE = Quantity("a share", {"": 1.0, "%": 0.01}, "1% or 0.01")
SECONDS = Quantity("a number of seconds", {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}, "20ms, 1.5s or 0.02")
RATE = Quantity("a number of bytes a second", _bytes("/s"), "900GB/s, 1.2TB/s or 9e11")
