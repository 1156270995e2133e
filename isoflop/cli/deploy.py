"""Which model running servers answer with: `deploy`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import DEFAULT_PROJECT, JsonOption, ProjectOption, open_project
from isoflop.cli.serve import named, split
from isoflop.errors import ServeError
from isoflop.interrupt import INTERRUPTED
from isoflop.quantities import SHARE, cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.serve.deploying.changing import Deploying
    from isoflop.serve.deploying.records import Deployment, Server
    from isoflop.serve.deploying.status import Rated, Status

app = typer.Typer()


@app.command()
def deploy(
    model: Annotated[
        str | None,
        typer.Argument(help="What isoflop serve takes: a model folder, an export, a .gguf file, a URL."),
    ] = None,
    project: ProjectOption = DEFAULT_PROJECT,
    name: Annotated[
        str | None, typer.Option(help="That clients use; needed where several models are served.")
    ] = None,
    canary: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Let MODEL answer this share of requests, e.g. 10%, no more."),
    ] = None,
    shadow: Annotated[
        str | None,
        typer.Option(
            metavar="SHARE", help="Ask MODEL this share of requests too, and give nobody its answers."
        ),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="SHARE", help="By which MODEL may be worse than what serves.")
    ] = "0.5%",
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Although it is worse, was not measured, or gate or verdict refused it."
        ),
    ] = False,
    promote: Annotated[bool, typer.Option("--promote", help="The canary becomes the model.")] = False,
    rollback: Annotated[
        bool,
        typer.Option("--rollback", help="End the canary or, where there is none, return to the one before."),
    ] = False,
    end_shadow: Annotated[bool, typer.Option("--end-shadow", help="Ask the shadow no more.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Show what is deployed, as without any argument.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="For running servers to have done it.")
    ] = 120.0,
    json: JsonOption = False,
) -> None:
    """Change the model while servers run: all that serve the name follow, and no request is lost.

    MODEL takes the place of what serves, which is kept for --rollback. It is refused where the ledger says
    that it is worse (bits per byte, or the task's metric on test examples), or does not know. Where no server
    runs, the next isoflop serve begins with it.

    Example: [bold]isoflop deploy my-project/artifacts/model-... --canary 10%[/bold], then
    [bold]isoflop deploy --promote[/bold] or [bold]isoflop deploy --rollback[/bold]
    """
    asked = [model is not None, promote, rollback, end_shadow, status]
    if sum(asked) > 1 or (model is None and (canary or shadow)) or (canary and shadow):
        raise ServeError(
            "one thing at a time can be deployed",
            hint="write MODEL, perhaps with --canary or --shadow, or one of --promote, --rollback, "
            "--end-shadow and --status",
        )
    shares = {
        label: _share(label, text) for label, text in (("--canary", canary), ("--shadow", shadow)) if text
    }
    allowed = SHARE.read("--tolerance", tolerance)
    if allowed < 0:
        raise ServeError(f"--tolerance is {tolerance}, below zero", hint="write e.g. 0.5%, or 0")
    from isoflop.serve.deploying.changing import Deploying
    from isoflop.serve.deploying.waiting import wait as until_done

    home = open_project(project)
    if not any(asked) or status:
        _show_status(home.folder, _statuses(project, name), json)
        return
    with Terminal() as terminal:
        changes = Deploying(home, name or (split(model)[0] if model else None), allowed, force, terminal)
        if model is not None:
            done = _placed(changes, model, shares)
        else:
            done = changes.promote() if promote else changes.rollback() if rollback else changes.end_shadow()
        terminal.log(f"{done.id}: {done.change} (version {done.version}), in the ledger")
        try:
            waited = until_done(home, done, wait, terminal)
        except KeyboardInterrupt:  # unlike a command that goes on, a second --rollback would undo the first
            terminal.log("it stays deployed, and servers go on with it: isoflop deploy --status shows them")
            raise SystemExit(INTERRUPTED) from None
        if waited.in_vain:
            changes.take_back(done, waited.why(done))
        waited.check(done)
    _show_done(done, waited.done, json)


def _share(label: str, text: str) -> float:
    """Raises ServeError for what is no share of requests."""
    found = SHARE.read(label, text)
    if not 0 < found <= 1:
        raise ServeError(
            f"{label} is {text}, which is no share of requests", hint="write e.g. 10% or 0.1, at most 100%"
        )
    return found


def _placed(changes: Deploying, model: str, shares: dict[str, float]) -> Deployment:
    where = split(model)[1]
    if "--canary" in shares:
        return changes.canary(where, shares["--canary"])
    if "--shadow" in shares:
        return changes.shadow(where, shares["--shadow"])
    (default,) = named([f"{changes.name}={where}" if changes.name else where])
    return changes.deploy(where, default)


def _statuses(project: Path, name: str | None) -> list[Status]:
    """Raises ServeError for a name that is not there."""
    from isoflop.serve.deploying.status import statuses

    found = statuses(open_project(project), name)
    if name is not None and not found:
        raise ServeError(
            f"no model is deployed or served as {name!r} by {project}",
            hint="isoflop deploy --status shows all; isoflop deploy MODEL --name NAME",
        )
    return found


def _show_done(done: Deployment, servers: list[Server], json: bool) -> None:
    if json:
        out({
            "deployment": done.model_dump(mode="json"),
            "servers": [server.model_dump(mode="json") for server in servers],
        })  # fmt: skip
    elif servers:
        many = f"{len(servers)} servers do" if len(servers) > 1 else f"{servers[0].url} does"
        typer.echo(f"{done.id}: {done.change}; {many}.")
    else:
        typer.echo(f"{done.id}: {done.change}; no server runs, and the next isoflop serve will do it.")


def _show_status(folder: Path, found: list[Status], json: bool) -> None:
    if json:
        out([status.model_dump(mode="json") for status in found])
        return
    if not found:
        typer.echo(f"Nothing is deployed or served by {folder}.")
    for status in found:
        known = status.deployment
        if known is not None:
            forced = ", forced" if known.forced else ""
            title = f"{status.name}, version {known.version} by {known.by}{forced}: {known.change}"
            table(title, ("artifact", "as", "share", "bits per byte", "bytes", "since", "thumbs up, 90%"), [
                (
                    part.artifact.path, part.role, "–" if part.share is None else f"{part.share:.4g}",
                    cell(part.artifact.bits_per_byte),
                    "–" if part.artifact.bytes is None else f"{part.artifact.bytes:,}",
                    part.artifact.since, _thumbs(part.rated),
                )
                for part in status.parts
            ])  # fmt: skip
        table(f"Servers of {status.name}", ("server", "host", "version", "state", "serves"), [
            (f.url, f.host, f.version or "as typed", f.state if f.lives else f"gone since {f.seen}", f.serves)
            for f in status.followers
        ])  # fmt: skip
        for f in status.followers:
            if f.why:
                typer.echo(f"{f.url} on {f.host} could not swap: {f.why}")


def _thumbs(rated: Rated | None) -> str:
    if rated is None or rated.up is None:
        return "–"
    return f"{rated.up.value:.0%} [{rated.up.low:.0%}, {rated.up.high:.0%}] of {rated.ratings}"
