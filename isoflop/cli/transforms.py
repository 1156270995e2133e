"""Transforms: from finished models to better or smaller ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.continuing import FromOption
from isoflop.cli.options import (
    DEFAULT_PROJECT,
    CacheOption,
    JsonOption,
    PrecisionOption,
    ProjectOption,
    SeedOption,
    SetOption,
    TrackOption,
    count,
    open_project,
)
from isoflop.errors import TrainError
from isoflop.quantities import cell
from isoflop.teaching.divergences import Lesson
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.transforms import Scores, Transform
    from isoflop.transforms.distill import Subject
    from isoflop.transforms.foretold import Foretold

app = typer.Typer()
TOP_K = 32  # of --cache; an assumption: what it leaves out is measured and said


@app.command()
def distill(
    teachers: Annotated[
        list[Path],
        typer.Argument(
            metavar="TEACHER...",
            help="Model folders, ours or transformers', of the corpus's tokenizer; several are averaged in "
            "probability.",
        ),
    ],
    tokens: Annotated[float | None, count("Training tokens, e.g. 2M.")] = None,
    width: Annotated[int | None, typer.Option(help="d_model of a student from scratch.")] = None,
    layers: Annotated[int | None, typer.Option(help="Its layers; from the width when absent.")] = None,
    start: FromOption = None,
    weight: Annotated[
        float, typer.Option(help="Share of the teacher in the loss, 0 to 1; the rest is the text's.")
    ] = Lesson().weight,
    temperature: Annotated[float, typer.Option(help="Of both models' probabilities.")] = Lesson().temperature,
    divergence: Annotated[
        str, typer.Option(help="forward-kl, reverse-kl or jensen-shannon.")
    ] = Lesson().divergence,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="Learn this many of their likeliest tokens alone.")
    ] = None,
    cache: CacheOption = None,
    features: Annotated[
        float, typer.Option(help="Weight of their hidden states, layer by layer through learned projections.")
    ] = 0.0,
    noise: Annotated[
        float, typer.Option(help="Replace this share of the tokens that student and teachers read by others.")
    ] = 0.0,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="PROJECT=TEACHER:SHARE",
            help="Learn this project's text, too, from a teacher of its own, in this share of all batches; "
            "may be repeated.",
        ),
    ] = None,
    lr_scale: Annotated[float, typer.Option(help="Multiplies every learning rate.")] = 1.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the laws expect of it; train nothing.")
    ] = False,
    changes: SetOption = None, precision: PrecisionOption = None, project: ProjectOption = DEFAULT_PROJECT,
    seed: SeedOption = 0, track: TrackOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Train a student on the probabilities of its teachers and on the project's text.

    The project's law and the distillation law say first whether that beats training longer for the same
    FLOPs, and are compared with what came out.

    Example: [bold]isoflop distill TEACHER --width 128 --tokens 4M[/bold] or
    [bold]isoflop distill TEACHER --from PRUNED --tokens 2M[/bold]
    """
    from isoflop.families import find
    from isoflop.pipeline import corpus_of
    from isoflop.trackers import tracked
    from isoflop.transforms import distill as distilling
    from isoflop.variant import Variant

    said = [] if precision is None else [f"precision={precision}"]
    home, variant = open_project(project), Variant.of(find("isoflop"), [*(changes or ()), *said])
    lesson = Lesson(weight, temperature, divergence, top_k or (TOP_K if cache else 0), features, noise)
    subjects = [_subject(words) for words in tasks or ()]
    with home.lock(), Terminal() as terminal, tracked(track or (), home, terminal) as progress:
        text = corpus_of(home)
        distilling.check_teachers([*teachers, *(s.teacher for s in subjects)], text)
        config, past = distilling.student(
            home, text, tokens=None if tokens is None else int(tokens), width=width, layers=layers,
            start=start, lr_scale=lr_scale, seed=seed, variant=variant, timed=not dry_run, progress=progress,
        )  # fmt: skip
        if dry_run:
            expected = distilling.verdict(
                home, text, teachers, config, past, lesson=lesson, tasks=subjects, progress=progress
            )
            _show_expected(expected, json)
            return
        made = distilling.distill(
            home, text, teachers, config, past, lesson=lesson, tasks=subjects, cache_bytes=cache or 0.0,
            progress=progress,
        )  # fmt: skip
    if json:
        out(made)
        return
    show(made)
    typer.echo(home.folder / made.model)


@app.command()
def write(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="A causal model folder.")],
    path: Annotated[Path, typer.Option("--out", help="The new file of JSON lines, text each.")],
    tokens: Annotated[float, count("New tokens at least, e.g. 1M.")],
    prompt_tokens: Annotated[
        int, typer.Option(min=0, help="Go on from beginnings of the training text; 0: its own documents.")
    ] = 0,
    temperature: Annotated[float, typer.Option(help="Of its probabilities.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample among this many tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Sample among the likeliest with this probability.")] = 1.0,
    batch: Annotated[int, typer.Option(min=1, help="Documents at once.")] = 32,
    project: ProjectOption = DEFAULT_PROJECT, seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Let a teacher write text that a student of any tokenizer can learn from (sequence-level distillation).

    Example: [bold]isoflop write TEACHER --tokens 1M --out text.jsonl[/bold], then
    [bold]isoflop corpus docs/ text.jsonl --project other[/bold]
    """
    from isoflop.pipeline import corpus_of
    from isoflop.transforms.writing import Manner
    from isoflop.transforms.writing import write as let_write

    home = open_project(project)
    manner = Manner(int(tokens), prompt_tokens, temperature, top_k, top_p, batch, seed)
    with home.lock(), Terminal() as progress:
        text = corpus_of(home) if prompt_tokens else None
        made = let_write(home, text, teacher, path, manner, progress=progress)
    if json:
        out(made)
        return
    table("Written", ("", "value"), [
        ("documents", f"{made.documents:,}"),
        ("tokens", f"{made.tokens:,}"),
        ("bytes", f"{made.bytes:,}"),
        ("FLOPs", f"{made.flops:.3g}"),
        ("seconds", f"{made.seconds:.1f}"),
        ("tokens a second", f"{made.tokens / made.seconds:,.0f}"),
    ])  # fmt: skip
    typer.echo(path)


def _subject(words: str) -> Subject:
    """Reads PROJECT=TEACHER:SHARE. Raises TrainError."""
    from isoflop.transforms.distill import Subject

    text, _, rest = words.partition("=")
    teacher, _, share = rest.rpartition(":")
    try:
        return Subject(Path(text), Path(teacher), float(share))
    except ValueError:
        raise TrainError(
            f"--task {words!r} is not PROJECT=TEACHER:SHARE", hint="write e.g. --task ../prose=MODEL:0.3"
        ) from None


def _show_expected(expected: Foretold, json: bool) -> None:
    if json:
        losses = {name: loss.model_dump(mode="json") for name, loss in expected.losses.items()}
        gap = expected.difference
        out({
            "losses": losses, "law": expected.law, "tokens_ratio": expected.more,
            "difference": None if gap is None else gap.model_dump(mode="json"), "verdict": expected.verdict,
        })  # fmt: skip
        return
    for sentence in expected.sentences or ["no law of this project says what to expect: isoflop sweep"]:
        typer.echo(sentence)


def show(made: Transform) -> None:
    """What a transform read, gave and cost."""
    from isoflop.transforms.foretold import scored

    rows = [(f"{s.role} {Path(s.path).name}", *_numbers(s.scores)) for s in made.sources if s.scores]
    table(
        f"Transform {made.id}: {made.kind}",
        ("model", "params N", "loss", "s.e.", "bits/byte"),
        [*rows, ("result", *_numbers(made.after))],
    )
    if made.change is not None:
        typer.echo(f"change of loss, nats a token: {made.change:+.4f} +- {made.change_se:.4f}")
    for name, value in made.measured.items():
        typer.echo(f"{name}: {value:.4g}")
    for sentence in scored(made):
        typer.echo(sentence)
    parts = ", ".join(f"{name} {value:.3g}" for name, value in made.flops.items())
    typer.echo(f"{made.flops_total:.3g} FLOPs ({parts}), {made.seconds:.1f} s")


def _numbers(s: Scores) -> tuple[Any, ...]:
    return f"{s.params_matmul:,}", f"{s.loss:.4f}", f"{s.loss_se:.4f}", cell(s.bpb)
