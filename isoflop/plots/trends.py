"""Pictures of a trend: points with the fitted model and its forecast, residuals, the specification curve.

`*_data()` gives plain arrays, `draw_*()` draws them on a matplotlib axes.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from isoflop.errors import TrendError
from isoflop.plots.style import PALETTE, SIZE, Array, dark, dress, points, power, short
from isoflop.records import Interval
from isoflop.store import disk_errors
from isoflop.trend.answer import Question, Trend
from isoflop.trend.growth import fit
from isoflop.trend.rates import as_they_are
from isoflop.trend.shown import factor, span
from isoflop.trend.specification import FRONTIERS, Choices

GRID, DRAWS = 120, 400
KINDS = (".png", ".svg")
LARGE = 1e4  # values from here on are labelled as powers of ten
ROLLING = 0.15  # of the points: how many the rolling mean is of
LEAST_ROLLING = 5


@dataclass(frozen=True)
class TrendData:
    """Points in the window, those of the frontier, the fitted curve with its band, and the forecast."""

    years: Array  # (n,) of the points outside the frontier
    values: Array
    frontier_years: Array  # (k,)
    frontier_values: Array
    grid: Array  # (g,) years, on to the last forecast
    curve: Array  # (g,)
    band: tuple[Array, Array]  # low, high of the curve
    forecast: tuple[tuple[float, Interval], ...]
    last: float  # year of the last point
    model: str
    unit: str
    level: float


def trend_data(asked: Question, trend: Trend) -> TrendData:
    """The curve is that of the model which forecasts; its band is of the curve, from resampled points."""
    chosen, inside = asked.chosen(), asked.points.years >= asked.since
    growth = fit(chosen.years, np.log(chosen.values), trend.forecast_model)
    last = trend.forecast[-1].year if trend.forecast else trend.last
    grid = np.linspace(trend.first, last, GRID)
    drawn = growth.draws(grid, DRAWS, np.random.default_rng(trend.seed))
    low, high = np.quantile(drawn, [0.5 - trend.level / 2, 0.5 + trend.level / 2], axis=0)
    others = inside & (as_they_are(asked.points, asked.since, asked.frontier).weights[0] == 0)
    return TrendData(
        years=asked.points.years[others],
        values=asked.points.values[others],
        frontier_years=chosen.years,
        frontier_values=chosen.values,
        grid=grid,
        curve=np.exp(growth.predict(grid)),
        band=(np.exp(low), np.exp(high)),
        forecast=tuple((f.year, f.value) for f in trend.forecast),
        last=trend.last,
        model=trend.forecast_model,
        unit=trend.unit,
        level=trend.level,
    )


@dataclass(frozen=True)
class ResidualData:
    """How far points of the frontier lie from constant growth, and their rolling mean, as ln ratios."""

    years: Array  # (n,)
    residual: Array
    rolling_years: Array  # (m,)
    rolling: Array


def residual_data(asked: Question) -> ResidualData:
    """The rolling mean is of `ROLLING` of the points, centred: a bend of it is a rate that changes."""
    chosen = asked.chosen()
    logs = np.log(chosen.values)
    residual = logs - fit(chosen.years, logs).predict(chosen.years)
    width = min(max(LEAST_ROLLING, round(ROLLING * len(logs))), len(logs))
    share = np.full(width, 1 / width)
    return ResidualData(chosen.years, residual, np.convolve(chosen.years, share, "valid"),
                        np.convolve(residual, share, "valid"))  # fmt: skip


@dataclass(frozen=True)
class SpecificationData:
    """Rates by choice, the slowest first, and which choice each is."""

    rate: Array  # (c,) factors a year
    low: Array
    high: Array
    labels: tuple[str, ...]  # (l,) what can be chosen
    chosen: Array  # (l, c) 1 where it is
    asked: int | None  # the choice that the user made
    level: float


def specification_data(found: Choices) -> SpecificationData:
    """One label for each definition of the frontier, beginning, domain, and kind of row left out."""
    rows = found.choices
    words = [
        *((f, [r.frontier == f for r in rows]) for f in (*FRONTIERS, *(c.frontier for c in rows))),
        *((f"from {s:.0f}", [r.since == s for r in rows]) for s in sorted({r.since for r in rows})),
        *((f"domain: {c.domain}", [r.domain == c.domain for r in rows]) for c in rows),
        ("without outliers", [not r.outliers for r in rows]),
        ("without speculative", [not r.speculative for r in rows]),
    ]
    known = {label: which for label, which in words if any(which) and not all(which)}
    asked = [i for i, r in enumerate(rows) if r.asked]
    return SpecificationData(
        rate=np.array([r.rate_per_year for r in rows]),
        low=np.array([r.interval[0] for r in rows]),
        high=np.array([r.interval[1] for r in rows]),
        labels=tuple(known),
        chosen=np.array(list(known.values()), dtype=np.float64).reshape(len(known), len(rows)),
        asked=asked[0] if asked else None,
        level=found.level,
    )


def draw_trend(ax: Axes, data: TrendData) -> None:
    """Values on a logarithmic axis; the curve is dashed where it forecasts."""
    blue, red, level = PALETTE["accent"], PALETTE["final"], f"{100 * data.level:g}%"
    points(ax, data.years, data.values, PALETTE["step1"], "o", "others" if len(data.years) else "_")
    points(ax, data.frontier_years, data.frontier_values, PALETTE["step4"], "o", "fitted")
    past = data.grid <= data.last
    ax.fill_between(data.grid, *data.band, color=blue, alpha=0.18, lw=0, label=f"{level}, the curve")
    ax.plot(data.grid[past], data.curve[past], color=blue, lw=1.8, label=data.model, zorder=5)
    ax.plot(data.grid[~past], data.curve[~past], color=blue, lw=1.8, ls=(0, (3, 2)), zorder=5)
    for i, (year, value) in enumerate(data.forecast):
        reach = [[value.value - value.low], [value.high - value.value]]
        bar = ax.errorbar(
            [year], [value.value], reach, color=red, lw=1.4, capsize=4, fmt="o", ms=6, mfc="none"
        )
        bar.set_label(f"{level}, a new point" if i == 0 else "_")
    seen = [*data.values, *data.frontier_values, *(v for _, f in data.forecast for v in (f.low, f.high))]
    ax.set_yscale("log")
    ax.set_ylim(min(seen) / 3, max(seen) * 3)
    ax.yaxis.set_major_locator(LogLocator(numticks=8))
    ax.yaxis.set_minor_locator(NullLocator())
    tick = power if max(seen) >= LARGE else short
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    dress(ax, "", None, data.unit, loc="best")


def draw_residual(ax: Axes, data: ResidualData) -> None:
    """Each point's factor over constant growth, and the rolling mean."""
    ax.axhline(0, color=PALETTE["muted"], lw=1)
    points(ax, data.years, data.residual / np.log(10), PALETTE["step1"], "o")
    ax.plot(data.rolling_years, data.rolling / np.log(10), color=PALETTE["accent"], lw=1.8,
            label="rolling mean", zorder=5)  # fmt: skip
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    dress(ax, "", None, "decades off constant growth", loc="lower right")


def draw_specification(ax: Axes, below: Axes, data: SpecificationData) -> None:
    """Rates with intervals above; marks below say what was chosen."""
    at = np.arange(len(data.rate), dtype=np.float64)
    ax.vlines(at, data.low, data.high, color=PALETTE["step1"], lw=1.0)
    ax.plot(at, data.rate, ".", ms=3.5, color=PALETTE["step4"], label=f"rate, {100 * data.level:g}%")
    if data.asked is not None:
        i = data.asked
        ax.vlines(at[i], data.low[i], data.high[i], color=PALETTE["final"], lw=1.6)
        points(ax, at[i : i + 1], data.rate[i : i + 1], PALETTE["final"], "D", "as asked")
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0), numticks=12))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: factor(value)))
    dress(ax, "", None, "rate a year", loc="upper left")
    ax.tick_params(labelbottom=False)
    row, column = np.nonzero(data.chosen)
    below.plot(column, row, "|", ms=5, mew=0.8, color=PALETTE["accent"])
    below.set_yticks(np.arange(len(data.labels)), data.labels)
    below.set_ylim(len(data.labels) - 0.4, -0.6)
    dress(below, f"{len(at)} choices, by rate", None, "")
    below.tick_params(labelsize=8.5)


def specification_figure(found: Choices) -> Figure:
    """The specification curve alone."""
    data = specification_data(found)
    width, height = SIZE
    heights = [0.8, 0.055 * len(data.labels) + 0.2]
    drawn = Figure(figsize=(width, height * sum(heights)), layout="constrained")
    above, below = drawn.subplots(2, 1, height_ratios=heights, sharex=True)
    draw_specification(above, below, data)
    return drawn


def trend_figure(asked: Question, trend: Trend, found: Choices) -> Figure:
    """All of it, one under the other."""
    width, height = SIZE
    labels = specification_data(found)
    heights = [1.25, 0.7, 0.9, 0.075 * len(labels.labels) + 0.25]
    drawn = Figure(figsize=(1.25 * width, height * sum(heights)), layout="constrained",
                   facecolor=PALETTE["paper"])  # fmt: skip
    axes = drawn.subplots(4, 1, height_ratios=heights)
    for ax in axes:
        ax.set_facecolor(PALETTE["paper"])
    axes[3].sharex(axes[2])
    axes[1].sharex(axes[0])
    draw_trend(axes[0], trend_data(asked, trend))
    draw_residual(axes[1], residual_data(asked))
    draw_specification(axes[2], axes[3], labels)
    axes[0].set_title(
        f"{trend.metric}: {factor(trend.rate_per_year, *trend.interval)} a year "
        f"{span(*trend.interval, trend.rate_per_year)}",
        color=PALETTE["ink"], fontsize=12.5, loc="left",
    )  # fmt: skip
    return drawn


def save_trend(asked: Question, trend: Trend, found: Choices, path: Path, *, in_dark: bool = False) -> None:
    """Write the picture. Raises TrendError for another kind of file than PNG or SVG."""
    check_kind(path)
    with disk_errors(f"the picture {path}"), dark() if in_dark else nullcontext():
        path.parent.mkdir(parents=True, exist_ok=True)
        trend_figure(asked, trend, found).savefig(path, dpi=130)


def check_kind(path: Path) -> None:
    """Raises TrendError unless a picture can be written to a file of that name."""
    if path.suffix.lower() not in KINDS:
        raise TrendError(f"A picture cannot be {path.name!r}.", hint="Name it FILE.png or FILE.svg.")
