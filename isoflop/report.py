"""The report: a project's ledger as one HTML file that opens offline, with whatever parts there are.

write_report(Project("my-study"))   # my-study/report.html
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log2
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jinja2
import matplotlib
from markupsafe import Markup

from isoflop import plots
from isoflop.errors import IsoflopError
from isoflop.gain import UNBOUNDED_FLOPS
from isoflop.laws import Fit, intervals
from isoflop.laws.registry import LAWS
from isoflop.plots import PALETTE, Scene, power, short
from isoflop.quantities import cell
from isoflop.records import Corpus, Gain, Interval, Ladder, Plan, Result, Run, Tuning
from isoflop.store import Project, atomic_write
from isoflop.tuning import shown
from isoflop.verdict_table import CAPTION, HEAD, notes, row, sentence

TEMPLATES = Path(__file__).parent / "templates"
LEVEL = 0.9
UNBOUNDED_DOUBLINGS = log2(UNBOUNDED_FLOPS) - 100  # doublings beyond this come from UNBOUNDED_FLOPS
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
            tuned=None if tuning is None or not tuning.better else shown.command(tuning),
            plan=plan,
            result=result,
            gain=gain,
            final=scene.final,
            forecast=scene.forecast,
            headline=headline(result, scene.final, scene.forecast),
            pictures={kind: _picture(kind, scene) for kind in plots.PICTURES},
            verdicts=[*notes(scene.verdicts), *map(sentence, scene.verdicts)],
            planner=None if scene.fit is None else planner(scene.fit, scene.final, plan),
            tables=_tables(scene, corpus, plan, result, gain, tuning),
        )
    )


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


# --- Pictures ----------------------------------------------------------------------------------------


def _picture(kind: str, scene: Scene) -> Markup:
    """The picture as inline SVG, or a sentence that says why there is none."""
    try:
        return svg(kind, scene)
    except IsoflopError as error:
        return Markup('<p class="missing">{} {}</p>').format(error.message, error.hint)


def svg(kind: str, scene: Scene) -> Markup:
    """Inline SVG in the page's colours and font; ids start with the picture's name, so they are unique."""
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": kind}):
        plots.figure(kind, scene).savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", text, count=5)
    text = re.sub(r'((?:xlink:href|href)="#|id="|url\(#)', rf"\1{kind}-", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    text = re.sub(r" font-family:[^;\"]*;?", "", text)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


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


# --- Tables ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Cells in words; each row is its class in the style sheet and its cells."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def _tables(
    scene: Scene,
    corpus: Corpus | None,
    plan: Plan | None,
    result: Result | None,
    gain: Gain | None,
    tuning: Tuning | None,
) -> dict[str, Table]:
    """Every table that the records allow, by name."""
    made: dict[str, Table] = {}
    if scene.fit is not None:
        made["parameters"] = _parameters(scene.fit)
        if scene.fit.holdout:
            made["holdout"] = _holdout(scene.fit)
    if plan is not None and plan.candidates:
        made["candidates"] = _candidates(plan)
    if result is not None:
        made["stages"] = _stages(result)
    if gain is not None:
        made["gain"] = _gain(gain)
    if tuning is not None:
        rows = tuple(("", row) for row in shown.rows(tuning))
        made["trials"] = Table(shown.title(tuning), shown.head(tuning), rows)
    if scene.verdicts:
        judged = tuple(("" if v.accepted else "refused", row(v)) for v in scene.verdicts)
        made["verdicts"] = Table(CAPTION, HEAD, judged)
    if corpus is not None:
        made["dropped"] = _dropped(corpus)
    if scene.runs:
        made |= {"counts": _counts(scene), "costs": _costs(scene)}
    return made


def _parameters(fit: Fit) -> Table:
    rows = [
        (
            "",
            (name, short(i.value), short(fit.se[name]) if fit.se else "–", span(i, short)),
        )
        for name, i in fit.conf_int(LEVEL).items()
    ]
    caption = (
        f"{fit.n} runs in {fit.n_clusters} clusters; estimator {fit.estimator}; bootstrap {fit.bootstrap}"
    )
    return Table(caption, ("parameter", "value", "standard error", "90% interval"), tuple(rows))


def _holdout(fit: Fit) -> Table:
    rows = [
        (
            "",
            (
                str(h.fitted_runs),
                power(h.flops),
                f"{h.ratio:.1f}×",
                f"{100 * h.error:+.2f}%".replace("-", "−"),
            ),
        )
        for h in fit.holdout
    ]
    head = (
        "cheapest runs fitted",
        "FLOP of the run foretold",
        "beyond the fitted",
        "prediction less measured",
    )
    return Table("The law fitted to the cheaper runs, asked about a dearer one", head, tuple(rows))


def _candidates(plan: Plan) -> Table:
    ordered = sorted(plan.candidates, key=lambda row: row["params"])
    rows = [("", (short(c["params"]), short(c["tokens"]), f"{c['loss']:.3f}")) for c in ordered]
    return Table("Sizes compared at this budget", ("N", "D", "predicted loss, nats"), tuple(rows))


def _stages(result: Result) -> Table:
    total = result.seconds.get("total", sum(result.seconds.values()))
    flops = {"ladder": result.flops_total - result.flops, "train": result.flops}
    rows = [
        (
            "",
            (
                stage,
                f"{seconds:,.1f}",
                f"{100 * seconds / total:.0f}%" if total else "–",
                _flops(flops, stage),
            ),
        )
        for stage, seconds in result.seconds.items()
        if stage != "total"
    ]
    rows.append(("total", ("total", f"{total:,.1f}", "100%", power(result.flops_total))))
    return Table("Cost by stage", ("stage", "seconds", "share", "FLOP"), tuple(rows))


def _flops(flops: dict[str, float], stage: str) -> str:
    return power(flops[stage]) if stage in flops else "–"


def _gain(gain: Gain) -> Table:
    rows = [("", (name, power(flops))) for name, flops in gain.costs.items()]
    rows.append(("total", ("total", power(gain.flops))))
    return Table("Compute counted", ("part", "FLOP"), tuple(rows))


def _dropped(corpus: Corpus) -> Table:
    total = corpus.documents + sum(corpus.dropped.values())
    rows = [
        ("", (reason, f"{n:,}", f"{100 * n / max(total, 1):.1f}%"))
        for reason, n in sorted(corpus.dropped.items(), key=lambda item: -item[1])
    ]
    rows.append(
        ("total", ("kept", f"{corpus.documents:,}", f"{100 * corpus.documents / max(total, 1):.1f}%"))
    )
    return Table("Documents dropped, by reason", ("reason", "documents", "share"), tuple(rows))


def _counts(scene: Scene) -> Table:
    head: tuple[str, ...] = (
        "run",
        "N = params_matmul",
        "params_nonembedding",
        "params_total",
        "D",
        "unique tokens",
    )
    head += ("C, FLOP exact", "6 N D", "loss, nats", "± s.e.", "bits per byte", "role")
    return Table("Sizes, data and results, every way of counting", head, _run_rows(scene, _count_cells))


def _count_cells(run: Run) -> tuple[str, ...]:
    counts = (run.params_matmul, run.params_nonembedding, run.params_total, run.tokens, run.unique_tokens)
    approximate = 6.0 * run.params_matmul * run.tokens
    losses = (f"{run.loss:.4f}", f"{run.loss_se:.4f}", cell(run.bpb))
    return (*(f"{n:,}" for n in counts), power(run.flops), power(approximate), *losses, run.role)


def _costs(scene: Scene) -> Table:
    head: tuple[str, ...] = ("run", "FLOP spent", "train, s", "evaluate, s", "compile, s", "tokens/s")
    head += ("FLOP/s of peak", "peak memory")
    return Table("Cost by run", head, _run_rows(scene, _cost_cells))


def _cost_cells(run: Run) -> tuple[str, ...]:
    seconds = (run.seconds_train, run.seconds_eval, run.seconds_compile)
    speed = (f"{run.tokens_per_second:,.0f}", f"{100 * run.peak_share:.0f}%", size(run.peak_memory_bytes))
    return (power(run.flops_spent), *(f"{s:,.1f}" for s in seconds), *speed)


def _run_rows(
    scene: Scene, cells: Callable[[Run], tuple[str, ...]]
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """One row a run, by size and tokens, the final run last."""

    def order(run: Run) -> tuple[bool, int, int]:
        return run is scene.final, run.params_matmul, run.tokens

    return tuple(
        ("final" if run is scene.final else "", (run.id, *cells(run)))
        for run in sorted(scene.runs, key=order)
    )


# --- Words for numbers -------------------------------------------------------------------------------


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


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    made.undefined = jinja2.StrictUndefined
    words = (short, power, span, doublings, compute, duration, size, several)
    made.filters |= {function.__name__: function for function in words}
    made.globals["short"] = short
    return made


def several(items: Iterable[object], word: str) -> str:
    """A count with its noun: 1 run, 12 runs."""
    n = len(list(items))
    return f"{n} {word}{'' if n == 1 else 's'}"
