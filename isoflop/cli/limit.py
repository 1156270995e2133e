"""Where growth ends, for the industry and for a project."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    IntervalOption,
    JsonOption,
    ProjectOption,
    count,
    open_project,
    typed,
    whole,
)
from isoflop.terminal import out, table

if TYPE_CHECKING:
    from isoflop.limits import IndustryAnswer, UserAnswer
    from isoflop.records import Interval

app = typer.Typer()


@app.command()
def limit(
    context: typer.Context,
    project: ProjectOption = DEFAULT_PROJECT,
    industry: Annotated[
        bool, typer.Option("--industry", help="The industry's limits alone, even beside a project.")
    ] = False,
    assumptions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML of your own in place of the packaged one.")
    ] = None,
    growth_table: Annotated[
        Path | None,
        typer.Option(
            "--table",
            metavar="FILE",
            help="Growth by all growth models of this table's top 10, in place of the assumed rate.",
        ),
    ] = None,
    days: Annotated[float | None, count("Days that this machine may compute for the project.")] = None,
    usd: Annotated[float | None, count("Money for machines like this one; needs --usd-per-hour.")] = None,
    usd_per_hour: Annotated[float | None, count("Price of an hour of such a machine.")] = None,
    draws: Annotated[int, whole("Joint draws of all that is uncertain.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: FILE.svg or .png.")] = None,
    dark: Annotated[bool, typer.Option("--dark", help="The picture for a dark page.")] = False,
) -> None:
    """Say where growth ends: when each limit of the largest runs binds, and what your project can still buy.

    Example: [bold]isoflop limit --industry[/bold] or [bold]isoflop limit --project mine --days 30[/bold]
    """
    from isoflop import limits
    from isoflop.errors import ProjectError

    if plot is not None:
        from isoflop.plots.trends import check_kind

        check_kind(plot)
    here = None
    amounts = typed(context, "days", "usd", "usd_per_hour")
    if not industry and (typed(context, "project") or project.exists()):
        here = limits.standing(open_project(project))
    elif amounts:
        raise ProjectError(
            f"{amounts[0]} is about a project, and none is looked at",
            hint="name one with --project, and leave --industry out",
        )
    assumed = limits.read_assumptions(assumptions)
    own = None if here is None else limits.user(
        here, assumed, days=days, usd=usd, usd_per_hour=usd_per_hour, draws=draws, seed=seed, level=interval
    )  # fmt: skip
    growth = None if growth_table is None else limits.of_table(growth_table)
    world = limits.industry(assumed, growth=growth, draws=draws, seed=seed, level=interval)
    if plot is not None:
        from isoflop.plots.limits import save_limits

        save_limits(plot, world, own, in_dark=dark)
        typer.echo(f"drawn: {plot}", err=True)
    if json:
        out({
            "industry": world.model_dump(mode="json"),
            "project": None if own is None else own.model_dump(mode="json"),
        })  # fmt: skip
        return
    _show_industry(world)
    if own is not None:
        _show_user(own)
    elif not industry:
        typer.echo(f"There is no project at {project}: these are the industry's limits alone.")


def _show_industry(found: IndustryAnswer) -> None:
    from isoflop.limits.answers import date_words

    table(
        f"The largest training run: {found.frontier.value:.1e} FLOP in {found.start:.1f}, growing"
        f" {found.growth}; {found.draws:,} draws, {100 * found.level:g}%",
        ("limit", "binds", "doublings left", f"FLOP allowed in {found.feasible_year:.0f}", "first"),
        [
            (x.name, date_words(x.date), _doublings(x.doublings), _flops(x.feasible), f"{x.first:.0%}")
            for x in found.limits
        ],
    )
    typer.echo(found.sentence)
    if found.free > 0:
        typer.echo(f"In {found.free:.1%} of the draws none binds before {found.horizon:.0f}.")
    for x in found.limits:
        share = "" if x.applies == 1 else f" (in {x.applies:.0%} of the draws)"
        typer.echo(f"- {x.name}: {x.what}{share}")
    typer.echo(f"Assumptions and their sources: {found.assumptions}")


def _show_user(found: UserAnswer) -> None:
    table(
        f"From {found.start}, {found.flops:.3g} FLOPs; {found.draws:,} draws, {100 * found.level:g}%",
        ("limit", "doublings left", "FLOP in all", "first"),
        [(x.name, _doublings(x.doublings), _flops(x.flops), f"{x.first:.0%}") for x in found.limits],
    )
    typer.echo(found.sentence)
    if found.loss_then is not None:
        typer.echo(
            f"At the best split they bring the loss from {_loss(found.loss_now)} to {_loss(found.loss_then)}"
            " nats a token, were all text fresh."
        )
    if found.irreducible is not None:
        typer.echo(f"Irreducible, by the law: {_loss(found.irreducible)}")
    for sentence in (*(f"{x.name}: {x.what}" for x in found.limits), *found.notes):
        typer.echo(f"- {sentence}")


def _doublings(found: Interval) -> str:
    return f"{found.value:.1f} [{found.low:.1f}, {found.high:.1f}]"


def _flops(found: Interval) -> str:
    return f"{found.value:.1e} [{found.low:.0e}, {found.high:.0e}]"


def _loss(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
