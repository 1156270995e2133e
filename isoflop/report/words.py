"""Numbers of the report in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import log2

from isoflop.gain import UNBOUNDED_FLOPS
from isoflop.plots import power
from isoflop.records import Interval

LEVEL = 0.9  # of intervals
UNBOUNDED_DOUBLINGS = log2(UNBOUNDED_FLOPS) - 100  # doublings beyond this come from UNBOUNDED_FLOPS


def span(interval: Interval, words: Callable[[float], str] = "{:.3f}".format) -> str:
    """Both ends of an interval."""
    return f"{words(interval.low)} to {words(interval.high)}"


def doublings(value: float) -> str:
    """Signed doublings; "without bound" when the baseline never reaches the loss."""
    return "without bound" if value > UNBOUNDED_DOUBLINGS else f"{value:+.2f}".replace("-", "−")


def compute(flops: float) -> str:
    """FLOPs in words; `UNBOUNDED_FLOPS` is not written as a number."""
    return "more compute than there is" if flops >= UNBOUNDED_FLOPS else f"{power(flops)} FLOP"


def duration(seconds: float) -> str:
    """Seconds in words: 8.1 s, 3 min 12 s, 2 h 5 min, 3.1 days."""
    if seconds < 59.5:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    if whole < 172_800:
        return f"{whole // 3600} h {whole % 3600 // 60} min".removesuffix(" 0 min")
    return f"{whole / 86_400:.3g} days"


def size(count: float) -> str:
    """Bytes in words: 15.4 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} B"


def several(items: Iterable[object], word: str) -> str:
    """A count with its noun: 1 run, 12 runs."""
    n = len(list(items))
    return f"{n} {word}{'' if n == 1 else 's'}"
