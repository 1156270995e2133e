"""The report: a project's ledger as one HTML file that opens offline, with whatever parts there are.

write_report(Project("my-study"))   # my-study/report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import log2
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jinja2

from isoflop import plots
from isoflop.errors import IsoflopError
from isoflop.laws import Fit, intervals
from isoflop.laws.registry import LAWS
from isoflop.plots import PALETTE, Scene, power, short
from isoflop.records import Corpus, Gain, Interval, Ladder, Plan, Result, Run
from isoflop.report import words
from isoflop.report.svg import environment, picture
from isoflop.report.tables import tables
from isoflop.report.words import LEVEL
from isoflop.store import Project, atomic_write
from isoflop.trials import Tuning
from isoflop.verdict_table import notes, sentence

SLIDER_REACH, STEPS = 100, 1000  # the slider ends at about this many times the dearest run


def write_report(project: Project, path: Path | None = None) -> Path:
    """Write the page to `path`, by default `report.html` in the project's folder."""
    path = path or project.folder / "report.html"
    atomic_write(path, render(project))
    return path


def render(project: Project) -> str:
    """The page as HTML. Records that are missing leave a note that names the command that makes them."""
    scene = Scene.of(project)
    corpus, plan = project.latest("corpus", Corpus), project.latest("plan", Plan)
    result, gain = project.latest("result", Result), project.latest("gain", Gain)
    ladder, tuning = project.latest("ladder", Ladder), project.latest("tuning", Tuning)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            palette=PALETTE,
            corpus=corpus,
            runs=scene.runs,
            fit=scene.fit,
            formula=None if scene.fit is None else LAWS[scene.fit.law].formula,
            other_fit=result is not None and scene.fit is not None and scene.fit.digest() != result.fit_id,
            ladder=ladder,
            tuning=tuning,
            tuned=_tuned(tuning),
            plan=plan,
            result=result,
            gain=gain,
            final=scene.final,
            forecast=scene.forecast,
            headline=headline(result, scene.final, scene.forecast),
            pictures={kind: picture(kind, partial(plots.figure, kind, scene)) for kind in plots.PICTURES},
            verdicts=[*notes(scene.verdicts), *map(sentence, scene.verdicts)],
            planner=None if scene.fit is None else planner(scene.fit, scene.final, plan),
            tables=tables(scene, corpus, plan, result, gain, tuning),
        )
    )


def _tuned(tuning: Tuning | None) -> str | None:
    """The command that uses what was found to be better."""
    if tuning is None or not tuning.better:
        return None
    from isoflop.tuning import shown  # here: it loads torch, which pages without a search do not need

    return shown.command(tuning)


def _environment() -> jinja2.Environment:
    made = environment()
    used = ("span", "doublings", "compute", "duration", "size", "several")
    made.filters |= {"short": short, "power": power} | {name: getattr(words, name) for name in used}
    made.globals["short"] = short
    return made


# --- The headline ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Headline:
    """The final run in numbers, from the result or, without one, from the run."""

    loss: float
    loss_se: float
    bpb: float | None
    params: int
    tokens: int
    seconds: float | None  # training alone
    inside: bool | None  # None: nothing was foretold

    @property
    def score(self) -> str:
        """What the page opens with."""
        if self.bpb is None:
            return f"{self.loss:.3f} nats a predicted token"
        return f"{self.bpb:.3f} bits per byte"


def headline(result: Result | None, final: Run | None, forecast: Interval | None) -> Headline | None:
    made = result or final
    if made is None:
        return None
    inside = None if forecast is None else forecast.low <= made.loss <= forecast.high
    params = made.params if isinstance(made, Result) else made.params_matmul
    seconds = None if final is None else final.seconds_train
    return Headline(made.loss, made.loss_se, made.bpb, params, made.tokens, seconds, inside)


# --- The planner -------------------------------------------------------------------------------------


def planner(fit: Fit, final: Run | None = None, plan: Plan | None = None) -> dict[str, Any] | None:
    """What `planner.js` needs: the law, its draws, every constant of the interval, the slider's range.

    None when the law has no best split, or is not the one that the script knows.
    """
    if fit.law != "chinchilla":
        return None
    reach = float(fit.observations.compute().max())
    start = reach if plan is None else plan.flops
    try:
        best = fit.optimum(start, LEVEL)
    except IsoflopError:  # no best split: the frontier's place on the page says so
        return None
    tails = intervals.tails(LEVEL)
    low = min(float(fit.observations.compute().min()), start / 2)
    position = round(STEPS * log2(start / low) / log2(SLIDER_REACH * max(reach, start) / low))
    high = low * (start / low) ** (STEPS / position)  # so that the start is on a step
    law = {
        "theta": fit.theta[0].tolist(),
        "draws": fit.draws_array.tolist(),
        "kappa": fit.flops_model.kappa,
        "gamma": fit.flops_model.gamma,
        "max_flops": reach,
        "runs": fit.observations.sizes().T.tolist(),
        "tails": tails,
        "noise": intervals.student_t(tails[1], fit.noise_df) * fit.noise_sd,
        "model_sd": NormalDist().inv_cdf(tails[1]) * fit.model_sigma,
        "model_power": intervals.MODEL_POWER,
        "model_sides": [intervals.MODEL_BELOW, intervals.MODEL_ABOVE],
        "flops_per_second": None if final is None else final.flops / final.seconds_train,
        "budget": {"low": low, "high": high, "steps": STEPS},
    }
    return {"law": law, "best": best, "position": position}
