"""A smaller file of a finished model: bits where they count, or weights that were trained for few bits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    CalibrateOption,
    EvalTokensOption,
    JsonOption,
    ProjectOption,
    RoundingOption,
    SeedOption,
    count,
    open_project,
)
from isoflop.errors import TrainError
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.export.gated import Export
    from isoflop.store import Project
    from isoflop.transforms import Transform
    from isoflop.transforms.qat import Training

app = typer.Typer()


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="A model folder of this project's tokenizer.")],
    project: ProjectOption = DEFAULT_PROJECT,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", help="Of the file, tokenizer included: 1.5MB, 800kB.")
    ] = None,
    max_loss_increase: Annotated[
        str | None,
        typer.Option("--max-loss-increase", help="Share by which the held-out loss may rise: 1%, 0.01."),
    ] = None,
    rounding: RoundingOption = None,
    calibrate: CalibrateOption = None,
    train: Annotated[
        float | None,
        count("Instead: train on for so many tokens with all weights rounded to --type, e.g. 1M."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--type", help="Of --train: q8_0, q5_1, q5_0, q4_1 or q4_0.")
    ] = None,
    train_by: Annotated[
        str, typer.Option(help="distill, with the unrounded model as teacher, or train, on the text alone.")
    ] = "distill",
    lr_scale: Annotated[float, typer.Option(help="Multiplies the learning rates of --train.")] = 0.3,
    eval_tokens: EvalTokensOption = 131_072,
    seed: SeedOption = 0,
    json: JsonOption = False,
) -> None:
    """Write a GGUF file whose matrices have as many bits as they need, within a limit on bytes or on loss.

    What rounding costs is measured matrix by matrix. With --train all have one type, and the model is trained
    on with weights rounded to it (quantization-aware training). The file passes the gate of isoflop export,
    and is scored in llama.cpp.

    Example: [bold]isoflop quantize MODEL --max-loss-increase 1% -p my-project[/bold] or
    [bold]isoflop quantize MODEL --train 1M --type q4_0 -p my-project[/bold]
    """
    from isoflop.quantities import BYTES, SHARE
    from isoflop.transforms.qat import Training

    home = open_project(project)
    if train is not None:
        if {max_bytes, max_loss_increase, rounding, calibrate} != {None}:
            raise TrainError(
                "weights that are trained have one type, and are not rounded by limits or calibration",
                hint="leave out --train, or --max-bytes, --max-loss-increase, --rounding and --calibrate",
            )
        training = Training(kind or "q4_0", int(train), train_by, lr_scale, seed)
        _train(home, model, training, eval_tokens, json)
        return
    if kind is not None:
        raise TrainError(
            f"--type {kind} is for --train: else each matrix has a type of its own",
            hint="leave it out, or write one type with isoflop export --type",
        )
    most = None if max_bytes is None else BYTES.read("--max-bytes", max_bytes)
    rise = None if max_loss_increase is None else SHARE.read("--max-loss-increase", max_loss_increase)
    _choose(home, model, most, rise, rounding, calibrate, eval_tokens, json)


def _choose(
    home: Project, model: Path, most: float | None, rise: float | None, rounding: str | None,
    calibrate: int | None, eval_tokens: int, json: bool,
) -> None:  # fmt: skip
    """Types within a limit."""
    from isoflop.pipeline import corpus_of
    from isoflop.transforms.quantize import quantize as write

    with home.lock(), Terminal() as progress:
        done = write(
            home, corpus_of(home), model, max_bytes=most, max_loss_increase=rise, rounding=rounding,
            calibrate=calibrate, eval_tokens=eval_tokens, progress=progress,
        )  # fmt: skip
    if json:
        out(done)
        return
    rows = [(name, c.kind, f"{c.bytes:,}", f"{c.nats:.5f}") for name, c in done.matrices.items()]
    table("What each matrix has", ("matrix", "type", "bytes", "costs, nats a token"), rows)
    rise_row = ("the loss rises by", "", f"{done.found:+.4f} ({done.expected:.4f} expected)")
    _show(home, "gguf, mixed", done.transform, done.export, rise_row)


def _train(home: Project, model: Path, training: Training, eval_tokens: int, json: bool) -> None:
    """Weights trained for one type."""
    from isoflop.pipeline import corpus_of
    from isoflop.transforms.qat import UNTRAINED, train_rounded

    with home.lock(), Terminal() as progress:
        done = train_rounded(
            home, corpus_of(home), model, training, eval_tokens=eval_tokens, progress=progress
        )
    if json:
        out(done)
        return
    loss = ("loss without training", "", f"{done.transform.measured[UNTRAINED]:.4f}")
    _show(home, f"gguf, {training.kind}, trained for it", done.transform, done.export, loss)


def _show(home: Project, title: str, made: Transform, file: Export, more: tuple[str, str, str]) -> None:
    """The original beside the file, and where that is."""
    before, after = made.before, made.after
    assert before is not None
    rows: list[tuple[Any, ...]] = [
        ("loss, nats a token", f"{before.loss:.4f}", f"{after.loss:.4f}"),
        more,
        ("bits per byte", cell(before.bpb), cell(after.bpb)),
        ("bytes", f"{4 * before.params_total:,}", f"{file.bytes:,}"),
        ("bits a weight, tokenizer included", "32", f"{file.bits_per_weight:.2f}"),
        ("FLOPs spent", "", f"{made.flops_total:.3g}"),
    ]
    table(title, ("", "original", "rounded"), rows)
    typer.echo(home.folder / file.path)
