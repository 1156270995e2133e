"""Pictures of a project: `*_data()` gives plain arrays, `draw_*()` draws them on a matplotlib axes.

figure("frontier", project)                  one picture, for notebooks
save_overview(project, Path("overview.png")) four of them, for a README
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from isoflop.dense import KIND as DENSE
from isoflop.dense import Dense
from isoflop.errors import ProjectError
from isoflop.gain import BYTES, SECONDS
from isoflop.laws import Fit
from isoflop.plots.laws import (
    draw_frontier,
    draw_isoflop,
    draw_residuals,
    frontier_data,
    isoflop_data,
    residuals_data,
)
from isoflop.plots.style import (
    MARKERS,
    PALETTE,
    SIZE,
    SMALL,
    STEPS,
    Array,
    draw_forecast,
    dress,
    points,
    short,
    step_colour,
)
from isoflop.plots.verdicts import draw_pareto, draw_waterfall, pareto_data, waterfall_data
from isoflop.records import Corpus, Interval, Plan, Result, Run
from isoflop.store import Project
from isoflop.verdict import KIND as VERDICT
from isoflop.verdict import Verdict, alike

# Roles of runs that are not shown: they ask something else, or did not begin as the law's runs do.
ASIDE = ("tune", "ablation", "continued", "distilled")


@dataclass(frozen=True)
class Scene:
    """What pictures show of a project: the runs of one family on one corpus, the law, the final run and its
    forecast. The family is the final run's, or else the latest run's. Roles in ASIDE are not shown."""

    runs: tuple[Run, ...] = ()
    fit: Fit | None = None
    final: Run | None = None
    forecast: Interval | None = None  # of the final run's loss, written before it was trained
    verdicts: tuple[Verdict, ...] = ()  # the latest of each artifact, by the base of the last one
    dense: tuple[Dense, ...] = ()  # whose costs are that base

    @classmethod
    def of(cls, project: Project) -> Scene:
        runs, corpus = project.all("run", Run), project.latest("corpus", Corpus)
        here = tuple(r for r in runs if r.role not in ASIDE and (corpus is None or r.corpus_id == corpus.id))
        plan, result = project.latest("plan", Plan), project.latest("result", Result)
        final = next((run for run in reversed(here) if run.role == "final"), None)
        forecast = None if plan is None else plan.loss
        if result is not None:
            final = next((run for run in here if run.id == result.run_id), None)
            low, high = result.interval
            forecast = Interval(value=result.predicted, low=low, high=high, of="new run")
        shown = final or (here[-1] if here else None)
        here = tuple(run for run in here if shown and run.config.model.kind == shown.config.model.kind)
        judged, dense = alike(project.all(VERDICT, Verdict), project.all(DENSE, Dense))
        return cls(here, project.latest("fit", Fit), final, forecast, judged, dense)

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
        raise ProjectError("There are no runs to draw.", hint="Run `isoflop sweep` first.")
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
    return STEPS - 1 if of < 2 else round(rank * (STEPS - 1) / (of - 1))


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


def draw_curves(ax: Axes, data: Sequence[Curve]) -> None:
    """Training curves; a mark is the held-out loss at the end of each run."""
    named: set[str] = set()
    for curve in data:
        colour = PALETTE["final"] if curve.final else step_colour(curve.step)
        name = f"final, N = {short(curve.params)}" if curve.final else f"N = {short(curve.params)}"
        ax.plot(curve.curve_tokens, curve.curve_loss, color=colour, lw=1.3, alpha=0.75)
        marker = "*" if curve.final else MARKERS[curve.step]
        label = "_" if name in named else name
        points(ax, [curve.tokens], [curve.heldout_loss], colour, marker, label)
        named.add(name)
    marks = np.array([curve.heldout_loss for curve in data])
    span = max(float(np.ptp(marks)), 0.3)
    ax.set_ylim(marks.min() - 0.25 * span, marks.max() + 0.8 * span)
    ends = [t for curve in data for t in (*curve.curve_tokens[1:2], curve.tokens)]
    ax.set_xlim(min(ends) * 0.9, max(ends) * 1.25)
    dress(ax, "training tokens, D", short)


def draw_predicted(ax: Axes, data: PredictedData) -> None:
    """Predicted against measured loss; on the line they agree."""
    ends = [*data.predicted, *data.measured]
    if data.forecast is not None:
        ends += [data.forecast.low, data.forecast.high]
    low, high = min(ends), max(ends)
    margin = 0.05 * (high - low)
    limits = (low - margin, high + margin)
    ax.plot(limits, limits, color=PALETTE["muted"], lw=1, label="equal")
    points(ax, data.measured, data.predicted, PALETTE["accent"], "o", "small runs, fitted")
    if data.final_measured is not None and data.forecast is not None:
        draw_forecast(ax, data.final_measured, data.forecast)
    ax.set_xlim(limits)
    ax.set_ylim(limits)
    dress(ax, "measured loss, nats a token", None, "predicted loss, nats a token")


PICTURES: dict[str, Callable[[Axes, Scene], None]] = {
    "curves": lambda ax, s: draw_curves(ax, curves_data(s.runs, s.final)),
    "isoflop": lambda ax, s: draw_isoflop(ax, isoflop_data(s.law())),
    "frontier": lambda ax, s: draw_frontier(ax, frontier_data(s.law(), s.final, s.forecast)),
    "predicted": lambda ax, s: draw_predicted(ax, predicted_data(s.law(), s.final, s.forecast)),
    "pareto-bytes": lambda ax, s: draw_pareto(ax, pareto_data(s.verdicts, s.dense, s.law(), BYTES)),
    "pareto-seconds": lambda ax, s: draw_pareto(ax, pareto_data(s.verdicts, s.dense, s.law(), SECONDS)),
    "waterfall": lambda ax, s: draw_waterfall(ax, waterfall_data(s.verdicts)),
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
