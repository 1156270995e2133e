"""Constants as papers print them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """Constants of one law, under the name by which they can be used without data."""

    name: str
    values: Mapping[str, float]
    source: str
    max_flops: float | None = None  # the largest run behind them, where the source says so
    target: str | None = None  # what they predict, when it is not what the law usually does
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of the runs behind them
