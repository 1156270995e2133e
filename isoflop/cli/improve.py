"""The command that searches a smaller and faster model within limits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    BudgetOption,
    EvalTokensOption,
    JsonOption,
    ProjectOption,
    SeedOption,
    count,
    open_project,
)
from isoflop.cli.verdict import show_all
from isoflop.quantities import BYTES, NUMBER, SHARE
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.improving.records import Improvement, Limits
    from isoflop.progress import Progress
    from isoflop.store import Project
    from isoflop.verdict import Verdict

app = typer.Typer()


@app.command()
def improve(
    model: Annotated[Path, typer.Argument(help="A folder of our decoder, of this project's tokenizer.")],
    max_bytes: Annotated[
        str | None, typer.Option(metavar="BYTES", help="On disk, tokenizer included: 4MB, 800kB.")
    ] = None,
    max_ms: Annotated[
        str | None,
        typer.Option("--max-ms-per-token", metavar="MS", help="Of new text, one text at a time: 1, 0.2."),
    ] = None,
    max_loss_increase: Annotated[
        str, typer.Option(metavar="SHARE", help="By which the held-out loss may rise: 1%, 0.01.")
    ] = "1%",
    budget: BudgetOption = "10m",
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT",
            help="gguf (llama.cpp), onnx (ONNX Runtime), openvino, hf (transformers) alone; may be repeated. "
            "All for CPUs that are installed when absent.",
        ),
    ] = None,
    heal_tokens: Annotated[
        float | None, count("Training tokens of each pruned shape; by the budget when absent, 0: no pruning.")
    ] = None,
    verdicts: Annotated[
        bool,
        typer.Option("--verdicts", help="Also judge each step to the recommended model: isoflop verdict."),
    ] = False,
    eval_tokens: EvalTokensOption = 131_072,
    project: ProjectOption = DEFAULT_PROJECT, seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Search for the smallest and fastest model within limits: pruned and healed, rounded, in its engine.

    What is cheap to know comes first; what may be on the front of loss, bytes and latency is built and
    measured on this machine. The recommended model has the least bytes x latency within the limits. It needs
    isoflop's extra tune (Optuna).

    Example: [bold]isoflop improve my-project/artifacts/model-... --max-bytes 4MB -p my-project[/bold]
    """
    from isoflop.budget import Budget
    from isoflop.improving import improve as search
    from isoflop.pipeline import corpus_of
    from isoflop.verdict import Judge

    limits, parsed = _limits(max_bytes, max_ms, max_loss_increase), Budget.parse(budget)
    home = open_project(project)
    with home.lock(), Terminal() as progress:
        if verdicts:
            Judge(home, corpus_of(home))  # says at once where there is no law
        done = search(
            home, corpus_of(home), model, limits, parsed, formats=engine or (),
            heal_tokens=None if heal_tokens is None else int(heal_tokens), eval_tokens=eval_tokens, seed=seed,
            progress=progress,
        )  # fmt: skip
        judged = _judged(home, done, progress) if verdicts else []
    if json:
        out(done.model_dump(mode="json") | {"verdicts": [v.model_dump(mode="json") for v in judged]})
        return
    _show(done)
    if judged:
        show_all(judged)
    assert done.best is not None
    typer.echo(home.folder / done.trials[done.best].path)


def _judged(home: Project, done: Improvement, progress: Progress) -> list[Verdict]:
    """The steps to the recommended model, in its engine, or llama.cpp where that has no float models."""
    from isoflop.export.gated import FORMATS
    from isoflop.improving.space import EXACT
    from isoflop.pipeline import corpus_of
    from isoflop.verdict import Judge

    assert done.best is not None
    best = done.trials[done.best]
    to = best.candidate.format if EXACT in FORMATS[best.candidate.format].kinds else "gguf"
    judge = Judge(
        home, corpus_of(home), to=to, threads=best.threads, eval_tokens=done.eval_tokens, progress=progress
    )
    return [judge.of(home.folder / step.path) for step in best.steps]


def _limits(max_bytes: str | None, max_ms: str | None, max_loss_increase: str) -> Limits:
    """As they were typed. Raises as `Quantity.read` does."""
    from isoflop.improving.records import Limits

    return Limits(
        bytes=None if max_bytes is None else BYTES.read("--max-bytes", max_bytes),
        seconds=None if max_ms is None else NUMBER.read("--max-ms-per-token", max_ms) / 1000,
        loss_increase=SHARE.read("--max-loss-increase", max_loss_increase),
    )


def _show(done: Improvement) -> None:
    from isoflop.improving.shown import HEAD, chain, left_out, noisy, rows, spent, title

    table(title(done), HEAD, rows(done))
    typer.echo(done.sentence)
    if steps := chain(done):
        typer.echo(f"Steps: {'; '.join(steps)}.")
    for line in filter(None, (left_out(done), spent(done), noisy(done))):
        typer.echo(line)
