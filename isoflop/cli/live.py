"""A running server beside the ledger: `eval --live`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import extra, open_project
from isoflop.errors import ProjectError
from isoflop.quantities import SHARE
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.records import Interval
    from isoflop.serve.live import Live
    from isoflop.serve.live_labels import LiveLabels

LiveOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Compare what this server runs with its row in the ledger; URL#NAME names one of its models.",
    ),
]
WindowsOption = Annotated[int, typer.Option(min=2, help="Held-out windows that --live asks for.")]
LiveDataOption = Annotated[
    list[Path] | None,
    typer.Option(help="Of an adapted model that is --live: the files that it was adapted with."),
]
ToleranceOption = Annotated[str, typer.Option(help="Of --live: the difference that is none, as 1% or 0.01.")]


def compare_live(
    project: Path, url: str, models: Sequence[Path], windows: int, data: Sequence[Path], tolerance: str,
    seed: int, *, json: bool,
) -> None:  # fmt: skip
    """Ends the command with 1 where what is served is not what the ledger has."""
    if len(models) > 1:
        raise ProjectError("a server is compared with one artifact", hint="name one, or none")
    with extra("serve"):
        from isoflop.serve.live import live
    from isoflop.engines import opened
    from isoflop.pipeline import corpus_of
    from isoflop.store import HASH_DIGITS, content_hash

    home, allowed = open_project(project), SHARE.read("--tolerance", tolerance)
    hash = content_hash(opened(models[0]))[:HASH_DIGITS] if models else None
    found: Live | LiveLabels
    with Terminal() as progress:
        if data:
            from isoflop.serve.live_labels import live_labels

            found = live_labels(home, data, url, hash=hash, tolerance=allowed, progress=progress)
        else:
            found = live(
                home, corpus_of(home), url, hash=hash, windows=windows, tolerance=allowed, seed=seed,
                progress=progress,
            )  # fmt: skip
    if json:
        out(found.model_dump(mode="json"))
    else:
        _labels_table(found) if data else _bits_table(found)  # type: ignore[arg-type]
        typer.echo(f"{'same' if found.same else 'differs'}: {found.why}")
    if not found.same:
        raise typer.Exit(1)


def _bits_table(found: Live) -> None:
    title = f"{found.model} at {found.url} ({found.engine}), {found.windows} held-out windows"
    table(title, ("bits per byte", "value", "90% interval"), [
        ("live", *_cells(found.bits)),
        (f"the ledger's row of {found.row_hash}", *_cells(found.row_bits)),
        ("difference, of the same windows", *_cells(found.difference, "+")),
        ("tolerance", f"{found.tolerance:.4f}", ""),
    ])  # fmt: skip
    if found.share < 1:
        typer.echo(f"the last {1 - found.share:.1%} of each window found no room in the server's context")


def _labels_table(found: LiveLabels) -> None:
    live, row, apart = found.score, found.row_score, found.apart
    title = f"{found.model} at {found.url} ({found.engine}), {live.examples:,} test examples"
    table(title, ("", "value", "90% interval"), [
        (f"{live.metric}, live", f"{live.value:.4f}", f"{live.low:.4f} to {live.high:.4f}"),
        (f"{row.metric}, in the ledger", f"{row.value:.4f}", f"{row.low:.4f} to {row.high:.4f}"),
        ("live above the artifact", f"{apart.difference:+.4f}", f"{apart.low:+.4f} to {apart.high:+.4f}"),
        ("share of other labels", *_cells(found.differing)),
        ("tolerance", f"{found.tolerance:.4f}", ""),
    ])  # fmt: skip


def _cells(found: Interval, sign: str = "") -> tuple[str, str]:
    return f"{found.value:{sign}.4f}", f"{found.low:{sign}.4f} to {found.high:{sign}.4f}"
