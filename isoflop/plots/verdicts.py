"""Pictures of verdicts: loss against what serving costs, and the chain of steps in doublings.

pareto_data(scene verdicts, dense models, law, "bytes") and waterfall_data(verdicts) give plain arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from isoflop.dense import Dense
from isoflop.errors import ProjectError
from isoflop.gain import BYTES, PRODUCT, SECONDS
from isoflop.laws import Fit
from isoflop.plots.style import PALETTE, Array, dress, points, short
from isoflop.verdict import Verdict, label

GRID = 80
REACH, FRONTIER_POINTS = 1e6, 600  # the frontier is followed so far beyond the runs, either way
MOST_REFUSED = 6  # of a step's refused rivals
AXES = {BYTES: ("bytes on disk", 1.0), SECONDS: ("milliseconds a token", 1000.0)}
HINT = "Judge what is finished: `isoflop verdict --all`."


class Mark(NamedTuple):
    """One judged artifact."""

    name: str
    cost: float
    loss: float
    accepted: bool
    best: bool  # none is at once cheaper and better


@dataclass(frozen=True)
class ParetoData:
    """Loss against one cost: judged artifacts, and the law's dense models."""

    cost: str  # of AXES
    marks: tuple[Mark, ...]  # cheapest first
    dense_cost: Array  # of the sizes measured
    dense_loss: Array  # that the law says they reach where compute is spent best
    curve_cost: Array
    curve_loss: Array


def pareto_data(verdicts: Sequence[Verdict], dense: Sequence[Dense], law: Fit, cost: str) -> ParetoData:
    """Raises ProjectError without verdicts, FitError for a law without a best split."""
    _check(verdicts)
    ordered = sorted(dense, key=lambda d: d.params)
    sizes = np.array([d.params for d in ordered], dtype=np.float64)
    costs = np.array([d.cost.of(cost) for d in ordered])
    grid = np.geomspace(sizes[0], sizes[-1], GRID)
    raw = sorted((_cost(v, cost), v.served.loss, v) for v in verdicts)
    marks, lowest = [], np.inf
    for at, loss, v in raw:
        marks.append(Mark(v.step, at, loss, v.accepted, loss < lowest))
        lowest = min(lowest, loss)
    return ParetoData(
        cost=cost,
        marks=tuple(marks),
        dense_cost=costs,
        dense_loss=_frontier_loss(law, sizes),
        curve_cost=np.exp(np.interp(np.log(grid), np.log(sizes), np.log(costs))),
        curve_loss=_frontier_loss(law, grid),
    )


def _cost(v: Verdict, cost: str) -> float:
    return float(v.bytes) if cost == BYTES else v.served.seconds.value


def _frontier_loss(law: Fit, params: Array) -> Array:
    """Loss of the compute-optimal models of these sizes."""
    measured = law.observations.compute()
    flops = np.geomspace(measured.min() / REACH, measured.max() * REACH, FRONTIER_POINTS)
    best, _, loss = law.split().optimum(np.repeat(law.theta, len(flops), axis=0), flops)
    return np.interp(np.log(params), np.log(best), loss)


def draw_pareto(ax: Axes, data: ParetoData) -> None:
    """Marks of artifacts over the dense models' curve; a line joins those that nothing beats in both."""
    name, unit = AXES[data.cost]
    ax.plot(unit * data.curve_cost, data.curve_loss, color=PALETTE["accent"], lw=1.8)
    points(ax, unit * data.dense_cost, data.dense_loss, PALETTE["accent"], "s", "dense f32, by the law")
    best = [m for m in data.marks if m.best]
    ax.plot([unit * m.cost for m in best], [m.loss for m in best], color=PALETTE["final"], lw=1, alpha=0.6)
    for accepted, word in ((True, "accepted"), (False, "refused")):
        shown = [m for m in data.marks if m.accepted is accepted]
        if shown:
            ax.plot(
                [unit * m.cost for m in shown], [m.loss for m in shown], ls="none", marker="o", ms=7,
                color=PALETTE["final"], mfc=PALETTE["final"] if accepted else "none", label=word, zorder=5,
            )  # fmt: skip
    for m in best:
        ax.annotate(
            m.name, (unit * m.cost, m.loss), xytext=(7, 5), textcoords="offset points", fontsize=10,
            color=PALETTE["ink"], annotation_clip=False,
        )  # fmt: skip
    dress(ax, name, short)


class Bar(NamedTuple):
    """One step: where the chain stood in doublings, and where it led."""

    name: str
    start: float
    end: float
    low: float  # of `end`, by the step's own interval
    high: float
    accepted: bool


def waterfall_data(verdicts: Sequence[Verdict]) -> tuple[Bar, ...]:
    """The chain to the accepted artifact of most inference doublings (bytes x seconds), first step first.

    Before each step its refused rivals, that were made from the same model; the first bar starts at zero,
    where dense models of equal loss are. Raises ProjectError when nothing was accepted.
    """
    _check(verdicts)
    by_path = {v.path: v for v in verdicts}
    accepted = [v for v in verdicts if v.accepted]
    last: Verdict | None = max(accepted, key=lambda v: v.inference[PRODUCT].doublings.value)
    chain: list[Verdict] = []
    while last is not None:
        chain.insert(0, last)
        last = None if last.against is None else by_path.get(last.against)
    first = chain[0].inference[PRODUCT].doublings
    bars = [Bar(label(chain[0]), 0.0, first.value, first.low, first.high, True)]
    for before, step in zip(chain, [*chain[1:], None], strict=True):
        level = bars[-1].end
        refused = [v for v in verdicts if v.against == before.path and not v.accepted]
        refused.sort(key=lambda v: -_over(v)[0])
        for v in [*refused[:MOST_REFUSED], *([] if step is None else [step])]:
            value, low, high = (level + x for x in _over(v))
            bars.append(Bar(label(v), level, value, low, high, v.accepted))
    return tuple(bars)


def _over(v: Verdict) -> tuple[float, float, float]:
    assert v.over is not None
    return v.over.value, v.over.low, v.over.high


def draw_waterfall(ax: Axes, bars: Sequence[Bar]) -> None:
    """Bars from left to right, the first step on top; what was refused is hollow."""
    last = [bar for bar in bars if bar.accepted][-1]
    for row, bar in enumerate(bars):
        colour = PALETTE["final"] if bar.accepted else PALETTE["muted"]
        ax.barh(
            row, bar.end - bar.start, left=bar.start, height=0.62, color=colour if bar.accepted else "none",
            edgecolor=colour, lw=1.2, ls="-" if bar.accepted else ":",
        )  # fmt: skip
        ax.plot([bar.low, bar.high], [row, row], color=PALETTE["ink"], lw=1.1)
        if row + 1 < len(bars):
            reached = bar.end if bar.accepted else bar.start
            ax.plot([reached, reached], [row - 0.31, row + 1.31], color=PALETTE["muted"], lw=0.8)
        right = max(bar.start, bar.end, bar.high)
        words = f"{bar.end - bar.start:+.2f}" + (f", {bar.end:+.2f} in all" if bar == last else "")
        ax.annotate(
            words.replace("-", "−"), (right, row), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=10, color=PALETTE["ink"],
        )  # fmt: skip
    ax.set_yticks(range(len(bars)), [bar.name if bar.accepted else f"{bar.name} (refused)" for bar in bars])
    ax.set_ylim(len(bars) - 0.4, -0.6)
    ax.margins(x=0.25)
    ax.axvline(0.0, color=PALETTE["muted"], lw=1)
    dress(ax, "inference doublings, bytes × seconds", None, "")
    ax.grid(visible=False, axis="y")


def _check(verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        raise ProjectError("There are no verdicts to draw.", hint=HINT)
