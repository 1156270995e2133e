"""What a budget would buy: by a law alone, by the project's law on this machine, or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.laws import shown_interval
from isoflop.cli.options import (
    DEFAULT_PROJECT,
    BandwidthOption,
    BudgetOption,
    IntervalOption,
    JsonOption,
    LatencyOption,
    MemoryOption,
    ProjectOption,
    SeedOption,
    ServingBitsOption,
    TeacherLossOption,
    TeacherParamsOption,
    WithOption,
    count,
    open_project,
    typed,
    whole,
)
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.laws.planning import LawPlan
    from isoflop.records import Plan

app = typer.Typer()

ClusterOption = Annotated[
    str | None,
    typer.Option(metavar="COUNTxNAME", help="Plan on paper for a cluster, e.g. 1024xH100 or 512xTPUv5p."),
]
DaysOption = Annotated[float | None, typer.Option(help="Of the cluster, failures counted.")]
ClusterParamsOption = Annotated[
    float | None, count("Active parameters, with --cluster; by the law when absent.")
]
ClusterTokensOption = Annotated[
    float | None, count("Training tokens, with --cluster; by the law when absent.")
]
ExpertsOption = Annotated[int, whole("Routed experts a layer, of which 8 are active.", least=0)]
ContextOption = Annotated[int, typer.Option("--context", min=128, help="Tokens a sequence, with --cluster.")]
PriceOption = Annotated[
    float | None, typer.Option(min=0.001, help="USD a device-hour; of the table when absent.")
]
LaunchOption = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Write what starts the run, for torchtitan and isoflop.")
]


@app.command()
def plan(
    context: typer.Context,
    law: Annotated[
        str | None,
        typer.Argument(
            metavar="[FIT]", help="A saved fit or a published law's name. None: the project's law."
        ),
    ] = None,
    flops: Annotated[float | None, count("Compute budget, with FIT or --cluster.")] = None,
    inference_tokens: Annotated[float, count("Tokens to serve, paid from the same budget.")] = 0.0,
    unique_tokens: Annotated[float | None, count("Tokens there are; beyond them data repeat.")] = None,
    max_params: Annotated[float | None, count("Parameters at most.")] = None,
    serving_bits: ServingBitsOption = None,
    max_memory: MemoryOption = None,
    max_latency: LatencyOption = None,
    bandwidth: BandwidthOption = None,
    teacher_loss: TeacherLossOption = None,
    teacher_params: TeacherParamsOption = None,
    interval: IntervalOption = 0.9,
    others: WithOption = None,
    budget: BudgetOption = "5m",
    project: ProjectOption = DEFAULT_PROJECT,
    seed: SeedOption = 0,
    cluster: ClusterOption = None,
    days: DaysOption = None,
    params: ClusterParamsOption = None,
    tokens: ClusterTokensOption = None,
    experts: ExpertsOption = 0,
    window: ContextOption = 8192,
    price: PriceOption = None,
    launch: LaunchOption = None,
    json: JsonOption = False,
) -> None:
    """Say what a budget would buy: by a law alone, by the project's law on this machine, or on a cluster.

    On a cluster the law is FIT, or the project's where --project is given, or else Besiroglu et al.'s.

    Example: [bold]isoflop plan besiroglu-2024 --flops 5.76e23[/bold] or [bold]isoflop plan --budget 2h[/bold]
    or [bold]isoflop plan --cluster 1024xH100 --days 30[/bold]
    """
    on_cluster = ("days", "params", "tokens", "experts", "window", "price", "launch")
    limits: dict[str, Any] = {
        "inference_tokens": inference_tokens, "unique_tokens": unique_tokens, "max_params": max_params,
        "serving_bits": serving_bits, "max_memory": max_memory, "max_latency": max_latency,
        "bandwidth": bandwidth, "teacher_loss": teacher_loss, "teacher_params": teacher_params,
    }  # fmt: skip
    if cluster is not None:
        from isoflop.cli.cluster import plan_on

        refuse(typed(context, *limits, "interval", "others", "budget", "seed"), "is not for a --cluster")
        plan_on(
            cluster, law, project if typed(context, "project") else None, price=price, launch=launch,
            json=json, days=days, flops=flops, params=params, tokens=tokens, experts=experts, context=window,
        )  # fmt: skip
        return
    refuse(typed(context, *on_cluster), "is for a --cluster, and none was given")
    if law is None:
        _refuse(typed(context, "flops", *limits, "interval", "others"), with_fit=False)
        made = _project_plan(project, budget, seed)
        if json:
            out(made)
        else:
            _show_plan(made, budget)
        return
    _refuse(typed(context, "budget", "project", "seed"), with_fit=True)
    _plan_by(law, flops, others, interval, limits, json=json)


def _plan_by(
    law: str, flops: float | None, others: list[str] | None, interval: float, limits: dict[str, Any], *,
    json: bool,
) -> None:  # fmt: skip
    """By a law alone."""
    from isoflop.errors import BudgetError
    from isoflop.laws.planning import plan_law
    from isoflop.laws.saved import load, numbers

    if flops is None:
        raise BudgetError("a plan by a law needs a compute budget", hint="e.g. --flops 1e21")
    best = plan_law(load(law), flops, others=numbers(others or []), interval=interval, **limits)
    if json:
        out(best)
    else:
        _show_law_plan(best)


def refuse(options: list[str], why: str) -> None:
    """Raises LayoutError when options of another kind of plan were typed."""
    from isoflop.errors import LayoutError

    if options:
        raise LayoutError(
            f"{options[0]} {why}.", hint="See the example: isoflop plan --cluster 1024xH100 --days 30."
        )


def _refuse(options: list[str], *, with_fit: bool) -> None:
    """Raises FitError when options of the other kind of plan were typed."""
    from isoflop.errors import FitError

    if options and with_fit:
        raise FitError(
            f"{options[0]} is for a plan by the project's law, and a FIT was given.",
            hint="Leave it out: a plan by a law alone has --flops for its budget; or leave out the FIT.",
        )
    if options:
        raise FitError(
            f"{options[0]} is for a plan by a law alone, and no FIT was given.",
            hint="Name a saved fit or a published law, e.g. isoflop plan besiroglu-2024 --flops 1e21.",
        )


def _project_plan(project: Path, budget: str, seed: int) -> Plan:
    from isoflop.budget import Budget
    from isoflop.pipeline import corpus_of, fit_runs, key_of, make_plan

    parsed, home = Budget.parse(budget), open_project(project)
    with home.lock(), Terminal() as progress:
        text = corpus_of(home)
        fit_id, fitted = fit_runs(home, text, seed=seed)
        key = key_of(text, parsed, seed, 0.0) + fit_id[:8]
        return make_plan(home, text, fitted, fit_id, parsed, key=key, seed=seed, progress=progress)


def _show_law_plan(best: LawPlan) -> None:
    table(f"Plan for {best.flops:.3g} FLOPs", ("", "value", f"{100 * best.loss.level:g}% interval"), [
        ("parameters N", f"{best.params.value:.4g}", f"{best.params.low:.4g} to {best.params.high:.4g}"),
        ("tokens D", f"{best.tokens.value:.4g}", f"{best.tokens.low:.4g} to {best.tokens.high:.4g}"),
        ("tokens a parameter", f"{best.tokens.value / best.params.value:.3g}", ""),
        ("loss of a new run", f"{best.loss.value:.4f}", f"{best.loss.low:.4f} to {best.loss.high:.4f}"),
        ("training FLOPs", f"{best.train_flops:.3g}", ""),
        *_serving_rows(best),
    ])  # fmt: skip
    verdict = () if best.distilling is None else (best.distilling.sentence,)
    for sentence in (*verdict, *(w.sentence for w in best.worth), *best.notes):
        typer.echo(f"- {sentence}")


def _serving_rows(best: LawPlan) -> list[tuple[str, str, str]]:
    """Bytes and seconds, where something was said about serving."""
    if best.serving_bits is None and best.max_memory is None and best.bandwidth is None:
        return []
    rows = [(f"weights, GB at {best.bits:g} bits", f"{best.weight_bytes / 1e9:.3g}", "")]
    if best.token_seconds is not None:
        rows.append(("ms a generated token, at least", f"{1e3 * best.token_seconds:.3g}", ""))
    return rows


def _show_plan(made: Plan, budget: str) -> None:
    model = made.config.model
    table(f"Plan for {budget}", ("", "value"), [
        ("shape", f"{model.n_layers} layers, width {model.d_model}, {model.n_heads} heads"),
        ("parameters N", f"{made.params:,}"),
        ("tokens D", f"{made.tokens:,}"),
        ("batch, tokens", f"{made.config.batch_tokens:,}"),
        ("rates: matrices, embedding, head",
         f"{made.config.lr_matrix:.3g}, {made.config.lr_embed:.3g}, {made.config.lr_head:.3g}"),
        ("compute, FLOPs", f"{made.flops:.3g}"),
        ("seconds", f"{made.seconds:.0f}"),
        ("memory MB", f"{made.memory_bytes / 1e6:.0f}"),
        ("loss of a new run", shown_interval(made.loss)),
        ("with twice the budget", shown_interval(made.doubling_loss)),
        ("one more doubling saves", shown_interval(made.doubling_saves)),
    ])  # fmt: skip
    for note in made.notes:
        typer.echo(f"- {note}")
