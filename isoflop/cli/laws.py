"""What can be asked of a law, from the project's ladder, from any table of runs, or as published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    BudgetOption,
    JsonOption,
    ProjectOption,
    SeedOption,
    open_project,
)
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.laws.planning import LawPlan
    from isoflop.records import Interval, Plan

app = typer.Typer()

LawArgument = Annotated[
    str, typer.Argument(metavar="FIT", help="What isoflop fit --out saved, or a published law's name.")
]
IntervalOption = Annotated[float, typer.Option(help="Level of the central interval.")]
TableOrFit = Annotated[
    str, typer.Argument(metavar="FIT", help="A table of runs, or what isoflop fit --out saved.")
]
MapOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="ROLE=COLUMN[:UNIT]", help="E.g. loss=val_loss params=size:M; may be repeated."
    ),
]
WhereOption = Annotated[
    list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Keep these rows only; may be repeated.")
]
WithOption = Annotated[
    list[str] | None,
    typer.Option("--with", help="A further covariate of the law, e.g. unique_tokens=2e10; may be repeated."),
]
NOT_PRINTED = {"draws", "residuals", "observations"}


@app.command()
def laws(json: JsonOption = False) -> None:
    """List the laws that can be fitted and the published constants that can be used without data.

    Example: [bold]isoflop laws[/bold]
    """
    from isoflop.laws import LAWS

    if json:
        out([
            {"law": law.name, "formula": law.formula, "covariates": law.columns, "params": law.names,
             "held": dict(law.held), "source": law.source,
             "published": [{"name": p.name, "params": dict(p.values), "source": p.source}
                           for p in law.published]}
            for law in LAWS.values()
        ])  # fmt: skip
        return
    for law in LAWS.values():
        typer.secho(law.name, bold=True)
        typer.echo(f"  {law.formula}")
        typer.echo(f"  covariates {', '.join(law.columns)}; {law.source}")
        for constants in law.published:
            typer.echo(f"  published: {constants.name}")


@app.command()
def fit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TABLE]",
            help="CSV, Parquet or JSONL, a row a run. None: the project's ladder. ROLE=COLUMN maps a column.",
        ),
    ] = None,
    project: ProjectOption = DEFAULT_PROJECT,
    law: Annotated[
        str, typer.Option(help="The law (isoflop laws), or auto to compare those that apply.")
    ] = "chinchilla",
    estimator: Annotated[
        str, typer.Option(help="huber-sum, huber-likelihood or least-squares, on the log of the loss.")
    ] = "huber-sum",
    delta: Annotated[float | None, typer.Option(help="Huber width of huber-sum.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Refits of resampled clusters.")] = 1000,
    mapping: MapOption = None,
    where: WhereOption = None,
    fixed: Annotated[
        list[str] | None,
        typer.Option("--fix", metavar="NAME=VALUE", help="Hold a parameter; may be repeated."),
    ] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Save the fit here, as JSON.")] = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Fit a scaling law to a table of runs, or to the project's ladder.

    Example: [bold]isoflop fit runs.csv --map loss=val_loss params=size:M --out law.json[/bold]
    """
    from isoflop.errors import FitError

    words = words or []
    tables = [word for word in words if "=" not in word or Path(word).exists()]
    if len(tables) > 1:
        raise FitError(
            f"{tables[1]!r} is a second table.", hint="Give one table, and ROLE=COLUMN words to map columns."
        )
    roles = [*(mapping or []), *(word for word in words if word not in tables)]
    if tables:
        from isoflop.laws.choose import fit_table

        fitted, comparison = fit_table(
            tables[0], law=law, estimator=estimator, delta=delta, bootstrap=bootstrap, seed=seed,
            mapping=roles, where=where or [], fixed=fixed or [],
        )  # fmt: skip
    else:
        from isoflop.pipeline import corpus_of, fit_runs

        home, comparison = open_project(project), None
        _, fitted = fit_runs(home, corpus_of(home), law=law, seed=seed)
    if out_file is not None:
        from isoflop.laws.saved import save

        save(fitted, out_file)
    if json:
        shown = fitted.model_dump(mode="json", exclude=NOT_PRINTED)
        out({**shown, "comparison": None if comparison is None else comparison.model_dump(mode="json")})
        return
    if comparison is not None:
        table("Which law", ("law", "free params", "AICc", "BIC", "hold-out error"), comparison.table())
        typer.echo(comparison.verdict + "\n")
    typer.echo(fitted.summary())


@app.command()
def predict(
    law: LawArgument,
    params: Annotated[float | None, typer.Option(help="Parameters N.")] = None,
    tokens: Annotated[float | None, typer.Option(help="Training tokens D.")] = None,
    interval: IntervalOption = 0.9,
    others: WithOption = None,
    json: JsonOption = False,
) -> None:
    """Predict the loss of one new run.

    Example: [bold]isoflop predict besiroglu-2024 --params 7e9 --tokens 1.4e12[/bold]
    """
    from isoflop.laws.saved import load, numbers

    found = load(law).predict(params, tokens, interval, **numbers(others or []))
    if json:
        out({"loss": found.value, "low": found.low, "high": found.high, "level": found.level,
             "extrapolation": found.extrapolation})  # fmt: skip
        return
    typer.echo(f"loss {_interval(found)}   {100 * found.level:g}% interval of a new run")
    if found.extrapolation is not None:
        typer.echo(f"{found.extrapolation:.3g} times the largest fitted compute")


@app.command()
def plan(
    law: Annotated[
        str | None,
        typer.Argument(
            metavar="[FIT]", help="A saved fit or a published law's name. None: the project's law."
        ),
    ] = None,
    flops: Annotated[float | None, typer.Option(help="Compute budget, with FIT.")] = None,
    inference_tokens: Annotated[
        float, typer.Option(help="Tokens to serve, paid from the same budget.")
    ] = 0.0,
    unique_tokens: Annotated[
        float | None, typer.Option(help="Tokens there are; beyond them data repeat.")
    ] = None,
    max_params: Annotated[float | None, typer.Option(help="Parameters at most.")] = None,
    interval: IntervalOption = 0.9,
    others: WithOption = None,
    budget: BudgetOption = "5m",
    project: ProjectOption = DEFAULT_PROJECT,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Say what a budget would buy: by a law alone, or by the project's law on this machine.

    Example: [bold]isoflop plan besiroglu-2024 --flops 5.76e23[/bold] or [bold]isoflop plan --budget 2h[/bold]
    """
    if law is None:
        made = _project_plan(project, budget, seed)
        if json:
            out(made)
        else:
            _show_plan(made, budget)
        return
    from isoflop.errors import BudgetError
    from isoflop.laws.planning import plan_law
    from isoflop.laws.saved import load, numbers

    if flops is None:
        raise BudgetError("a plan by a law needs a compute budget", hint="e.g. --flops 1e21")
    best = plan_law(
        load(law), flops, inference_tokens=inference_tokens, unique_tokens=unique_tokens,
        max_params=max_params, others=numbers(others or []), interval=interval,
    )  # fmt: skip
    if json:
        out(best)
    else:
        _show_law_plan(best)


@app.command()
def gain(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The baseline: a table of runs, or a saved fit.")
    ],
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The recipe to judge, likewise.")],
    flops: Annotated[
        list[float] | None,
        typer.Option(help="Compute at which to compare; may be repeated. None: as measured."),
    ] = None,
    mapping: MapOption = None,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Say how many doublings of compute a change of recipe is worth, and whether that grows with scale.

    Example: [bold]isoflop gain adamw.csv muon.csv --flops 1e18 --flops 1e20[/bold]
    """
    from isoflop.gain import compare
    from isoflop.laws.choose import law_of

    one, two = (law_of(word, mapping=mapping or []) for word in (base, other))
    found = compare(one, two, flops or [], interval=interval)
    if json:
        out(found)
        return
    table(f"{other} over {base}", ("FLOPs", "doublings", f"{100 * interval:g}% interval", ""), [
        (f"{s.flops:.3g}", f"{s.doublings.value:+.2f}", f"{s.doublings.low:+.2f} to {s.doublings.high:+.2f}",
         "extrapolated" if s.extrapolated else "")
        for s in found.scales
    ])  # fmt: skip
    typer.echo(found.sentence)


@app.command(name="next")
def next_(
    law: TableOrFit,
    flops: Annotated[float, typer.Option(help="Compute of the model that the runs are for.")],
    aim: Annotated[str, typer.Option(help="loss: know its loss; split: know its size.")] = "loss",
    share: Annotated[float, typer.Option(help="Share of that compute that one run may cost.")] = 0.1,
    mapping: MapOption = None,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Say which small run to make next, by what it would teach about the target for its price.

    Example: [bold]isoflop next runs.csv --flops 1e21[/bold]
    """
    from isoflop.laws.choose import law_of
    from isoflop.laws.design import next_run

    found = next_run(law_of(law, mapping=mapping or []), flops, aim=aim, share=share, level=interval)
    if json:
        out(found)
        return
    table(
        f"Next run for {flops:.3g} FLOPs; now: loss within {100 * found.loss_half_width:.1f}%, size within"
        f" {found.split_factor:.2f}x",
        ("params N", "tokens D", "FLOPs", "loss within", "size within", "saves, nats", "costs, nats"),
        [
            (f"{r.params:.3g}", f"{r.tokens:.3g}", f"{r.flops:.3g}", f"{100 * r.loss_half_width:.1f}%",
             f"{r.split_factor:.2f}x", f"{r.regret_saved:.2g}", f"{r.price:.2g}")
            for r in found.runs
        ],
    )  # fmt: skip
    typer.echo(found.sentence)


@app.command()
def frontier(
    path: Annotated[str, typer.Argument(metavar="TABLE", help="CSV, Parquet or JSONL, a row a run.")],
    approach: Annotated[
        str, typer.Option(help="parabolas: one a compute budget (approach 2); envelope: the best runs (1).")
    ] = "parabolas",
    mapping: MapOption = None,
    where: WhereOption = None,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Find how the best size grows with compute without a law of the loss: Hoffmann's approaches 1 and 2.

    Example: [bold]isoflop frontier isoflops.csv[/bold]
    """
    from isoflop.errors import FitError
    from isoflop.laws import approaches
    from isoflop.laws.table import parse_mapping, read_table

    ways = {"parabolas": approaches.parabolas, "envelope": approaches.envelope}
    if approach not in ways:
        raise FitError(f"There is no approach {approach!r}.", hint=f"Use one of: {', '.join(ways)}.")
    columns, _ = read_table(path, parse_mapping(mapping or []), parse_mapping(where or []))
    found = ways[approach](columns, level=interval)
    if json:
        out(found)
        return
    if found.slices:
        table("Best size by budget", ("FLOPs", "runs", "parabola", "its bias", "best N", ""), [
            (f"{s.flops:.3g}", s.runs, f"{s.params_parabola:.3g}", f"{100 * (s.bias - 1):+.1f}%",
             f"{s.params:.3g}", "" if s.inside else "outside its sizes")
            for s in found.slices
        ])  # fmt: skip
    a = found.exponent
    typer.echo(
        f"N* = {found.coefficient:.4g} C^{a.value:.3f}   {100 * interval:g}% [{a.low:.3f}, {a.high:.3f}]"
    )


@app.command()
def plot(
    law: TableOrFit,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the pictures.")] = Path("law-pictures"),
    kind: Annotated[str, typer.Option("--format", help="svg or png.")] = "svg",
    dark: Annotated[bool, typer.Option("--dark", help="For a dark page.")] = False,
) -> None:
    """Draw a law: isoFLOP slices, contours, frontier, residuals, draws, hold-outs, influence.

    Example: [bold]isoflop plot law.json --out pictures --format png[/bold]
    """
    from contextlib import nullcontext

    from isoflop import plots
    from isoflop.errors import FitError
    from isoflop.laws.choose import law_of

    if kind not in ("svg", "png"):
        raise FitError(f"Pictures cannot be {kind!r}.", hint="Use --format svg or png.")
    with plots.dark() if dark else nullcontext():
        paths, missing = plots.save_law_pictures(law_of(law), folder, kind=kind)
    for path in paths:
        typer.echo(path)
    for sentence in missing:
        typer.echo(f"not drawn: {sentence}", err=True)


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
    ])  # fmt: skip
    for sentence in (*(w.sentence for w in best.worth), *best.notes):
        typer.echo(f"- {sentence}")


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
        ("loss of a new run", _interval(made.loss)),
        ("with twice the budget", _interval(made.doubling_loss)),
        ("one more doubling saves", _interval(made.doubling_saves)),
    ])  # fmt: skip
    for note in made.notes:
        typer.echo(f"- {note}")


def _interval(value: Interval) -> str:
    return f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]"
