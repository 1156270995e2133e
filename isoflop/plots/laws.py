"""Pictures of a law: `*_data()` gives plain arrays, `draw_*()` draws them on a matplotlib axes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.errors import FitError, IsoflopError
from isoflop.laws import Fit, intervals, law_named
from isoflop.laws.influence import influence
from isoflop.plots.design import design_data, draw_design
from isoflop.plots.style import (
    MARKERS,
    PALETTE,
    SIZE,
    STEPS,
    Array,
    Spread,
    draw_forecast,
    dress,
    points,
    power,
    short,
    step_colour,
)
from isoflop.records import Interval, Run
from isoflop.store import disk_errors


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
    levels = np.geomspace(flops.min(), flops.max(), STEPS)
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


def draw_isoflop(ax: Axes, data: IsoflopData) -> None:
    """Loss against N at constant compute; a ring is the best split."""
    for i, part in enumerate(data.slices):
        ax.plot(part.params, part.loss, color=step_colour(i), lw=1.5)
        near = data.level == i
        points(
            ax, data.params[near], data.loss[near], step_colour(i), MARKERS[i], f"{power(part.flops)} FLOP"
        )
        if part.best_params is not None and part.best_loss is not None:
            ax.plot(part.best_params, part.best_loss, "o", ms=8, mfc="none", mec=step_colour(i), mew=1.3)
    span = float(np.ptp(data.loss))
    ax.set_ylim(data.loss.min() - 0.2 * span, data.loss.max() + 0.3 * span)
    ax.set_xlim(data.params.min() / 1.6, data.params.max() * 1.6)
    dress(ax, "parameters, N", short, loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=3)


def draw_frontier(ax: Axes, data: FrontierData) -> None:
    """The compute-optimal frontier with bands for the mean and for a new run."""
    blue = PALETTE["accent"]
    ax.fill_between(data.flops, *data.run, color=blue, alpha=0.13, lw=0, label="90%, a new run")
    ax.fill_between(data.flops, *data.mean, color=blue, alpha=0.24, lw=0, label="90%, the mean")
    ax.plot(data.flops, data.loss, color=blue, lw=1.8, label="best split, by the law")
    points(ax, data.measured_flops, data.measured_loss, PALETTE["muted"], "o", "small runs")
    if data.final_flops is not None and data.final_loss is not None:
        if data.forecast is not None:
            draw_forecast(ax, data.final_flops, data.forecast)
        points(ax, [data.final_flops], [data.final_loss], PALETTE["final"], "*", "final, measured")
    dress(ax, "training compute, FLOP", power)


def draw_residuals(ax: Axes, data: ResidualsData, against: Spread) -> None:
    """Measured less fitted loss in percent, against one of N, D and C."""
    x: Array = getattr(data, against)
    ax.axhline(0, color=PALETTE["muted"], lw=1)
    points(ax, x, data.percent, PALETTE["accent"], "o")
    reach = 1.25 * max(float(np.abs(data.percent).max()), 0.1)
    ax.set_ylim(-reach, reach)
    label = {"params": "parameters, N", "tokens": "training tokens, D", "flops": "compute, FLOP"}[against]
    dress(ax, label, power if against == "flops" else short, "measured − law, %")


@dataclass(frozen=True)
class ContourData:
    """ln L over a grid of N and D, the compute-optimal path, and the runs."""

    params: Array  # (n,)
    tokens: Array  # (d,)
    loss: Array  # (d, n)
    path: tuple[Array, Array]  # N*, D* over the compute range
    runs: tuple[Array, Array]


def contour_data(fit: Fit) -> ContourData:
    """The law over the measured range, twice as wide each way."""
    N, D = np.array(fit.observations.params), np.array(fit.observations.tokens)
    params, tokens = (np.geomspace(v.min() / 2, v.max() * 2, 80) for v in (N, D))
    grid = np.meshgrid(params, tokens)
    loss = fit.loss(grid[0].ravel(), grid[1].ravel()).reshape(80, 80)
    if np.ptp(loss) < 0.03 * loss.min():
        raise FitError("The law is flat over these runs: it has no lines of equal loss.", hint="Add runs.")
    C = fit.observations.compute()
    budgets = np.geomspace(C.min(), C.max(), 40)
    theta = np.repeat(fit.theta, len(budgets), axis=0)
    best_n, best_d, _ = fit.split().optimum(theta, budgets)
    return ContourData(params, tokens, loss, (best_n, best_d), (N, D))


def draw_contour(ax: Axes, data: ContourData) -> None:
    """Lines of equal loss, labelled; the path of best splits on them."""
    levels = np.geomspace(data.loss.min() * 1.01, data.loss.max() * 0.98, 9)
    lines = ax.contour(
        data.params, data.tokens, data.loss, levels=levels, colors=PALETTE["step3"], linewidths=1.1
    )
    ax.clabel(lines, fmt="%.2f", fontsize=9.5, colors=PALETTE["ink"])
    ax.plot(*data.runs, "o", ms=3, mew=0, color=PALETTE["muted"], alpha=0.8, label="runs")
    ax.plot(*data.path, color=PALETTE["final"], lw=2.0, label="best split")
    ax.set_yscale("log")
    ax.set_ylim(data.tokens[0], data.tokens[-1])
    ax.set_xlim(data.params[0], data.params[-1])
    ax.yaxis.set_major_formatter(lambda value, _: short(value))
    dress(ax, "parameters, N", short, "training tokens, D", loc="lower right")


@dataclass(frozen=True)
class PairsData:
    """Bootstrap draws of two parameters, and the fitted ones."""

    names: tuple[str, str]
    draws: Array  # (k, 2)
    value: Array  # (2,)


def pairs_data(fit: Fit) -> PairsData:
    """The two shape parameters whose draws are correlated most; the first two of a law with fewer.

    Raises FitError without a bootstrap or with one free parameter.
    """
    law, draws = law_named(fit.law), fit.draws_array
    free = [i for i, name in enumerate(law.names) if name not in fit.fixed and np.ptp(draws[:, i]) > 0]
    if len(fit.draws) < 3 or len(free) < 2:
        raise FitError("There are no pairs of draws to show.", hint="Fit with --bootstrap 400.")
    shape = [i for i in free if i >= law.linear]
    chosen = shape if len(shape) > 1 else free
    rank = np.abs(np.corrcoef(draws[:, chosen].T) - np.eye(len(chosen)))
    a, b = sorted(np.unravel_index(int(rank.argmax()), rank.shape))
    i, j = chosen[int(a)], chosen[int(b)]
    return PairsData((law.names[i], law.names[j]), draws[:, [i, j]], fit.theta[0, [i, j]])


def draw_pairs(ax: Axes, data: PairsData) -> None:
    """Draws as points; a star is the fit."""
    ax.plot(*data.draws.T, "o", ms=3.5, mew=0, alpha=0.5, color=PALETTE["accent"], label="bootstrap draws")
    points(ax, data.value[:1], data.value[1:], PALETTE["final"], "*", "fit")
    dress(ax, data.names[0], None, data.names[1])


@dataclass(frozen=True)
class HoldoutData:
    """Errors of ordered hold-outs in percent against how far they reach, and the band of a new run."""

    reach: Array
    percent: Array
    grid: Array
    band: tuple[Array, Array]


def holdout_data(fit: Fit) -> HoldoutData:
    """Errors are prediction over observation less one. Raises FitError when there were no hold-outs."""
    if not fit.holdout:
        raise FitError("There are too few runs for an ordered hold-out.", hint="Add runs.")
    reach = np.array([row.reach for row in fit.holdout])
    percent = 100 * np.array([row.error for row in fit.holdout])
    grid = np.geomspace(1.0, max(float(reach.max()), 2.0), 40)
    ends = [fit.around(1.0, np.ones(1), float(sd)) for sd in intervals.model_sd(grid, fit.model_sigma)]
    # A measured loss below the prediction is an error above zero: the sides swap.
    above, below = (
        np.array([100 * (1 / v - 1) for v in side])
        for side in ([e.low for e in ends], [e.high for e in ends])
    )
    return HoldoutData(reach, percent, grid, (below, above))


def draw_holdout(ax: Axes, data: HoldoutData) -> None:
    """Each point is a dearer run predicted by a fit to cheaper ones."""
    ax.fill_between(
        data.grid, *data.band, color=PALETTE["accent"], alpha=0.15, lw=0, label="90%: noise, model error"
    )
    ax.axhline(0, color=PALETTE["muted"], lw=1)
    points(ax, data.reach, data.percent, PALETTE["accent"], "o", "held-out runs")
    dress(ax, "reach beyond the fitted runs, a factor of compute", short, "predicted − measured, %")


@dataclass(frozen=True)
class InfluenceData:
    """How much a prediction moves, in percent, when a run or cluster is left out; largest first."""

    labels: tuple[str, ...]
    percent: Array
    flops: float


def influence_data(fit: Fit, flops: float | None = None) -> InfluenceData:
    """At the best split of `flops`, four times the largest fitted compute if not given."""
    target = 4.0 * float(fit.observations.compute().max()) if flops is None else flops
    labels, moves = influence(fit, target)
    return InfluenceData(labels, 100 * moves, target)


def draw_influence(ax: Axes, data: InfluenceData) -> None:
    """The ten that move it most."""
    top = min(10, len(data.labels))
    rows = np.arange(top)[::-1]
    ax.barh(rows, data.percent[:top], color=PALETTE["accent"], height=0.62)
    ax.axvline(0, color=PALETTE["muted"], lw=1)
    ax.set_yticks(rows, data.labels[:top])
    dress(ax, f"change of the loss at {power(data.flops)} FLOP without it, %", None, "")


LAW_PICTURES: dict[str, Callable[[Axes, Fit], None]] = {
    "isoflop": lambda ax, f: draw_isoflop(ax, isoflop_data(f)),
    "contour": lambda ax, f: draw_contour(ax, contour_data(f)),
    "frontier": lambda ax, f: draw_frontier(ax, frontier_data(f)),
    "residuals-params": lambda ax, f: draw_residuals(ax, residuals_data(f), "params"),
    "residuals-tokens": lambda ax, f: draw_residuals(ax, residuals_data(f), "tokens"),
    "residuals-flops": lambda ax, f: draw_residuals(ax, residuals_data(f), "flops"),
    "pairs": lambda ax, f: draw_pairs(ax, pairs_data(f)),
    "holdout": lambda ax, f: draw_holdout(ax, holdout_data(f)),
    "influence": lambda ax, f: draw_influence(ax, influence_data(f)),
    "design": lambda ax, f: draw_design(ax, design_data(f)),
}


def law_figure(kind: str, fit: Fit) -> Figure:
    """One of `LAW_PICTURES`. Raises FitError: no such picture, no runs, or a law that has none such."""
    if kind not in LAW_PICTURES:
        raise FitError(f"There is no picture {kind!r}.", hint=f"Choose one of: {', '.join(LAW_PICTURES)}.")
    _check_runs(fit)
    drawn = Figure(figsize=SIZE, layout="constrained", facecolor=PALETTE["paper"])
    ax = drawn.subplots()
    ax.set_facecolor(PALETTE["paper"])
    LAW_PICTURES[kind](ax, fit)
    return drawn


def _check_runs(fit: Fit) -> None:
    if not fit.n or not {"params", "tokens"} <= fit.observations.columns.keys():
        raise FitError("Pictures need runs with N and D behind the law.", hint="Fit a table of runs.")


def save_law_pictures(fit: Fit, folder: Path, *, kind: str = "svg") -> tuple[list[Path], list[str]]:
    """Every picture that the fit allows, as `folder`/NAME.`kind`; and a sentence for each it does not."""
    _check_runs(fit)
    with disk_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    paths, missing = [], []
    for name in LAW_PICTURES:
        try:
            drawn = law_figure(name, fit)
        except IsoflopError as error:
            missing.append(f"{name}: {error.message}")
            continue
        paths.append(folder / f"{name}.{kind}")
        drawn.savefig(paths[-1], dpi=130)
    return paths, missing
