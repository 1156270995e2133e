"""The design map: how well the target would be known after a run at each (N, D), and which runs to make."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes

from isoflop.laws import Fit
from isoflop.laws.design import LARGEST_SHARE, Designer, next_run
from isoflop.laws.intervals import tails
from isoflop.plots.style import PALETTE, Array, dress, points, power, short, step_colour

FARTHER = 16.0  # times the largest fitted compute: the target, if none is given
GRID, LEVELS = 60, 6


@dataclass(frozen=True)
class DesignData:
    """Half-widths of the target's loss in percent after one run at N, D; nan where it would cost too much."""

    flops: float
    params: Array  # (n,)
    tokens: Array  # (d,)
    percent: Array  # (d, n)
    runs: tuple[Array, Array]  # made
    steps: tuple[Array, Array]  # to make, in order
    before: float  # half-width now, percent


def design_data(fit: Fit, flops: float | None = None, level: float = 0.9) -> DesignData:
    """For the best model of `flops`, by runs of a tenth of it at most. Raises FitError, BudgetError."""
    target = FARTHER * float(fit.observations.compute().max()) if flops is None else flops
    plan, designer = next_run(fit, target, level=level), Designer(fit, target)
    seen, (N_star, D_star, _) = fit.observations, designer.optimum
    params = np.geomspace(min(seen.params) / 2, 2 * max(N_star, max(seen.params)), GRID)
    tokens = np.geomspace(min(seen.tokens) / 2, 2 * max(D_star, max(seen.tokens)), GRID)
    N, D = (v.ravel() for v in np.meshgrid(params, tokens))
    cost = fit.split().per_token(N) * D
    variance = designer.judge(designer.known, N, D, cost).loss
    percent = 100 * NormalDist().inv_cdf(tails(level)[1]) * np.sqrt(variance)
    allowed = np.where(cost <= LARGEST_SHARE * target, percent, np.nan).reshape(GRID, GRID)
    steps = np.array([[run.params, run.tokens] for run in plan.steps]).reshape(-1, 2).T
    runs = np.array(seen.params), np.array(seen.tokens)
    return DesignData(target, params, tokens, allowed, runs, (steps[0], steps[1]), 100 * plan.loss_half_width)


def draw_design(ax: Axes, data: DesignData) -> None:
    """Darker is better known; rings are the runs to make, in order."""
    shown = data.percent[np.isfinite(data.percent)]
    colours = [step_colour(i) for i in (4, 3, 2, 1, 0)]
    levels = np.linspace(shown.min(), max(shown.max(), shown.min() + 1e-6), LEVELS)
    ax.contourf(data.params, data.tokens, data.percent, levels, colors=colours, alpha=0.75)
    points(ax, *data.runs, PALETTE["muted"], "o", "runs made")
    ax.plot(*data.steps, "o", ms=8, mfc="none", mec=PALETTE["final"], mew=1.6, label="to make", zorder=5)
    ax.set_yscale("log")
    words = f"{power(data.flops)} FLOP: now within {data.before:.1f}%, then {shown.min():.1f}% (dark) or more"
    ax.set_title(words, color=PALETTE["ink"], fontsize=11)
    dress(ax, "parameters, N", short, "training tokens, D", loc="lower left")
