"""Model folders put together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import DEFAULT_PROJECT, EvalTokensOption, JsonOption, ProjectOption, open_project
from isoflop.errors import ProjectError
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

app = typer.Typer()


@app.command()
def average(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Model folders of one shape.")],
    folder: Annotated[Path, typer.Option("--out", help="The new model folder.")],
    weights: Annotated[
        str | None, typer.Option(metavar="W,W,...", help="One a model, e.g. 2,1; equal when absent.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="From the best on, only those that make the average no worse.")
    ] = False,
    project: ProjectOption = DEFAULT_PROJECT,
    tokens: EvalTokensOption = 1 << 20,
    json: JsonOption = False,
) -> None:
    """Average the weights of models, and score it and them on the project's held-out text.

    Example: [bold]isoflop average MODEL MODEL --out average --project my-project[/bold]
    """
    from isoflop.averaging import average as average_models
    from isoflop.pipeline import corpus_of

    try:
        shares = None if weights is None else [float(word) for word in weights.split(",")]
    except ValueError:
        raise ProjectError(f"--weights is {weights!r}, not numbers", hint="write e.g. 2,1") from None
    with Terminal() as progress:
        made = average_models(
            models, folder, corpus_of(open_project(project)), weights=shares, greedy=greedy,
            eval_tokens=tokens, progress=progress,
        )  # fmt: skip
    if json:
        out(made)
        return
    table("Average", ("model", "share", "loss", "s.e.", "bits/byte", "s.e."), [
        (s.folder.name, f"{100 * s.share:.0f}%", f"{s.loss:.4f}", f"{s.loss_se:.4f}", cell(s.bpb),
         cell(s.bpb_se))
        for s in (*made.ingredients, made.average)
    ])  # fmt: skip
    typer.echo(folder)
