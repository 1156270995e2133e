"""Several data sets learned in order."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.adapt import RoleOption
from isoflop.cli.options import JsonOption, SeedOption, pairs
from isoflop.errors import AdaptError
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.adapting.continual import InOrder

app = typer.Typer()


@app.command("adapt-sequence")
def adapt_sequence(
    model: Annotated[Path, typer.Argument(help="A folder of a model of transformers.")],
    data: Annotated[list[Path], typer.Option(help="Examples, once for each data set, in order.")],
    task: Annotated[str, typer.Option(help="The task of all of them, e.g. classification.")],
    to: Annotated[Path, typer.Option("--out", help="New folder of the model or models, and the picture.")],
    columns: RoleOption = None,
    replay: Annotated[float, typer.Option(help="Share of each batch from earlier data sets.")] = 0.0,
    ewc: Annotated[
        float,
        typer.Option(
            help="Strength of elastic weight consolidation: 1 counts each earlier example once, which holds "
            "next to nothing; try 10000 to 100000, or --replay."
        ),
    ] = 0.0,
    per_task: Annotated[
        bool, typer.Option("--per-task", help="An adapter for each data set, chosen when predicting.")
    ] = False,
    method: Annotated[
        str | None, typer.Option(help="How it is adapted; full, or with --per-task lora.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; the method's own when absent.")] = None,
    epochs: Annotated[float, typer.Option(help="Passes over each data set.")] = 3.0,
    max_length: Annotated[int | None, typer.Option(help="Tokens of an input at most.")] = None,
    seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Learn several data sets of one task in order, and measure what is forgotten.

    Example: [bold]isoflop adapt-sequence MODEL --task classification --data a.csv --data b.csv --replay 0.2
    --out both[/bold]
    """
    from isoflop.adapting.continual import Against, learn_in_order, stages_of
    from isoflop.adapting.methods import method_of
    from isoflop.adapting.quiet import quiet
    from isoflop.adapting.records import AdaptConfig
    from isoflop.adapting.saved import save_adapted
    from isoflop.plots.continual import save_matrix
    from isoflop.tasks import load_base, task_of

    if to.exists():
        raise AdaptError(f"{to} exists already", hint="name another folder with --out")
    way = method_of(method or ("lora" if per_task else "full"))
    config = AdaptConfig(task=task, method=way.name, lr=lr or way.lr, epochs=epochs, seed=seed)
    against = Against(replay=replay, ewc=ewc, per_task=per_task)
    found, base, notes = task_of(task), load_base(model, max_length=max_length), list[str]()
    with quiet(), Terminal() as progress:
        names = pairs(columns or [], "--map")
        stages = stages_of(found, data, names, seed=seed, notes=notes, progress=progress)
        answer, spec, models = learn_in_order(
            found, base, stages, config, against, notes=notes, progress=progress
        )
        for name, net in zip(answer.names if per_task else ("model",), models, strict=True):
            save_adapted(to / name, found, base, spec, answer.config, net)
    save_matrix(to / "sequence.png", answer)
    if json:
        out({"folder": str(to), **answer.model_dump(mode="json")})
        return
    _show(answer)
    typer.echo(to)


def _show(found: InOrder) -> None:
    rows = [("before", *map(cell, found.before))]
    rows += [(f"after {name}", *map(cell, row)) for name, row in zip(found.names, found.scores, strict=True)]
    table(f"{found.metric} on the test examples of", ("", *found.names), rows)
    table(
        "over all", ("", "value", "low", "high"),
        [
            (name, f"{x.value:+.4f}", f"{x.low:+.4f}", f"{x.high:+.4f}")
            for name, x in (
                ("average", found.average), ("backward transfer", found.backward),
                ("forward transfer", found.forward),
            )
        ],
    )  # fmt: skip
    for note in found.notes:
        typer.echo(note)
