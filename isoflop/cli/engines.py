"""A finished model in other formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.adapt import RoleOption
from isoflop.cli.options import (
    DEFAULT_PROJECT,
    CalibrateOption,
    JsonOption,
    ProjectOption,
    RoundingOption,
    open_project,
    pairs,
)
from isoflop.terminal import Terminal, out, table

app = typer.Typer()


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model folder of this project's tokenizer.")],
    project: ProjectOption = DEFAULT_PROJECT,
    to: Annotated[
        str,
        typer.Option(
            help="gguf (llama.cpp), onnx (ONNX Runtime), openvino, torch (its dynamic int8), "
            "compressed-tensors (vLLM, on GPUs), or hf (a Hugging Face folder)."
        ),
    ] = "gguf",
    kind: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Of a gguf's weights: f32, f16, q8_0, q6_k, q5_1, q5_k, q5_0, q4_1, q4_k, iq4_nl or q4_0; "
            "of onnx and openvino: f32, int8 or int4; of torch: int8; "
            "of compressed-tensors: w4a16 or w8a16. The first of them when absent.",
        ),
    ] = None,
    rounding: RoundingOption = None,
    calibrate: CalibrateOption = None,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", metavar="FILE", help="Of an adapted model: examples that it is checked on."),
    ] = None,
    columns: RoleOption = None,
    json: JsonOption = False,
) -> None:
    """Write a model in another format; it is kept if it reads, computes and writes as the original does.

    Token ids of 1,000 held-out lines, logits of held-out windows, and greedy text are compared, in the engine
    that will serve it, with the original whose weights are rounded alike. What isoflop adapt made is written
    with --to onnx as f32 or int8, and compared on up to 1,000 examples of --data.

    Example: [bold]isoflop export my-project/artifacts/model-... --type q8_0 --project my-project[/bold]
    """
    from isoflop.adapting.saved import task_name
    from isoflop.export.adapted import TASKS

    if task_name(model) in TASKS:
        _export_adapted(model, project, to, kind, data or (), columns or (), json)
        return
    from isoflop.export.gated import export as write
    from isoflop.pipeline import corpus_of

    home = open_project(project)
    with home.lock(), Terminal() as progress:
        done = write(
            home, corpus_of(home), model, to=to, kind=kind, rounding=rounding, calibrate=calibrate,
            progress=progress,
        )  # fmt: skip
    if json:
        out(done)
        return
    parity = done.parity
    table(", ".join(filter(None, (done.format, done.kind, done.rounding))), ("", ""), [
        ("bytes", f"{done.bytes:,}"),
        ("bits a weight, tokenizer included", f"{done.bits_per_weight:.2f}"),
        ("held-out lines with the same tokens", f"{parity.lines:,}"),
        ("logits differ by, of their spread", f"{parity.deviation:.3%} of {parity.tolerance:.3%} allowed"),
        ("tokens written alike", f"{parity.greedy}"),
    ])  # fmt: skip
    typer.echo(home.folder / done.path)


def _export_adapted(
    model: Path, project: Path, to: str, kind: str | None, data: Sequence[Path], columns: Sequence[str],
    json: bool,
) -> None:  # fmt: skip
    from isoflop.adapting.quiet import quiet
    from isoflop.export.adapted import export_adapted

    home = open_project(project)
    with home.lock(), quiet(), Terminal() as progress:
        done = export_adapted(
            home, model, data, to=to, kind=kind or "f32", columns=pairs(columns, "--map"), progress=progress
        )
    if json:
        out(done)
        return
    table(f"{done.format}, {done.kind}", ("", ""), [
        ("bytes", f"{done.bytes:,} of {done.source_bytes:,}"),
        ("examples compared", f"{done.examples:,}"),
        ("logits differ by, of their spread", f"{done.deviation:.3%} of {done.tolerance:.3%} allowed"),
        ("the same labels", "–" if done.alike is None else f"{done.alike:.2%}"),
    ])  # fmt: skip
    typer.echo(home.folder / done.path)
