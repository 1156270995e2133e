"""What can be asked of a law, from the project's ladder, from any table of runs, or as published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    IntervalOption,
    JsonOption,
    LawArgument,
    MapOption,
    ParamsOption,
    ProjectOption,
    SeedOption,
    TokensOption,
    WhereOption,
    WithOption,
    open_project,
)
from isoflop.terminal import out, table

if TYPE_CHECKING:
    from isoflop.laws.choose import Comparison
    from isoflop.laws.profile import Profile
    from isoflop.laws.result import Fit
    from isoflop.records import Interval

app = typer.Typer()

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


FitWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TABLE]",
        help="CSV, Parquet or JSONL, a row a run. None: the project's ladder. ROLE=COLUMN maps a column.",
    ),
]
LawOption = Annotated[str, typer.Option(help="The law (isoflop laws), or auto to compare those that apply.")]
EstimatorOption = Annotated[
    str, typer.Option(help="huber-sum, huber-likelihood or least-squares, on the log of the loss.")
]
ResampleOption = Annotated[
    str, typer.Option(help="How clusters are resampled: auto, pairs, wild or parametric.")
]
ModelErrorOption = Annotated[
    float | None,
    typer.Option(help="The law's own error, a share of the loss; 0: it is exact. None: from hold-outs."),
]
CeilingOption = Annotated[
    float | None,
    typer.Option(help="The target rises to this (accuracy: 1); what is missing to it is fitted."),
]
FixOption = Annotated[
    list[str] | None, typer.Option("--fix", metavar="NAME=VALUE", help="Hold a parameter; may be repeated.")
]
DrawsOption = Annotated[
    Path | None, typer.Option(help="Write the bootstrap draws: FILE.csv, .parquet or .nc (arviz).")
]


@app.command()
def fit(
    words: FitWords = None,
    project: ProjectOption = DEFAULT_PROJECT,
    law: LawOption = "chinchilla",
    estimator: EstimatorOption = "huber-sum",
    delta: Annotated[float | None, typer.Option(help="Huber width of huber-sum.")] = None,
    bootstrap: Annotated[int, typer.Option(help="Refits of resampled clusters.")] = 1000,
    resample: ResampleOption = "auto",
    model_error: ModelErrorOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Add profile likelihood intervals.")] = False,
    ceiling: CeilingOption = None,
    mapping: MapOption = None,
    where: WhereOption = None,
    fixed: FixOption = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Save the fit here, as JSON.")] = None,
    draws: DrawsOption = None,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Fit a scaling law to a table of runs, or to the project's ladder.

    Example: [bold]isoflop fit runs.csv --map loss=val_loss params=size:M --out law.json[/bold]
    """
    options = {"law": law, "estimator": estimator, "bootstrap": bootstrap, "resample": resample,
               "model_error": model_error, "seed": seed, "delta": delta}  # fmt: skip
    of_table = {"ceiling": ceiling, "where": where or [], "fixed": fixed or []}
    fitted, comparison = _fitted(words or [], mapping or [], project, options, of_table)
    if out_file is not None:
        from isoflop.laws.saved import save

        save(fitted, out_file)
    if draws is not None:
        from isoflop.laws.export import write_draws

        write_draws(fitted, draws)
    _show_fit(fitted, comparison, profile, json)


def _show_fit(fitted: Fit, comparison: Comparison | None, profile: bool, json: bool) -> None:
    """Print the fit, what it was compared with and, when asked for, its profile likelihood intervals."""
    found = None
    if profile:
        from isoflop.laws.profile import profiles

        found = profiles(fitted)
    if json:
        shown = fitted.model_dump(mode="json", exclude=NOT_PRINTED)
        shown["comparison"] = None if comparison is None else comparison.model_dump(mode="json")
        if found is not None:
            shown["profile"] = {name: part.model_dump(mode="json") for name, part in found.items()}
        out(shown)
        return
    if comparison is not None:
        table("Which law", ("law", "free params", "AICc", "BIC", "hold-out error"), comparison.table())
        typer.echo(comparison.verdict + "\n")
    typer.echo(fitted.summary())
    if found is not None:
        _show_profiles(found, fitted)


def _fitted(
    words: list[str], mapping: list[str], project: Path, options: dict[str, Any], of_table: dict[str, Any]
) -> tuple[Fit, Comparison | None]:
    """The fit to the table among the words, or to the project's ladder; and what was compared."""
    from isoflop.errors import FitError

    tables = [word for word in words if "=" not in word or Path(word).exists()]
    if len(tables) > 1:
        raise FitError(
            f"{tables[1]!r} is a second table.", hint="Give one table, and ROLE=COLUMN words to map columns."
        )
    roles = [*mapping, *(word for word in words if word not in tables)]
    if tables:
        from isoflop.laws.choose import fit_table

        return fit_table(tables[0], mapping=roles, **options, **of_table)
    from isoflop.pipeline import corpus_of, fit_runs

    if roles or any(value not in (None, []) for value in of_table.values()) or options["law"] == "auto":
        raise FitError(
            "--map, --where, --fix, --ceiling and --law auto are for a table, and none was given.",
            hint="Give a CSV, Parquet or JSONL file; without one the project's ladder is fitted.",
        )
    given = {name: value for name, value in options.items() if value is not None}
    home = open_project(project)
    return fit_runs(home, corpus_of(home), **given)[1], None


@app.command()
def predict(
    law: LawArgument,
    params: ParamsOption = None,
    tokens: TokensOption = None,
    interval: IntervalOption = 0.9,
    others: WithOption = None,
    task: Annotated[
        str | None, typer.Option(help="A law of a task's score given the loss: predict the score instead.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Predict the loss of one new run, or its score in a task; or whatever else the law is about.

    Example: [bold]isoflop predict besiroglu-2024 --params 7B --tokens 1.4T[/bold]
    """
    from isoflop.laws.saved import load, numbers

    fitted, further = load(law), numbers(others or [])
    word = fitted.word
    if task is None:
        found = fitted.predict(params, tokens, interval, **further)
    else:
        from isoflop.errors import FitError
        from isoflop.laws.chain import predict_score

        if params is None or tokens is None:
            raise FitError("A score needs N and D.", hint="Give --params and --tokens.")
        scoring = load(task)
        word = scoring.word
        found = predict_score(fitted, scoring, params, tokens, interval=interval, others=further)
    if json:
        out({"target": word, "loss": found.value, "low": found.low, "high": found.high,
             "level": found.level, "extrapolation": found.extrapolation})  # fmt: skip
        return
    typer.echo(f"{word} {shown_interval(found)}   {100 * found.level:g}% interval of a new run")
    if found.extrapolation is not None:
        typer.echo(fitted.extrapolation_words(found.extrapolation))


def _show_profiles(found: Mapping[str, Profile], fitted: Fit) -> None:
    """Profile intervals beside the bootstrap's, and what the runs do not bound."""
    from isoflop.laws.profile import FEW

    draws = fitted.conf_int() if fitted.draws else {}
    rows = [
        (name, f"{p.interval.value:.5g}", f"{p.interval.low:.4g} to {p.interval.high:.4g}",
         f"{draws[name].low:.4g} to {draws[name].high:.4g}" if draws else "none", f"{p.adjustment:.2f}")
        for name, p in found.items()
    ]  # fmt: skip
    typer.echo()
    table("Profile likelihood, 90%", ("", "value", "profile", "bootstrap", "adjustment"), rows)
    typer.echo(
        "The deviance is divided by the adjustment: what clusters and uneven noise do to the variance."
    )
    if fitted.n_clusters < FEW:
        typer.echo(f"- With fewer than {FEW} clusters profiles are too narrow: believe the bootstrap.")
    for sentence in (p.sentence for p in found.values() if p.sentence):
        typer.echo(f"- {sentence}")


def shown_interval(value: Interval) -> str:
    return f"{value.value:.5g} [{value.low:.5g}, {value.high:.5g}]"
