"""What users of the server said of its answers."""

from __future__ import annotations

import json as json_text
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import DEFAULT_PROJECT, ProjectOption, open_project

app = typer.Typer(
    no_args_is_help=True,
    help="What users said of answers, by the page's thumbs or /v1/feedback.\n\n"
    "Example: [bold]isoflop feedback export --out liked.jsonl[/bold]",
)


@app.callback()
def feedback() -> None: ...


class Rating(StrEnum):
    up = "up"
    down = "down"


@app.command()
def export(
    file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="JSON lines; on stdout when absent.")
    ] = None,
    rating: Annotated[Rating, typer.Option(help="Which answers.")] = Rating.up,
    edited: Annotated[
        bool, typer.Option("--edited", help="Also with texts that are not what the model was asked and gave.")
    ] = False,
    project: ProjectOption = DEFAULT_PROJECT,
) -> None:
    """Write rated answers as a data set that isoflop adapt --task generation learns from.

    A line is a prompt and its response, or the messages of a chat. Only ratings that came with their prompt
    and answer can be used, as those of the page do. Where these are not what the model was asked and gave, as
    of answers that somebody has corrected, they are left out without --edited.

    Example: [bold]isoflop feedback export --out liked.jsonl --rating up --project my-project[/bold]
    """
    from isoflop.errors import ProjectError
    from isoflop.serve.feedback import export as exported
    from isoflop.store import atomic_write

    found = exported(open_project(project), rating.value, edited=edited)
    less = f"{found.without} without prompt and answer, {found.edited} with other texts than answered"
    if not found.rows:
        raise ProjectError(
            f"{project} has no answers to export: {found.ratings} are rated {rating.value}"
            + (f", of these {less}" if found.ratings else ""),
            hint="take the last with --edited" if found.edited
            else "rate answers on the server's page, or send prompt and answer to /v1/feedback",
        )  # fmt: skip
    text = "".join(json_text.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    if file is None:
        typer.echo(text, nl=False)
    else:
        atomic_write(file, text)
    same = found.ratings - found.without - found.edited - len(found.rows)
    typer.echo(
        f"{len(found.rows)} of {found.ratings} answers rated {rating.value}; "
        f"left out: {less}, {same} the same as others",
        err=True,
    )
