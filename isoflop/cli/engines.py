"""A finished model in other formats and engines: export it, score it, time it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.job import pairs_row
from isoflop.cli.options import (
    DEFAULT_PROJECT,
    CalibrateOption,
    JsonOption,
    ProjectOption,
    RoundingOption,
    open_project,
)
from isoflop.quantities import cell
from isoflop.terminal import out, table

if TYPE_CHECKING:
    from isoflop.engines.speed import EngineSpeed

app = typer.Typer()

ModelArgument = Annotated[
    Path, typer.Argument(help="A model folder, or an export of one, of this project's tokenizer.")
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of the engine.")]


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A model folder of this project's tokenizer.")],
    project: ProjectOption = DEFAULT_PROJECT,
    to: Annotated[
        str,
        typer.Option(
            help="gguf (llama.cpp), onnx (ONNX Runtime), openvino, torch (its dynamic int8), or hf (a "
            "Hugging Face folder)."
        ),
    ] = "gguf",
    kind: Annotated[
        str,
        typer.Option(
            "--type",
            help="Of a gguf's weights: f32, f16, q8_0, q6_k, q5_1, q5_k, q5_0, q4_1, q4_k, iq4_nl or q4_0; "
            "of onnx and openvino: f32, int8 or int4; of torch: int8.",
        ),
    ] = "f32",
    rounding: RoundingOption = None,
    calibrate: CalibrateOption = None,
    json: JsonOption = False,
) -> None:
    """Write a model in another format; it is kept if it reads, computes and writes as the original does.

    Token ids of 1,000 held-out lines, logits of held-out windows, and greedy text are compared, in the engine
    that will serve it, with the original whose weights are rounded alike.

    Example: [bold]isoflop export my-project/artifacts/model-... --type q8_0 --project my-project[/bold]
    """
    from isoflop.export.gated import export as write
    from isoflop.pipeline import corpus_of

    home = open_project(project)
    with home.lock():
        done = write(home, corpus_of(home), model, to=to, kind=kind, rounding=rounding, calibrate=calibrate)
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


@app.command(name="eval")
def evaluate(
    model: ModelArgument,
    project: ProjectOption = DEFAULT_PROJECT,
    tokens: Annotated[int, typer.Option(help="Held-out tokens to score, at most.")] = 1 << 20,
    speed: Annotated[bool, typer.Option("--speed", help="Also time its engine on this machine.")] = False,
    threads: ThreadsOption = 1,
    json: JsonOption = False,
) -> None:
    """Score a model folder, or an exported file in its engine, on the project's held-out text.

    Example: [bold]isoflop eval my-project/artifacts/model-... --speed --project my-project[/bold]
    """
    from isoflop.engines.speed import measure
    from isoflop.pipeline import corpus_of
    from isoflop.using import evaluate_model

    corpus = corpus_of(open_project(project))
    timed = measure(model, threads=threads) if speed else None
    scores = evaluate_model(model, corpus, eval_tokens=tokens, threads=threads)
    if json:
        out(vars(scores) | ({"speed": timed.model_dump()} if timed else {}))
        return
    table(f"{model}", ("", "value", "s.e."), [
        ("loss, nats a token", f"{scores.loss:.4f}", f"{scores.loss_se:.4f}"),
        ("bits per byte", cell(scores.bpb), cell(scores.bpb_se)),
        *pairs_row(scores.next_accuracy, scores.next_accuracy_se),
        ("held-out tokens", f"{scores.tokens:,}", ""),
        ("predicted tokens", f"{scores.predicted:,}", ""),
    ])  # fmt: skip
    if timed:
        _speed_table(timed)


def _speed_table(timed: EngineSpeed) -> None:
    def rate(found: Any) -> str:
        return f"{found.median:,.0f} ({found.low:,.0f} to {found.high:,.0f})"

    table(f"{timed.engine}, {timed.threads} thread(s), one text at a time", ("", "value"), [
        ("prompt, tokens/s", rate(timed.prefill)),
        ("new text, tokens/s", rate(timed.decode)),
        (f"to the first token of {timed.prompt_tokens}, ms", f"{1000 * timed.first_token_seconds:.1f}"),
        ("loading, s", f"{timed.load_seconds:.2f}"),
        ("memory of engine and model, MB", f"{timed.memory_bytes / 1e6:.1f}"),
        ("on disk, MB", f"{timed.disk_bytes / 1e6:.2f}"),
        ("of the memory's bandwidth", f"{timed.bandwidth_share:.0%} of {timed.bandwidth / 1e9:.1f} GB/s"),
    ])  # fmt: skip
    if not timed.quiet:
        typer.echo(
            f"The machine was not quiet: its load was {timed.load_before:.1f} before and "
            f"{timed.load_after:.1f} after, so that these speeds are too low."
        )
