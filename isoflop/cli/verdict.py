"""What a finished artifact is worth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    IntervalOption,
    JsonOption,
    ProjectOption,
    open_project,
    whole,
)
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.gain import InferenceGain
    from isoflop.records import Gain, Interval
    from isoflop.verdict import Verdict

app = typer.Typer()


@app.command()
def verdict(
    artifact: Annotated[
        Path | None, typer.Argument(help="A model folder, or an export of one, of this project's tokenizer.")
    ] = None,
    project: ProjectOption = DEFAULT_PROJECT,
    every: Annotated[bool, typer.Option("--all", help="Every finished artifact of the project.")] = False,
    engine: Annotated[
        str,
        typer.Option(
            help="Format that model folders and dense models are served in: gguf, onnx, openvino, hf."
        ),
    ] = "gguf",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    tokens: Annotated[
        int,
        whole("Held-out tokens to score, at most; by default as many as of ladder runs."),
    ] = 131_072,
    again: Annotated[bool, typer.Option("--again", help="Time what was timed before.")] = False,
    interval: IntervalOption = 0.9,
    json: JsonOption = False,
) -> None:
    """Judge an artifact where it serves: quality, size, latency, memory, cost, and doublings of both kinds.

    It is compared with dense full-precision models of the law's sizes, exported and timed alike, and accepted
    if it is worth more than what it was made from.

    Example: [bold]isoflop verdict my-project/artifacts/gguf-... --project my-project[/bold] or
    [bold]isoflop verdict --all[/bold]
    """
    from isoflop.errors import ProjectError
    from isoflop.pipeline import corpus_of
    from isoflop.verdict import Judge

    if (artifact is None) == (not every):
        raise ProjectError("a verdict is of one artifact or of all", hint="name one, or give --all")
    home = open_project(project)
    with home.lock(), Terminal() as progress:
        judge = Judge(
            home, corpus_of(home), to=engine, threads=threads, eval_tokens=tokens, interval=interval,
            again=again, progress=progress,
        )  # fmt: skip
        found = judge.all() if artifact is None else [judge.of(artifact)]
    if json:
        documents = [v.model_dump(mode="json") for v in found]
        out(documents if every else documents[0])
    elif every:
        show_all(found)
    else:
        _show(found[0])


def show_all(found: list[Verdict]) -> None:
    """A row each, and why."""
    from isoflop.verdict_table import HEAD, TITLE, notes, row, sentence

    table(TITLE, HEAD, map(row, found))
    for line in (*notes(found), *map(sentence, found)):
        typer.echo(line)


def _show(v: Verdict) -> None:
    from isoflop.gain import BYTES, PRODUCT, SECONDS
    from isoflop.verdict_table import DENSE_LOADED

    s, seconds = v.served, v.served.seconds
    change = "" if v.change is None else f"{v.change.value:+.4f} [{v.change.low:+.4f}, {v.change.high:+.4f}]"
    table(f"{v.step}, in {s.engine}, {s.speed.threads} thread(s)", ("", "value"), [
        ("loss, nats a token", f"{s.loss:.4f} +- {s.loss_se:.4f}"),
        *([(f"its change, {'paired' if v.paired else 'unpaired'}", change)] if change else []),
        ("bits per byte", cell(s.bpb)),
        ("on disk, MB", f"{v.bytes / 1e6:.2f}"),
        ("a token, ms", f"{1e3 * seconds.value:.3f} ({1e3 * seconds.low:.3f} to {1e3 * seconds.high:.3f})"),
        (f"to the first token of {s.speed.prompt_tokens}, ms", f"{1000 * s.speed.first_token_seconds:.1f}"),
        ("memory of engine and model, MB", f"{s.speed.memory_bytes / 1e6:.1f}"),
        ("loading, s", f"{s.speed.load_seconds:.2f}"),
    ])  # fmt: skip
    rows = []
    for name, label in ((BYTES, "bytes"), (SECONDS, "seconds a token"), (PRODUCT, "both together")):
        g = v.inference[name]
        rows.append((label, f"{g.q:.4g}", f"{g.q_base.value:.4g}", _words(g.doublings), _doubts(g)))
    if v.training is not None:
        t = v.training
        rows.append(
            ("training FLOPs", f"{t.flops:.3g}", f"{t.flops_base.value:.3g}", _words(t.doublings), _doubts(t))
        )
    table("Doublings over dense models of equal loss", ("", "it", "dense", "doublings", ""), rows)
    parts = ", ".join(f"{name} {flops:.3g}" for name, flops in v.flops.items())
    typer.echo(f"Making it took {v.seconds:.1f} s and {sum(v.flops.values()):.3g} FLOPs ({parts}).")
    if not v.complete:
        typer.echo("Not all of it: the ledger does not know how a model that it was made from was made.")
    typer.echo(f"{'accepted' if v.accepted else 'refused'}: {v.why}")
    if not v.dense_quiet:
        typer.echo(DENSE_LOADED)


def _words(found: Interval) -> str:
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _doubts(found: InferenceGain | Gain) -> str:
    """What to beware of: extrapolation, and draws in which the dense models never reach the loss."""
    parts = ["extrapolated"] if found.extrapolated else []
    parts += [f"undefined in {found.undefined_share:.1%}"] if found.undefined_share else []
    return ", ".join(parts)
