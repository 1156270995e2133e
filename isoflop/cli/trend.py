"""How the whole industry grows: one command a metric, the page of all of them, and two snapshots compared."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from isoflop.cli.options import IntervalOption, JsonOption, typed
from isoflop.errors import TrendError
from isoflop.terminal import Terminal, out
from isoflop.trend.metrics import METRICS

if TYPE_CHECKING:
    from isoflop.trend.answer import Trend
    from isoflop.trend.disclosure import Disclosure
    from isoflop.trend.specification import Choices


COLUMN = "your-column"  # stands for whatever a user's table has


class AnyMetric(typer.core.TyperGroup):
    """One command that goes by the name of any metric, or of a column of the user's table.

    It is built once: nineteen copies would slow every command down.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return [*METRICS, *super().list_commands(ctx)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        if found is not None:
            return found
        shared = copy(super().get_command(ctx, COLUMN))
        if shared is not None and cmd_name in METRICS:
            known = METRICS[cmd_name]
            shared.name, shared.hidden = cmd_name, False
            shared.short_help = f"{known.about[0].upper()}{known.about[1:]}."
            shared.help = (
                f"Growth of {known.about}, in {known.unit}.\n\n"
                f"Example: [bold]isoflop trend {cmd_name} --since 2018 --frontier top10[/bold]"
            )
        return shared


app = typer.Typer(
    cls=AnyMetric,
    no_args_is_help=True,
    help="How fast the industry grows: rate, doubling time, interval, best growth model, evidence of slowing,"
    " forecast.\n\nA metric is one of those below, or a column of your own table.\n\n"
    "Example: [bold]isoflop trend compute --since 2018 --frontier top10[/bold], or"
    " [bold]isoflop trend --all --out trend.html[/bold]",
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def every(
    context: typer.Context,
    whole: Annotated[
        bool, typer.Option("--all", help="Write every metric and the limits as one page.")
    ] = False,
    table: Annotated[
        Path | None, typer.Option("--table", "-t", help="With --all: models. None: the package's own.")
    ] = None,
    hardware: Annotated[
        Path | None, typer.Option(help="With --all: accelerators. None: the package's own.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="With --all: first date. None: models from 2018, all hardware.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="With --all: last date.")] = None,
    domain: Annotated[str | None, typer.Option(help="With --all: of models.")] = None,
    frontier: Annotated[str, typer.Option(help="With --all: of models.")] = "top10",
    page: Annotated[Path, typer.Option("--out", metavar="FILE.html", help="With --all: the page.")] = Path(
        "trend.html"
    ),
    seed: Annotated[int, typer.Option(min=0, help="With --all: of bootstraps and draws.")] = 0,
) -> None:
    names = typed(context, *(name for name in context.params if name != "whole"))
    if context.invoked_subcommand is not None:
        if whole or names:
            raise TrendError(
                f"{'--all' if whole else names[0]} stands before {context.invoked_subcommand!r}.",
                hint="Put a metric's options after it; --all is the page of every metric.",
            )
        return
    if not whole:
        raise TrendError(
            f"{names[0]} needs a metric, or --all.",
            hint="E.g. isoflop trend compute --since 2018, or isoflop trend --all.",
        )
    from isoflop.report.gathered import Window, gather
    from isoflop.report.trend import check_page, write_trend

    check_page(page)
    with Terminal() as terminal:
        window = Window(since, until, domain, frontier)
        found = gather(window, table=table, hardware=hardware, seed=seed, progress=terminal)
        terminal.log(f"the page: {page}")
    typer.echo(write_trend(found, page))


@app.command(
    COLUMN,
    hidden=True,
    help="Growth of a column of your own table.\n\n"
    "Example: [bold]isoflop trend price --table prices.csv --date-column month[/bold]",
)
def metric(
    context: typer.Context,
    table: Annotated[
        Path | None,
        typer.Option(
            "--table", "-t", help="CSV or TSV: Epoch AI's tables, or your own. None: the package's own facts."
        ),
    ] = None,
    since: Annotated[str | None, typer.Option(help="First date: 2018, 2018-06 or 2018-06-15.")] = None,
    until: Annotated[str | None, typer.Option(help="Last date; a month or a year counts whole.")] = None,
    domain: Annotated[
        str | None, typer.Option(help='E.g. language; "language only" for nothing beside it.')
    ] = None,
    frontier: Annotated[
        str,
        typer.Option(help="all points, topK (top10: among the 10 largest when they came), or records."),
    ] = "all",
    interval: IntervalOption = 0.9,
    choices: Annotated[
        bool, typer.Option("--choices", help="Also the rate under every reasonable choice.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it: FILE.png or FILE.svg.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Draw for a dark page.")] = False,
    date_column: Annotated[str | None, typer.Option(help="Of your table, where it is not found.")] = None,
    value_column: Annotated[str | None, typer.Option(help="Of your table, where it is not found.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of bootstraps and simulations.")] = 0,
    json: JsonOption = False,
) -> None:
    """Answer for the metric that the command is named after."""
    from isoflop.trend.answer import answer_to, question
    from isoflop.trend.disclosure import disclosure
    from isoflop.trend.specification import specification

    if plot is not None:
        from isoflop.plots.trends import check_kind, save_trend

        check_kind(plot)
    words: dict[str, Any] = {"since": since, "until": until, "domain": domain, "frontier": frontier}
    read, asked = question(
        context.info_name or "", path=table, date_column=date_column, value_column=value_column, **words
    )
    found = answer_to(asked, interval, seed)
    silent = disclosure(read, found.metric, since, until, domain)
    others = None
    if choices or plot is not None:
        others = specification(read, found.metric, level=interval, seed=seed, **words)
    if plot is not None and others is not None:
        save_trend(asked, found, others, plot, in_dark=dark)
        typer.echo(f"drawn: {plot}", err=True)
    if json:
        more = {"disclosure": silent} | ({"choices": others} if choices and others else {})
        out(found.model_dump(mode="json") | {key: part.model_dump(mode="json") for key, part in more.items()})
        return
    _show(found, silent)
    if choices and others:
        _show_choices(others)


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="The older snapshot of a table.")],
    after: Annotated[Path, typer.Argument(help="The newer one.")],
    json: JsonOption = False,
) -> None:
    """Compare two snapshots of a table: rows added, removed, changed, and how the rates move.

    Example: [bold]isoflop trend diff models-2024.csv models-2026.csv[/bold]
    """
    from isoflop.trend.diff import diff as compare
    from isoflop.trend.tables import read_table

    found = compare(read_table(before), read_table(after))
    if json:
        out(found)
        return
    from isoflop.terminal import table
    from isoflop.trend import shown

    for part in shown.diff_tables(found):
        table(*part)
    for line in (shown.diff_sentence(found), *found.notes):
        typer.echo(line)


def _show(t: Trend, silent: Disclosure) -> None:
    """The answer in tables and sentences."""
    from isoflop.terminal import table
    from isoflop.trend import shown

    typer.echo(shown.headline(t))
    for part in shown.tables(t):
        table(*part)
    for line in (*shown.sentences(t), *shown.disclosure_sentences(silent), *t.notes):
        typer.echo(line)


def _show_choices(found: Choices) -> None:
    from isoflop.terminal import table
    from isoflop.trend import shown

    table(*shown.choices(found))
    typer.echo(shown.choices_sentence(found))
