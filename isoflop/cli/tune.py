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
    RayOption,
    SeedOption,
    SetOption,
    open_project,
)
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.trials import Tuning

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
        int | None, typer.Option(min=1, help="Trials side by side, a thread each; one a core when absent.")
    ] = None,
    family: FamilyOption = DEFAULT_FAMILY, objective: ObjectiveOption = None,
    changes: SetOption = None, seed: SeedOption = 0,
    ray: RayOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Search the values that the recipe's rules leave open, on this project's text.

    --set replaces values of the recipe that are not searched; the search is then around what is left of it.
    Needs the extra: pip install 'isoflop[tune]'. A law is fitted to ladders of one recipe: tune first, then
    sweep.

    Example: [bold]isoflop tune --budget 10m[/bold]
    """
    from isoflop.budget import Budget
    from isoflop.families import find
    from isoflop.pipeline import corpus_of
    from isoflop.places import place_at
    from isoflop.tuning import tune as search
    from isoflop.variant import Variant

    parsed, variant = Budget.parse(budget), Variant.of(find(family, objective), changes or ())
    home = open_project(project)
    with home.lock(), Terminal() as progress, place_at(ray, progress) as place:
        done = search(
            home, corpus_of(home), parsed, values=[v.strip() for v in values.split(",") if v.strip()],
            width=width, trials=trials, seeds=seeds, seed=seed, workers=workers, variant=variant,
            progress=progress, place=place,
        )  # fmt: skip
    if json:
        out(done)
        return
    _show(done)


def _show(done: Tuning) -> None:
    from isoflop.tuning.shown import command, head, rows, title

    table(title(done), head(done), rows(done))
    typer.echo(done.sentence)
    if done.better:
        typer.echo(f"To use it: {command(done)}")
        typer.echo(
            f"It was found at width {done.config.model.d_model}; x is times the recipe's value at each width."
        )
