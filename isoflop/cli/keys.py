"""The keys that open a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import DEFAULT_PROJECT, JsonOption, ProjectOption, open_project, whole
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.serve.keys import Key

app = typer.Typer(
    no_args_is_help=True,
    help="API keys of isoflop serve: new, list, revoke.\n\n"
    "Example: [bold]isoflop keys new alice --rpm 60 --expires 30d --project my-project[/bold]",
)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose it is, as the audit log and the metrics show it.")],
    rpm: Annotated[int | None, whole("Requests a minute, at most.")] = None,
    tpm: Annotated[int | None, whole("Tokens a minute, of prompts and answers, at most, e.g. 100k.")] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="TIME|DATE", help="30d, 12h, or a date (its first moment in UTC). None: never."),
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="infer, metrics, or admin: metrics, and what a server runs; may be repeated. infer when "
            "absent."
        ),
    ] = None,
    project: ProjectOption = DEFAULT_PROJECT,
) -> None:
    """Make a key. It is printed this once: the ledger keeps a hash of it.

    Example: [bold]isoflop keys new alice --rpm 60 --tpm 100k --expires 30d[/bold]
    """
    from isoflop.serve.keys import Keys

    keys = Keys(open_project(project, create=True))
    text, key = keys.new(name, scopes=scope or ("infer",), rpm=rpm, tpm=tpm, expires=expires)
    said = f"{key.name}: id {key.id}, {_limits(key)}; keep it, it is not shown again"
    Terminal().log(said)
    typer.echo(text)


@app.command("list")
def show(project: ProjectOption = DEFAULT_PROJECT, json: JsonOption = False) -> None:
    """Show the keys, with neither secrets nor hashes.

    Example: [bold]isoflop keys list --json[/bold]
    """
    from isoflop.serve.keys import Keys

    found = Keys(open_project(project)).all()
    if json:
        out([{**key.model_dump(mode="json", exclude={"salt", "hash"}), "state": key.state} for key in found])
        return
    table(f"Keys of {project}", ("name", "id", "scopes", "rpm", "tpm", "made", "expires", "state"), [
        (k.name, k.id, " ".join(k.scopes), k.rpm or "–", k.tpm or "–", k.made, k.expires or "never", k.state)
        for k in found
    ])  # fmt: skip


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="NAME|ID", help="Of a key that is not revoked yet.")],
    project: ProjectOption = DEFAULT_PROJECT,
) -> None:
    """End a key for good. Running servers know within two seconds.

    Example: [bold]isoflop keys revoke alice[/bold]
    """
    from isoflop.serve.keys import Keys

    revoked = Keys(open_project(project)).revoke(key)
    Terminal().log(f"{revoked.name}: id {revoked.id} is revoked")


def _limits(key: Key) -> str:
    """What it opens, and how much of it, in words."""
    rates = [f"{n:,} {of} a minute" for n, of in ((key.rpm, "requests"), (key.tpm, "tokens")) if n]
    until = f"until {key.expires}" if key.expires else "until it is revoked"
    return ", ".join((f"for {' and '.join(key.scopes)}", *rates, until))
