"""What watches a server from outside: a dashboard and alert rules, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import JsonOption, pairs
from isoflop.terminal import out

app = typer.Typer()


@app.command()
def dashboard(
    folder: Annotated[
        Path, typer.Option("--out", metavar="FOLDER", help="Where the files go; is made.")
    ] = Path("isoflop-dashboard"),
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="What alerts watch: first_token=1s (of 95% of requests), errors=1%, queue=4 (requests that "
            "wait), busy=90% (of the slots), idle=900s (without an answer); may be repeated.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write a Grafana dashboard and Prometheus alert rules for the metrics of isoflop serve.

    Import the first in Grafana; name the second under rule_files in prometheus.yml.

    Example: [bold]isoflop dashboard --objective first_token=300ms --objective errors=0.5%[/bold]
    """
    from isoflop.serve.dashboards import write
    from isoflop.serve.objectives import objectives

    promised = objectives(pairs(objective or [], "--objective"))
    files = write(folder, promised)
    if json:
        out({"files": [str(file) for file in files], "objectives": promised.model_dump()})
        return
    for file in files:
        typer.echo(file)
