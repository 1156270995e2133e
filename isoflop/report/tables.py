"""The report's tables, as far as the records allow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from isoflop.laws import Fit
from isoflop.plots import Scene, power, short
from isoflop.quantities import cell
from isoflop.records import Corpus, Gain, Plan, Result, Run
from isoflop.report.words import LEVEL, size, span
from isoflop.trials import Tuning
from isoflop.verdict_table import CAPTION, HEAD, row


@dataclass(frozen=True)
class Table:
    """Cells in words; each row is its class in the style sheet and its cells."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def tables(
    scene: Scene, corpus: Corpus | None, plan: Plan | None, result: Result | None, gain: Gain | None,
    tuning: Tuning | None,
) -> dict[str, Table]:  # fmt: skip
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
        made["trials"] = _trials(tuning)
    if scene.verdicts:
        judged = tuple(("" if v.accepted else "refused", row(v)) for v in scene.verdicts)
        made["verdicts"] = Table(CAPTION, HEAD, judged)
    if corpus is not None:
        made["dropped"] = _dropped(corpus)
    if scene.runs:
        made |= {"counts": _counts(scene), "costs": _costs(scene)}
    return made


def _parameters(fit: Fit) -> Table:
    rows = tuple(
        ("", (name, short(i.value), short(fit.se[name]) if fit.se else "–", span(i, short)))
        for name, i in fit.conf_int(LEVEL).items()
    )
    made = f"{fit.n} runs in {fit.n_clusters} clusters; estimator {fit.estimator}; bootstrap {fit.bootstrap}"
    return Table(made, ("parameter", "value", "standard error", f"{100 * LEVEL:g}% interval"), rows)


def _holdout(fit: Fit) -> Table:
    rows = []
    for h in fit.holdout:
        error = f"{100 * h.error:+.2f}%".replace("-", "−")
        rows.append(("", (str(h.fitted_runs), power(h.flops), f"{h.ratio:.1f}×", error)))
    head = ("cheapest runs fitted", "FLOP of the run foretold", "beyond the fitted",
            "prediction less measured")  # fmt: skip
    return Table("The law fitted to the cheaper runs, asked about a dearer one", head, tuple(rows))


def _candidates(plan: Plan) -> Table:
    ordered = sorted(plan.candidates, key=lambda row: row["params"])
    rows = [("", (short(c["params"]), short(c["tokens"]), f"{c['loss']:.3f}")) for c in ordered]
    return Table("Sizes compared at this budget", ("N", "D", "predicted loss, nats"), tuple(rows))


def _stages(result: Result) -> Table:
    total = result.seconds.get("total", sum(result.seconds.values()))
    flops = {"ladder": result.flops_total - result.flops, "train": result.flops}
    rows = []
    for stage, seconds in result.seconds.items():
        if stage != "total":
            share = f"{100 * seconds / total:.0f}%" if total else "–"
            spent = power(flops[stage]) if stage in flops else "–"
            rows.append(("", (stage, f"{seconds:,.1f}", share, spent)))
    rows.append(("total", ("total", f"{total:,.1f}", "100%", power(result.flops_total))))
    return Table("Cost by stage", ("stage", "seconds", "share", "FLOP"), tuple(rows))


def _gain(gain: Gain) -> Table:
    rows = [("", (name, power(flops))) for name, flops in gain.costs.items()]
    rows.append(("total", ("total", power(gain.flops))))
    return Table("Compute counted", ("part", "FLOP"), tuple(rows))


def _trials(tuning: Tuning) -> Table:
    from isoflop.tuning import shown  # here: it loads torch, which pages without a search do not need

    rows = tuple(("", row) for row in shown.rows(tuning))
    return Table(shown.title(tuning), shown.head(tuning), rows)


def _dropped(corpus: Corpus) -> Table:
    total = max(corpus.documents + sum(corpus.dropped.values()), 1)

    def counted(reason: str, n: int) -> tuple[str, ...]:
        return reason, f"{n:,}", f"{100 * n / total:.1f}%"

    rows = [("", counted(*item)) for item in sorted(corpus.dropped.items(), key=lambda item: -item[1])]
    rows.append(("total", counted("kept", corpus.documents)))
    return Table("Documents dropped, by reason", ("reason", "documents", "share"), tuple(rows))


def _counts(scene: Scene) -> Table:
    head = ("run", "N = params_matmul", "params_nonembedding", "params_total", "D", "unique tokens",
            "C, FLOP exact", "6 N D", "loss, nats", "± s.e.", "bits per byte", "role")  # fmt: skip
    return Table("Sizes, data and results, every way of counting", head, _run_rows(scene, _count_cells))


def _count_cells(run: Run) -> tuple[str, ...]:
    counts = (run.params_matmul, run.params_nonembedding, run.params_total, run.tokens, run.unique_tokens)
    approximate = 6.0 * run.params_matmul * run.tokens
    losses = (f"{run.loss:.4f}", f"{run.loss_se:.4f}", cell(run.bpb))
    return (*(f"{n:,}" for n in counts), power(run.flops), power(approximate), *losses, run.role)


def _costs(scene: Scene) -> Table:
    head = ("run", "FLOP spent", "train, s", "evaluate, s", "compile, s", "tokens/s", "FLOP/s of peak",
            "peak memory")  # fmt: skip
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
