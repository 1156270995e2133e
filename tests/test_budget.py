"""Budgets as people write them."""

from __future__ import annotations

import pytest

from isoflop.budget import Budget
from isoflop.errors import BudgetError


@pytest.mark.parametrize(
    ("text", "seconds", "flops"),
    [
        ("5m", 300, None), ("90s", 90, None), ("2h", 7200, None), ("0.5h", 1800, None), ("1d", 86400, None),
        ("3e14flops", None, 3e14), ("1E12 FLOPs", None, 1e12),
    ],
)  # fmt: skip
def test_units(text: str, seconds: float | None, flops: float | None) -> None:
    assert Budget.parse(text) == Budget(seconds=seconds, flops=flops)


@pytest.mark.parametrize(
    "text", ["", "0s", "-5m", "5", "five minutes", "5 parsecs", "1..2s", "1e999s", "nan s"]
)
def test_nonsense_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert "5m" in caught.value.hint


def test_a_share_keeps_the_unit() -> None:
    assert Budget(seconds=300).share(1 / 3) == Budget(seconds=100)
    assert str(Budget(flops=2e12).share(0.5)) == "1e+12 FLOPs"
