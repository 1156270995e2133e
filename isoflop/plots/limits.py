"""Where growth ends, drawn: growth over the dates at which limits bind, and a project's doublings."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from isoflop.limits.answers import IndustryAnswer, UserAnswer
from isoflop.plots.style import PALETTE, SIZE, Array, dark, dress, power
from isoflop.plots.trends import check_kind
from isoflop.records import Interval
from isoflop.store import disk_errors

BEYOND = 1.0  # years shown after the last interval


@dataclass(frozen=True)
class Spans:
    """A row for each limit, the earliest at the top; infinite ends are cut at the edge."""

    names: tuple[str, ...]
    middle: Array
    low: Array
    high: Array
    first: Array  # share of draws in which it binds first


@dataclass(frozen=True)
class GrowthData:
    """FLOPs of the largest run without limits, and when the first of them binds."""

    years: Array
    low: Array
    middle: Array
    high: Array
    first: Interval  # decimal years


def spans_data(rows: Sequence[tuple[str, Interval, float]], least: float, most: float) -> Spans:
    """(name, interval, share) rows, sorted by their middle, cut to [least, most]."""
    ordered = sorted(rows, key=lambda row: row[1].value)
    middle, low, high = (
        np.clip([getattr(row[1], end) for row in ordered], least, most) for end in ("value", "low", "high")
    )
    return Spans(tuple(row[0] for row in ordered), middle, low, high, np.array([row[2] for row in ordered]))


def industry_data(found: IndustryAnswer) -> tuple[GrowthData, Spans]:
    """The band up to the last interval's end, and the dates."""
    ends = [x.date.high for x in found.limits if np.isfinite(x.date.high)]
    end = min(found.horizon, max(ends, default=found.horizon) + BEYOND)
    years = np.array(found.band.years)
    shown = years <= end + 1
    low, middle, high = (np.array(v)[shown] for v in (found.band.low, found.band.middle, found.band.high))
    rows = [(x.name, x.date, x.first) for x in found.limits]
    return GrowthData(years[shown], low, middle, high, found.date), spans_data(rows, found.start, end)


def user_data(found: UserAnswer) -> Spans:
    """Doublings left; what is not bounded ends a little beyond the largest bounded end."""
    rows = [(x.name, x.doublings, x.first) for x in found.limits]
    ends = [end for _, part, _ in rows for end in (part.low, part.high) if np.isfinite(end)]
    most = max(ends, default=1.0)
    return spans_data(rows, -1e3, most + 0.1 * abs(most))


def draw_growth(ax: Axes, data: GrowthData) -> None:
    """The band of growth, and the interval in which the first limit binds."""
    ax.fill_between(data.years, data.low, data.high, color=PALETTE["accent"], alpha=0.18, lw=0)
    ax.plot(data.years, data.middle, color=PALETTE["accent"], lw=1.8, label="growth without limits")
    edge = float(data.years[-1])
    ax.axvspan(
        min(data.first.low, edge), min(data.first.high, edge), color=PALETTE["final"], alpha=0.14, lw=0,
        label=f"first limit, {100 * data.first.level:g}%",
    )  # fmt: skip
    ax.axvline(min(data.first.value, edge), color=PALETTE["final"], lw=1.4)
    ax.set_yscale("log")
    dress(ax, "", None, "largest run, FLOP", loc="lower right")
    ax.yaxis.set_major_locator(LogLocator(numticks=6))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: power(value)))


def draw_spans(ax: Axes, data: Spans, xlabel: str) -> None:
    """An interval a row, with the share of draws in which it binds first."""
    rows = np.arange(len(data.names))[::-1]
    ax.hlines(rows, data.low, data.high, color=PALETTE["accent"], lw=2.2)
    ax.plot(data.middle, rows, "o", ms=6.5, mew=0, color=PALETTE["final"], zorder=4)
    for row, high, share in zip(rows, data.high, data.first, strict=True):
        ax.annotate(
            f"{share:.0%}", (high, row), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=10.5, color=PALETTE["ink"], annotation_clip=False,
        )  # fmt: skip
    ax.set_yticks(rows, data.names)
    ax.set_ylim(-0.6, len(rows) - 0.4)
    ax.margins(x=0.12)
    dress(ax, xlabel, None, "")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def save_limits(
    path: Path, world: IndustryAnswer, own: UserAnswer | None = None, *, in_dark: bool = False
) -> None:
    """Write the picture: growth, dates below it, and the project's doublings under both.

    Raises TrendError for another kind of file than PNG or SVG, ProjectError when it cannot be written.
    """
    check_kind(path)
    with disk_errors(f"the picture {path}"), dark() if in_dark else nullcontext():
        path.parent.mkdir(parents=True, exist_ok=True)
        _figure(world, own).savefig(path, dpi=130)


def _figure(world: IndustryAnswer, own: UserAnswer | None) -> Figure:
    growth, dates = industry_data(world)
    heights = [1.0, 1.05] + ([0.75] if own is not None else [])
    size = (1.25 * SIZE[0], SIZE[1] * sum(heights))
    drawn = Figure(figsize=size, layout="constrained", facecolor=PALETTE["paper"])
    axes = drawn.subplots(len(heights), 1, height_ratios=heights)
    for ax in axes:
        ax.set_facecolor(PALETTE["paper"])
    draw_growth(axes[0], growth)
    draw_spans(axes[1], dates, "year in which the limit binds; the share in which it is the first")
    end = float(max(dates.high.max(), growth.years[-1]))
    for ax in axes[:2]:
        ax.set_xlim(float(growth.years[0]), end + 0.5)
    if own is not None:
        draw_spans(axes[2], user_data(own), "doublings that the project can still buy")
    return drawn
