"""The command that searches the values which the recipe's rules leave open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import (
    DEFAULT_FAMILY,
    DEFAULT_PROJECT,
    BudgetOption,
    FamilyOption,
    JsonOption,
    ObjectiveOption,
    ProjectOption,
    SeedOption,
    open_project,
)
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.records import Trial, Tuning

app = typer.Typer()


@app.command()
def tune(
    budget: BudgetOption = "10m", project: ProjectOption = DEFAULT_PROJECT,
    values: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME",
            help="What to search: any of lr_matrix, lr_embed, lr_head, lr_vector, batch_tokens, "
            "warmup_tokens, weight_decay, cooldown.",
        ),
    ] = "lr_matrix,lr_embed,lr_head",
    width: Annotated[int | None, typer.Option(help="d_model; the ladder's smallest when absent.")] = None,
    trials: Annotated[
        int | None, typer.Option(help="Trials at most; by the budget when absent.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of the best and of the recipe in the comparison.")] = 3,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials side by side, a thread each; a core each when absent.")
    ] = None,
    family: FamilyOption = DEFAULT_FAMILY, objective: ObjectiveOption = None,
    seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Search the values that the recipe's rules leave open, on this project's text.

    Needs the extra: pip install 'isoflop[tune]'. A law is fitted to ladders of one recipe: tune first, then
    sweep.

    Example: [bold]isoflop tune --budget 10m[/bold]
    """
    from isoflop.budget import Budget
    from isoflop.families import find
    from isoflop.pipeline import corpus_of
    from isoflop.tuning import tune as search

    parsed, kind = Budget.parse(budget), find(family, objective)
    home = open_project(project)
    with home.lock(), Terminal() as progress:
        done = search(
            home, corpus_of(home), parsed, values=[v.strip() for v in values.split(",") if v.strip()],
            width=width, trials=trials, seeds=seeds, seed=seed, workers=workers, family=kind,
            progress=progress,
        )  # fmt: skip
    if json:
        out(done)
        return
    _show(done)


def _show(done: Tuning) -> None:
    model, lengths = done.config.model, [f"loss, {t:,} tokens" for t in done.token_counts]
    table(
        f"{len(done.trials)} trials of {model.n_layers} x {model.d_model}; {done.flops:.3g} FLOPs in all",
        ("trial", *done.values, *lengths, "FLOPs"),
        [_row(t, done) for t in sorted(done.trials, key=_rank)],
    )
    typer.echo(done.sentence)
    if done.better:
        typer.echo(f"To use it: {command(done)}")
        typer.echo(
            f"It was found at width {done.config.model.d_model}; x is times the recipe's value at each width."
        )


def _rank(trial: Trial) -> tuple[int, float]:
    """Those that came farthest first, and of them the best."""
    return -len(trial.losses), trial.losses[-1] if trial.losses else 0.0


def _row(trial: Trial, done: Tuning) -> list[str]:
    from isoflop.tuning.values import number

    names = {0: "the recipe", done.best: "the best"} if done.best else {0: "the recipe, the best"}
    words = [str(trial.number), names.get(trial.number, ""), "" if trial.state == "done" else trial.state]
    losses = [f"{loss:.4f}" for loss in trial.losses]
    missing = ["–"] * (len(done.token_counts) - len(losses))
    tried = [number(trial.values[name]) for name in done.values]
    return [", ".join(filter(None, words)), *tried, *losses, *missing, f"{trial.flops:.2g}"]


def command(done: Tuning) -> str:
    """The line that uses what was found."""
    from isoflop.tuning.values import setting

    found = done.trials[done.best].values
    return " ".join(
        ["isoflop sweep", *(f"--set {name}={setting(name, found, done.config)}" for name in done.values)]
    )
