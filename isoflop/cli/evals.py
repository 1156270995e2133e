"""Finished models judged: `eval`, with a table for each question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.job import pairs_row
from isoflop.cli.live import LiveDataOption, LiveOption, ToleranceOption, WindowsOption, compare_live
from isoflop.cli.options import DEFAULT_PROJECT, EvalTokensOption, JsonOption, ProjectOption, open_project
from isoflop.errors import ProjectError
from isoflop.quantities import cell
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.engines.speed import EngineSpeed
    from isoflop.evaluate import HeldOut
    from isoflop.records import Interval
    from isoflop.scoring.asking import Answers
    from isoflop.scoring.completions import Completions
    from isoflop.scoring.documents import Documents
    from isoflop.scoring.ensemble import Comparison
    from isoflop.scoring.harness import Tasks
    from isoflop.scoring.robustness import Robustness

app = typer.Typer()
SHOWN = 5  # documents at either end of the table

NewTokensOption = Annotated[int, typer.Option(min=1, help="Tokens of a completion.")]
TemperatureOption = Annotated[float, typer.Option(min=0, help="Of completions; 0: the likeliest token.")]


@app.command(name="eval")
def evaluate(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="MODEL...", help="Model folders, or exports, of this project's tokenizer."),
    ] = None,
    project: ProjectOption = DEFAULT_PROJECT,
    tokens: EvalTokensOption = 1 << 20,
    by_document: Annotated[bool, typer.Option("--by-document", help="Perplexity of each document.")] = False,
    completions: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Let it continue N cuts of held-out Python: does it parse?")
    ] = 0,
    new_tokens: NewTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    robust: Annotated[
        bool, typer.Option("--robust", help="The loss after contexts with typos, other case, or cut.")
    ] = False,
    rate: Annotated[
        list[float] | None,
        typer.Option(help="Share of the words, or of the context, that --robust disturbs; may be repeated."),
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(help="A task of lm-eval, or a folder of them: YAML with local data files.")
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Of several models, also the mean of their probabilities.")
    ] = False,
    live: LiveOption = None,
    windows: WindowsOption = 64,
    data: LiveDataOption = None,
    tolerance: ToleranceOption = "1%",
    speed: Annotated[bool, typer.Option("--speed", help="Also time its engine on this machine.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the engine.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of documents, cuts, disturbances and sampling.")] = 0,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Score model folders, or exported files in their engines, on the project's held-out text.

    What was asked before of the same file is read from the ledger; speeds are measured anew. With --live a
    running server is compared with the ledger's row of what it runs, or of MODEL; its key is read from
    ISOFLOP_API_KEY. The command ends with 1 where they differ.

    Example: [bold]isoflop eval my-project/artifacts/model-... --speed --project my-project[/bold],
    [bold]isoflop eval MODEL MODEL --ensemble --by-document --project my-project[/bold], or
    [bold]isoflop eval --live http://127.0.0.1:8000 --project my-project[/bold]
    """
    if live is not None:
        compare_live(project, live, models or [], windows, data or [], tolerance, seed, json=json)
        return
    if not models:
        raise ProjectError("there is no model to score", hint="name one, or a server: --live URL")
    from isoflop.engines import opened
    from isoflop.pipeline import corpus_of
    from isoflop.scoring import timed
    from isoflop.scoring.asking import Asking, Questions
    from isoflop.scoring.robustness import RATES

    if ensemble and len(models) < 2:
        raise ProjectError("an ensemble needs two models or more", hint="name their paths")
    home, models = open_project(project), [opened(model) for model in models]
    asked = Questions(
        tokens, threads, by_document, completions, new_tokens, temperature, robust or bool(rate),
        tuple(rate or RATES), tasks, seed,
    )  # fmt: skip
    with Terminal() as progress:
        asking = Asking(home, corpus_of(home), asked, progress)
        speeds = [timed(home, model, threads=threads) if speed else None for model in models]
        loss = asking.loss(models[0]) if len(models) == 1 else None
        comparison = asking.comparison(models, ensemble=ensemble) if len(models) > 1 else None
        answers = [asking.rest(model) for model in models]
    if json:
        each = [_document(a, s) for a, s in zip(answers, speeds, strict=True)]
        out(_together(loss, comparison, models, each))
        return
    if loss:
        _loss_table(models[0], loss)
    if comparison:
        _comparison_table(comparison)
    for model, answer, timing in zip(models, answers, speeds, strict=True):
        if comparison and any((*answer, timing)):
            typer.echo(f"\n{model}")
        _show(answer, timing)


def _together(
    loss: HeldOut | None, comparison: Comparison | None, models: list[Path], each: list[dict[str, Any]]
) -> dict[str, Any]:
    """JSON of one model's loss, or of several models' comparison, with what else each was asked."""
    if comparison is None:
        return {name: value for name, value in vars(loss).items() if name != "windows"} | each[0]
    named = [{"model": str(m), **one} for m, one in zip(models, each, strict=True)]
    return {"comparison": comparison.model_dump(mode="json"), "models": named}


def _document(answers: Answers, timing: EngineSpeed | None) -> dict[str, Any]:
    """JSON of what was asked beside the loss."""
    found = {name: value.model_dump(mode="json") for name, value in answers._asdict().items() if value}
    if timing:
        found["speed"] = timing.model_dump(mode="json") | {"quiet": timing.quiet}
    return found


def _loss_table(model: Path, scores: HeldOut) -> None:
    table(f"{model}", ("", "value", "s.e."), [
        ("loss, nats a token", f"{scores.loss:.4f}", cell(scores.loss_se)),
        ("bits per byte", cell(scores.bpb), cell(scores.bpb_se)),
        *pairs_row(scores.next_accuracy, scores.next_accuracy_se),
        ("held-out tokens", f"{scores.tokens:,}", ""),
        ("predicted tokens", f"{scores.predicted:,}", ""),
    ])  # fmt: skip


def _comparison_table(found: Comparison) -> None:
    rows = [*found.members, *([found.ensemble] if found.ensemble else [])]
    table(
        f"{found.windows:,} held-out windows of {found.context} tokens",
        ("model", "loss", "s.e.", "bits/byte", "s.e.", "over the best", "s.e."),
        [
            (_short(m.name), f"{m.loss:.4f}", f"{m.loss_se:.4f}", f"{m.bpb:.4f}", f"{m.bpb_se:.4f}",
             f"{m.change:+.4f}", f"{m.change_se:.4f}")
            for m in rows
        ],
    )  # fmt: skip


def _show(answers: Answers, timing: EngineSpeed | None) -> None:
    """The tables of one model."""
    if answers.documents:
        _documents_table(answers.documents)
    if answers.completions:
        _completions_table(answers.completions)
    if answers.robustness:
        _robustness_table(answers.robustness)
    if answers.tasks:
        _tasks_table(answers.tasks)
    if timing:
        _speed_table(timing)


def _documents_table(found: Documents) -> None:
    scored, some = found.scored, 2 * SHOWN
    ends = scored if len(scored) <= some else (*scored[:SHOWN], *scored[-SHOWN:])
    title = f"{len(scored):,} of {found.documents:,} documents, the most surprising first"
    rows: list[Sequence[object]] = [
        (f"{d.hash[:8]} {d.line}", f"{d.tokens:,}", f"{d.perplexity:.2f}", f"{d.bpb:.4f}") for d in ends
    ]
    if len(scored) > some:
        rows.insert(SHOWN, ("...", "", "", ""))
    table(title, ("document", "tokens", "perplexity", "bits/byte"), rows)
    table("Over documents", ("share below", "perplexity", "bits/byte"), [
        (f"{float(q):.0%}", f"{value:.2f}", f"{found.quantiles_bpb[q]:.4f}")
        for q, value in found.quantiles_perplexity.items()
    ])  # fmt: skip
    typer.echo(
        f"all of their tokens: {found.loss:.4f} +- {cell(found.loss_se)} nats a token, "
        f"{found.bpb:.4f} +- {cell(found.bpb_se)} bits per byte (s.e. over documents)"
    )


def _completions_table(found: Completions) -> None:
    def row(what: str, share: Interval) -> Sequence[object]:
        return what, f"{share.value:.1%}", f"{share.low:.1%} to {share.high:.1%}"

    title = f"{len(found.cases):,} completions of {found.new_tokens} tokens"
    columns = ("Python that parses", "share", f"{found.model.level:.0%} interval")
    table(f"{title}, {found.documents:,} documents", columns, [
        row("the model's", found.model),
        row("the documents' own text, cut alike", found.true),
        row("text of another document in its place", found.other),
    ])  # fmt: skip


def _robustness_table(found: Robustness) -> None:
    plain = ("none", "", f"{found.context_tokens}", f"{found.bpb:.4f}", "", f"{found.bpb_se:.4f}")
    table(
        f"{found.scored_tokens:,} tokens after disturbed contexts, {found.windows:,} windows",
        ("contexts with", "rate", "their tokens", "bits/byte", "change", "s.e."),
        [plain, *(
            (s.perturbation, f"{s.rate:.0%}", f"{s.context_tokens:.0f}", f"{s.bpb:.4f}", f"{s.change:+.4f}",
             f"{s.change_se:.4f}")
            for s in found.shifts
        )],
    )  # fmt: skip


def _tasks_table(found: Tasks) -> None:
    table(f"lm-eval {found.version}", ("task", "metric", "filter", "value", "s.e.", "documents"), [
        (s.task, s.metric, s.filter, f"{s.value:.4f}", cell(s.se), f"{s.documents:,}") for s in found.scores
    ])  # fmt: skip


def _speed_table(timed: EngineSpeed) -> None:
    def rate(found: Any) -> str:
        return f"{found.median:,.0f} ({found.low:,.0f} to {found.high:,.0f})"

    own = [("new text by generate(), tokens/s", rate(timed.generate))] if timed.generate else []
    table(f"{timed.engine}, {timed.threads} thread(s), one text at a time", ("", "value"), [
        ("prompt, tokens/s", rate(timed.prefill)),
        ("new text, tokens/s", rate(timed.decode)),
        *own,
        (f"to the first token of {timed.prompt_tokens}, ms", f"{1000 * timed.first_token_seconds:.1f}"),
        ("loading, s", f"{timed.load_seconds:.2f}"),
        ("memory of engine and model, MB", f"{timed.memory_bytes / 1e6:.1f}"),
        ("on disk, MB", f"{timed.disk_bytes / 1e6:.2f}"),
        ("of the memory's bandwidth", f"{timed.bandwidth_share:.0%} of {timed.bandwidth / 1e9:.1f} GB/s"),
    ])  # fmt: skip
    if not timed.quiet:
        typer.echo(
            f"The machine was not quiet: other processes kept {timed.others or 0.0:.1f} cores busy, so that "
            "these speeds are too low."
        )


def _short(path: str) -> str:
    """The end of a path, which tells models apart."""
    return "/".join(Path(path).parts[-2:]) if path.endswith(".gguf") else Path(path).name
