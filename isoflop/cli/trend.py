"""How the whole industry grows: one command a metric, and two snapshots compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from isoflop.cli.options import IntervalOption, JsonOption
from isoflop.terminal import out
from isoflop.trend.metrics import METRICS

if TYPE_CHECKING:
    from isoflop.trend.answer import Trend
    from isoflop.trend.disclosure import Disclosure
    from isoflop.trend.specification import Choices


class AnyMetric(typer.core.TyperGroup):
    """A subcommand that is none of the known metrics is a column of the user's table."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, next(iter(METRICS)))


app = typer.Typer(
    cls=AnyMetric,
    no_args_is_help=True,
    help="How fast the industry grows: rate, doubling time, interval, best growth model, evidence of slowing,"
    " forecast.\n\nA metric is one of those below, or a column of your own table.\n\n"
    "Example: [bold]isoflop trend compute --since 2018 --frontier top10[/bold]",
    rich_markup_mode="rich",
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
    """Placeholder: each metric's own words are put here."""
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


for _known in METRICS.values():
    app.command(
        _known.name,
        short_help=f"{_known.about[0].upper()}{_known.about[1:]}.",
        help=f"Growth of {_known.about}, in {_known.unit}.\n\n"
        f"Example: [bold]isoflop trend {_known.name} --since 2018 --frontier top10[/bold]",
    )(metric)


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
