"""Budgets as people write them: `5m`, `2h`, `90s`, `3e14flops`."""

from __future__ import annotations

import math
import re
from typing import Self

from pydantic import model_validator

from isoflop.errors import BudgetError
from isoflop.records import Record

SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
PATTERN = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([a-z]+)\s*", re.IGNORECASE)
HINT = "write a time such as 5m, 2h, 90s, 1d, or compute such as 3e14flops"


class Budget(Record):
    """Wall-clock seconds, or training FLOPs: exactly one of them."""

    seconds: float | None = None
    flops: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        assert (self.seconds is None) != (self.flops is None)
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `text`. Raises BudgetError when it is not a positive, finite budget."""
        match = PATTERN.fullmatch(text)
        if match is None:
            raise BudgetError(f"{text!r} is not a budget", hint=HINT)
        try:
            amount = float(match[1])
        except ValueError:
            raise BudgetError(f"{text!r} is not a budget", hint=HINT) from None
        unit = match[2].lower()
        if not (amount > 0 and math.isfinite(amount)):
            raise BudgetError(f"the budget {text!r} is not above zero", hint=HINT)
        if unit in SECONDS:
            return cls(seconds=amount * SECONDS[unit])
        if unit in ("flop", "flops"):
            return cls(flops=amount)
        raise BudgetError(f"{text!r} has an unknown unit {match[2]!r}", hint=HINT)

    def share(self, part: float) -> Self:
        """This part of the budget."""
        return type(self)(
            seconds=None if self.seconds is None else self.seconds * part,
            flops=None if self.flops is None else self.flops * part,
        )

    def __str__(self) -> str:
        return f"{self.seconds:.0f} s" if self.seconds is not None else f"{self.flops:.3g} FLOPs"
