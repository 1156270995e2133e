"""Pictures of a project: `*_data()` gives plain arrays, `draw_*()` draws them on a matplotlib axes.

    figure("frontier", project)                  one picture, for notebooks
    save_overview(project, Path("overview.png")) four of them, for a README

Colours are by meaning: blue is the law and the small runs (darker: larger), vermillion is the final run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from isoflop.errors import FitError, ProjectError
from isoflop.laws import Fit
from isoflop.records import Corpus, Interval, Plan, Result, Run
from isoflop.store import Project

Array = npt.NDArray[np.float64]
Numbers = Sequence[float] | Array
Words = Callable[[float], str]
Spread = Literal["params", "tokens", "flops"]

PALETTE = {  # blue and vermillion of Okabe and Ito (2008), told apart by every kind of colour vision
    "ink": "#1c2127",
    "muted": "#5c6670",
    "grid": "#e6e9ec",
    "paper": "#fdfdfc",
    "accent": "#0072b2",
    "final": "#d55e00",
    "step1": "#93c4e3",
    "step2": "#559fd0",
    "step3": "#1f78b4",
    "step4": "#10527f",
    "step5": "#082c47",
}
STEPS = tuple(PALETTE[f"step{i}"] for i in range(1, 6))
LOSS = "loss, nats a token"
MARKERS = ("o", "s", "^", "D", "v")
SIZE, SMALL = (390 / 72, 276 / 72), (320 / 72, 226 / 72)  # inches; readable on a phone 390 px wide


@dataclass(frozen=True)
class Scene:
    """What pictures show of a project: the runs on one corpus, the law, the final run and its forecast."""

    runs: tuple[Run, ...] = ()
    fit: Fit | None = None
    final: Run | None = None
    forecast: Interval | None = None  # of the final run's loss, written before it was trained

    @classmethod
    def of(cls, project: Project) -> Scene:
        runs, corpus = project.all("run", Run), project.latest("corpus", Corpus)
        here = tuple(run for run in runs if corpus is None or run.corpus_id == corpus.id)
        plan, result = project.latest("plan", Plan), project.latest("result", Result)
        final = next((run for run in reversed(here) if run.role == "final"), None)
        forecast = None if plan is None else plan.loss
        if result is not None:
            final = next((run for run in here if run.id == result.run_id), None)
            low, high = result.interval
            forecast = Interval(value=result.predicted, low=low, high=high, of="new run")
        return cls(here, project.latest("fit", Fit), final, forecast)

    def law(self) -> Fit:
        """The fit; raises ProjectError when there is none."""
        if self.fit is None:
            raise ProjectError("There is no fitted law to draw.", hint="Run `isoflop fit` first.")
        return self.fit


@dataclass(frozen=True)
class Curve:
    """Training curve of one run, and its held-out loss at the end."""

    params: int
    tokens: int
    final: bool
    step: int  # colour: rank of its size among the sizes
    curve_tokens: Array
    curve_loss: Array
    heldout_loss: float


def curves_data(runs: Iterable[Run], final: Run | None = None) -> tuple[Curve, ...]:
    """One curve a run, smallest model first; the final run last. Raises ProjectError without runs."""
    listed = sorted(runs, key=lambda run: (run is final, run.params_matmul, run.tokens))
    if not listed:
        raise ProjectError("There are no runs to draw.", hint="Run `isoflop ladder` first.")
    sizes = sorted({run.params_matmul for run in listed if run is not final})
    return tuple(
        Curve(
            params=run.params_matmul,
            tokens=run.tokens,
            final=run is final,
            step=0 if run is final else _spread_step(sizes.index(run.params_matmul), len(sizes)),
            curve_tokens=np.array([point.tokens for point in run.curve], dtype=np.float64),
            curve_loss=np.array([point.loss for point in run.curve], dtype=np.float64),
            heldout_loss=run.loss,
        )
        for run in listed
    )


def _spread_step(rank: int, of: int) -> int:
    """Colour step of a rank, spread over the palette."""
    return len(STEPS) - 1 if of < 2 else round(rank * (len(STEPS) - 1) / (of - 1))


@dataclass(frozen=True)
class Slice:
    """The law along one constant compute, and its best split (None when the law has none)."""

    flops: float
    params: Array
    loss: Array
    best_params: float | None
    best_loss: float | None


@dataclass(frozen=True)
class IsoflopData:
    """Loss against N at constant C; `level` of a measured point is the nearest slice."""

    slices: tuple[Slice, ...]
    params: Array
    loss: Array
    flops: Array
    level: npt.NDArray[np.intp]


def isoflop_data(fit: Fit) -> IsoflopData:
    """Slices at computes spread over the fitted runs, and those runs."""
    params, loss = np.array(fit.observations.params), np.array(fit.observations.loss)
    flops = fit.observations.compute()
    levels = np.geomspace(flops.min(), flops.max(), len(STEPS))
    grid = np.geomspace(params.min() / 2, params.max() * 2, 80)
    level = np.abs(np.log(flops[:, None] / levels)).argmin(axis=1)
    return IsoflopData(tuple(_slice(fit, c, grid) for c in levels.tolist()), params, loss, flops, level)


def _slice(fit: Fit, flops: float, grid: Array) -> Slice:
    loss = fit.loss(grid, flops / fit.flops_model.per_token(grid))
    try:
        best = fit.optimum(flops)
    except FitError:
        return Slice(flops, grid, loss, None, None)
    return Slice(flops, grid, loss, best.params.value, best.loss.value)


@dataclass(frozen=True)
class FrontierData:
    """Best loss against compute with 90% bands, the measured runs, the final run foretold and measured."""

    flops: Array
    loss: Array
    mean: tuple[Array, Array]  # low, high of the mean loss
    run: tuple[Array, Array]  # low, high of a new run
    measured_flops: Array
    measured_loss: Array
    final_flops: float | None
    final_loss: float | None
    forecast: Interval | None


def frontier_data(fit: Fit, final: Run | None = None, forecast: Interval | None = None) -> FrontierData:
    """Bands from the cheapest fitted run to four times the dearest run of all."""
    measured = fit.observations.compute()
    top = 4 * max(float(measured.max()), 0.0 if final is None else final.flops)
    grid = np.geomspace(measured.min(), top, 48)
    best = [fit.optimum(c) for c in grid.tolist()]
    means = [fit.mean(b.params.value, b.tokens.value) for b in best]
    return FrontierData(
        flops=grid,
        loss=np.array([b.loss.value for b in best]),
        mean=(np.array([m.low for m in means]), np.array([m.high for m in means])),
        run=(np.array([b.loss.low for b in best]), np.array([b.loss.high for b in best])),
        measured_flops=measured,
        measured_loss=np.array(fit.observations.loss),
        final_flops=None if final is None else final.flops,
        final_loss=None if final is None else final.loss,
        forecast=None if final is None else forecast,
    )


@dataclass(frozen=True)
class ResidualsData:
    """How far each fitted run lies above the law, percent of the loss."""

    params: Array
    tokens: Array
    flops: Array
    percent: Array


def residuals_data(fit: Fit) -> ResidualsData:
    """Measured over fitted loss less one; `fit.residuals` is ln prediction - ln observation."""
    table = fit.observations
    percent = 100 * np.expm1(-np.array(fit.residuals))
    return ResidualsData(np.array(table.params), np.array(table.tokens), table.compute(), percent)


@dataclass(frozen=True)
class PredictedData:
    """Predicted against measured loss: the fitted runs, and the final one that the law had not seen."""

    predicted: Array
    measured: Array
    final_measured: float | None
    forecast: Interval | None


def predicted_data(fit: Fit, final: Run | None = None, forecast: Interval | None = None) -> PredictedData:
    table = fit.observations
    known = None if final is None or forecast is None else final.loss
    return PredictedData(
        predicted=fit.loss(table.params, table.tokens),
        measured=np.array(table.loss),
        final_measured=known,
        forecast=None if known is None else forecast,
    )


def short(value: float) -> str:
    """Three digits and a unit: 823k, 1.25M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def power(value: float) -> str:
    """A power of ten: 3.1×10¹², 10¹³."""
    if value <= 0 or not np.isfinite(value):
        return f"{value:g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    digits = f"{float(mantissa):g}"
    tens = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return tens if digits == "1" else f"{digits}×{tens}"


def draw_curves(ax: Axes, data: Sequence[Curve]) -> None:
    """Training curves; a mark is the held-out loss at the end of each run."""
    named: set[str] = set()
    for curve in data:
        colour = PALETTE["final"] if curve.final else STEPS[curve.step]
        name = f"final, N = {short(curve.params)}" if curve.final else f"N = {short(curve.params)}"
        ax.plot(curve.curve_tokens, curve.curve_loss, color=colour, lw=1.3, alpha=0.75)
        marker = "*" if curve.final else MARKERS[curve.step]
        label = "_" if name in named else name
        _points(ax, [curve.tokens], [curve.heldout_loss], colour, marker, label)
        named.add(name)
    marks = np.array([curve.heldout_loss for curve in data])
    span = max(float(np.ptp(marks)), 0.3)
    ax.set_ylim(marks.min() - 0.25 * span, marks.max() + 0.8 * span)
    ends = [t for curve in data for t in (*curve.curve_tokens[1:2], curve.tokens)]
    ax.set_xlim(min(ends) * 0.9, max(ends) * 1.25)
    _dress(ax, "training tokens, D", short)


def draw_isoflop(ax: Axes, data: IsoflopData) -> None:
    """Loss against N at constant compute; a ring is the best split."""
    for i, part in enumerate(data.slices):
        ax.plot(part.params, part.loss, color=STEPS[i], lw=1.5)
        near = data.level == i
        _points(ax, data.params[near], data.loss[near], STEPS[i], MARKERS[i], f"{power(part.flops)} FLOP")
        if part.best_params is not None and part.best_loss is not None:
            ax.plot(part.best_params, part.best_loss, "o", ms=8, mfc="none", mec=STEPS[i], mew=1.3)
    span = float(np.ptp(data.loss))
    ax.set_ylim(data.loss.min() - 0.2 * span, data.loss.max() + 0.3 * span)
    ax.set_xlim(data.params.min() / 1.6, data.params.max() * 1.6)
    _dress(ax, "parameters, N", short, loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=3)


def draw_frontier(ax: Axes, data: FrontierData) -> None:
    """The compute-optimal frontier with bands for the mean and for a new run."""
    blue = PALETTE["accent"]
    ax.fill_between(data.flops, *data.run, color=blue, alpha=0.13, lw=0, label="90%, a new run")
    ax.fill_between(data.flops, *data.mean, color=blue, alpha=0.24, lw=0, label="90%, the mean")
    ax.plot(data.flops, data.loss, color=blue, lw=1.8, label="best split, by the law")
    _points(ax, data.measured_flops, data.measured_loss, PALETTE["muted"], "o", "small runs")
    if data.final_flops is not None and data.final_loss is not None:
        if data.forecast is not None:
            _forecast(ax, data.final_flops, data.forecast)
        _points(ax, [data.final_flops], [data.final_loss], PALETTE["final"], "*", "final, measured")
    _dress(ax, "training compute, FLOP", power)


def _forecast(ax: Axes, x: float, forecast: Interval) -> None:
    reach = [[forecast.value - forecast.low], [forecast.high - forecast.value]]
    red = PALETTE["final"]
    bar = ax.errorbar([x], [forecast.value], reach, color=red, lw=1.4, capsize=4, fmt="o", ms=6, mfc="none")
    bar.set_label("final, predicted")


def draw_residuals(ax: Axes, data: ResidualsData, against: Spread) -> None:
    """Measured less fitted loss in percent, against one of N, D and C."""
    x: Array = getattr(data, against)
    ax.axhline(0, color=PALETTE["muted"], lw=1)
    _points(ax, x, data.percent, PALETTE["accent"], "o")
    reach = 1.25 * max(float(np.abs(data.percent).max()), 0.1)
    ax.set_ylim(-reach, reach)
    label = {"params": "parameters, N", "tokens": "training tokens, D", "flops": "compute, FLOP"}[against]
    _dress(ax, label, power if against == "flops" else short, "measured − law, %")


def draw_predicted(ax: Axes, data: PredictedData) -> None:
    """Predicted against measured loss; on the line they agree."""
    ends = [*data.predicted, *data.measured]
    if data.forecast is not None:
        ends += [data.forecast.low, data.forecast.high]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low)
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color=PALETTE["muted"], lw=1, label="equal")
    _points(ax, data.measured, data.predicted, PALETTE["accent"], "o", "small runs, fitted")
    if data.final_measured is not None and data.forecast is not None:
        _forecast(ax, data.final_measured, data.forecast)
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    _dress(ax, "measured loss, nats a token", None, "predicted loss, nats a token")


def _points(ax: Axes, x: Numbers, y: Numbers, colour: str, marker: str, label: str = "_") -> None:
    size = 12 if marker == "*" else 5.5
    ax.plot(x, y, color=colour, marker=marker, ms=size, mew=0, ls="none", label=label, zorder=4)


def _dress(ax: Axes, xlabel: str, ticks: Words | None, ylabel: str = LOSS, **legend: Any) -> None:
    """Axes' labels, grid and legend; with `ticks` the horizontal axis is logarithmic."""
    if ticks is not None:
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        decades = log10(high / low)
        subs = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: ticks(value)))
    ax.set_xlabel(xlabel, color=PALETTE["ink"], fontsize=11.5)
    ax.set_ylabel(ylabel, color=PALETTE["ink"], fontsize=11.5)
    ax.tick_params(colors=PALETTE["muted"], labelsize=11, length=0, pad=5)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(PALETTE["muted"])
    ax.grid(color=PALETTE["grid"], lw=0.8)
    ax.set_axisbelow(True)
    if ax.get_legend_handles_labels()[1]:
        style = {"fontsize": 10.5, "labelcolor": PALETTE["ink"], "handlelength": 1.4, "labelspacing": 0.35}
        ax.legend(**(style | legend)).get_frame().set(
            facecolor=PALETTE["paper"], edgecolor="none", alpha=0.85
        )


PICTURES: dict[str, Callable[[Axes, Scene], None]] = {
    "curves": lambda ax, s: draw_curves(ax, curves_data(s.runs, s.final)),
    "isoflop": lambda ax, s: draw_isoflop(ax, isoflop_data(s.law())),
    "frontier": lambda ax, s: draw_frontier(ax, frontier_data(s.law(), s.final, s.forecast)),
    "predicted": lambda ax, s: draw_predicted(ax, predicted_data(s.law(), s.final, s.forecast)),
    "residuals-params": lambda ax, s: draw_residuals(ax, residuals_data(s.law()), "params"),
    "residuals-tokens": lambda ax, s: draw_residuals(ax, residuals_data(s.law()), "tokens"),
    "residuals-flops": lambda ax, s: draw_residuals(ax, residuals_data(s.law()), "flops"),
}
OVERVIEW = {
    "curves": "Every run",
    "isoflop": "Loss at constant compute",
    "frontier": "What compute buys",
    "predicted": "Predicted and measured",
}


def figure(kind: str, project: Project | Scene) -> Figure:
    """One of `PICTURES`. Raises ProjectError: no such picture, or the project lacks what it shows."""
    if kind not in PICTURES:
        raise ProjectError(f"There is no picture {kind!r}.", hint=f"Choose one of: {', '.join(PICTURES)}.")
    drawn = Figure(figsize=SMALL if kind.startswith("residuals") else SIZE, layout="constrained")
    PICTURES[kind](drawn.subplots(), project if isinstance(project, Scene) else Scene.of(project))
    return drawn


def save_overview(project: Project, path: Path) -> Path:
    """Four pictures in one PNG on white; raises ProjectError without runs or a fit."""
    scene = Scene.of(project)
    layout = ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.15)
    page = Figure(figsize=(2.1 * SIZE[0], 2.2 * SIZE[1]), layout=layout, facecolor="white", dpi=130)
    for ax, (kind, title) in zip(page.subplots(2, 2).flat, OVERVIEW.items(), strict=True):
        PICTURES[kind](ax, scene)
        ax.set_title(title, loc="left", color=PALETTE["ink"], fontsize=13, fontweight="bold", pad=12)
    page.savefig(path)
    return path
