"""The commands that adapt a model to a task, let it predict, and score it."""

from __future__ import annotations

import json as json_text
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.options import (
    DEFAULT_PROJECT,
    BudgetOption,
    JsonOption,
    ProjectOption,
    SeedOption,
    open_project,
    pairs,
)
from isoflop.errors import AdaptError, BudgetError
from isoflop.terminal import Terminal, out, table

if TYPE_CHECKING:
    from isoflop.adapting.rates import AdaptedSpeed
    from isoflop.adapting.records import Adapted, Trial
    from isoflop.metrics import Comparison, Score

app = typer.Typer()

DataOption = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="FILE",
        help="Examples: .csv .tsv .jsonl .parquet .txt, catalogues (.mo .tmx), a saved dataset, a folder of "
        "images, sounds or texts with a sub-folder a label; may be repeated.",
    ),
]
RoleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="ROLE=COLUMN", help="E.g. label=stars; guessed when absent; may be repeated."
    ),
]
AdaptedArgument = Annotated[
    Path, typer.Argument(metavar="ADAPTED", help="A folder that isoflop adapt wrote.")
]


@app.command()
def adapt(
    model: Annotated[
        Path,
        typer.Argument(
            help="A model folder of transformers, or one of ours; vit or convnet: an image model from "
            "scratch, made for the data, all of which learns."
        ),
    ],
    task: Annotated[
        str, typer.Option(help="classification, tagging, translation ...; an unknown one makes it list all.")
    ],
    data: DataOption,
    valid: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Validation examples; else a tenth of --data.")
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Test examples; else a fifth of --data.")
    ] = None,
    columns: RoleOption = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="full, lora, last-layers, probe ...; by the data, the model and the time when absent."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE",
            help="A value of all that is tried, e.g. lr=1e-4, balanced=true, augment=noise, or of the "
            "method's own, e.g. method.r=16; may be repeated.",
        ),
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an input; by the model and the time when absent.")
    ] = None,
    budget: BudgetOption = "10m",
    also: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MODEL", help="A further base, for the law: labels or parameters? May be repeated."
        ),
    ] = None,
    image_model: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The image model beside the text model, for --task image-text."),
    ] = None,
    law: Annotated[
        bool, typer.Option(help="Also measure what twice the labels would buy, in a fifth of the budget.")
    ] = True,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="ADAPTED",
            help="Learn also from this adapted model, of the same data and seed: its logits of labels, its "
            "texts where it writes. How much: --set teacher_weight=0.5, --set temperature=1.",
        ),
    ] = None,
    keep_layers: Annotated[
        int | None,
        typer.Option(min=1, help="Adapt a smaller model: so many of MODEL's layers, evenly spread."),
    ] = None,
    peer: Annotated[
        bool,
        typer.Option(
            help="Let a linear model, or for texts a memory of the examples, answer with the model where "
            "that is better on validation examples, and neither a method nor a teacher is named."
        ),
    ] = True,
    project: ProjectOption = DEFAULT_PROJECT, seed: SeedOption = 0, json: JsonOption = False,
) -> None:  # fmt: skip
    """Adapt a model to a task: what is tried fits the data and the time, the best is kept.

    A part of the budget searches method and learning rate, most trials of which end early; then the winner is
    trained for long, and scored on test examples that nothing was chosen by. A base that needs no training is
    kept as it is where none is better. It needs isoflop's extra adapt.

    Example: [bold]isoflop adapt MODEL --task classification --data reviews.csv --budget 10m[/bold]
    """
    seconds = _seconds(budget)
    given, roles = _values(set_ or []), pairs(columns or [], "--map")
    from isoflop.adapting.answer import adapt as adapted

    home = open_project(project, create=True)
    with home.lock(), _quiet(), Terminal() as progress:
        done = adapted(
            home, model, task, data, budget_seconds=seconds, method=method, columns=roles,
            validation=valid or (), test=test or (), set=given, max_length=max_length, also=also or (),
            image_model=image_model, law=law, teacher=teacher, keep_layers=keep_layers, peer=peer,
            seed=seed, progress=progress,
        )  # fmt: skip
    folder = home.folder / done.model
    if json:
        out({**done.model_dump(mode="json"), "folder": str(folder)})
        return
    _show(done)
    typer.echo(folder)


@app.command(name="apply")
def apply_(
    adapted: AdaptedArgument,
    data: Annotated[
        list[Path] | None, typer.Option("--data", metavar="FILE", help="As of isoflop adapt.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; may be repeated.")] = None,
    columns: RoleOption = None,
) -> None:
    """Predict with an adapted model: a line of JSON an example on stdout.

    Example: [bold]isoflop apply my-project/artifacts/adapted-... --text "a warm welcome"[/bold]
    """
    if bool(data) == bool(text):
        raise AdaptError("there is nothing to predict, or two things", hint="give --data FILE or --text TEXT")
    from isoflop.adapting.applied import predictions

    roles = pairs(columns or [], "--map")
    with _quiet(), Terminal() as progress:
        made = predictions(adapted, data or (), texts=text or (), columns=roles, progress=progress)
    for line in made:
        typer.echo(json_text.dumps(line, ensure_ascii=False))


@app.command()
def score(
    adapted: AdaptedArgument,
    data: DataOption,
    against: Annotated[
        Path | None, typer.Option(metavar="ADAPTED", help="Compare it with another on the same examples.")
    ] = None,
    columns: RoleOption = None,
    speed: Annotated[
        bool,
        typer.Option(
            "--speed", help="Also measure bytes and examples a second; --against's in turn with its own."
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Score an adapted model, or an export of one, on examples: every metric of its task, with intervals.

    Where the files have test examples of their own, on these.

    Example: [bold]isoflop score my-project/artifacts/adapted-... --data new.csv[/bold]
    """
    from isoflop.adapting.applied import scores

    roles = pairs(columns or [], "--map")
    with _quiet(), Terminal() as progress:
        found = scores(adapted, data, against=against, columns=roles, timed=speed, progress=progress)
    if json:
        out({
            "scores": [s.model_dump(mode="json") for s in found.scores],
            "comparisons": [c.model_dump(mode="json") for c in found.apart],
            "speeds": [s.model_dump(mode="json") for s in found.speeds],
        })  # fmt: skip
        return
    table(
        f"{found.scores[0].examples:,} examples", ("metric", "value", "90% interval", "unit"),
        [(s.metric, f"{s.value:.4f}", _interval(s), s.unit) for s in found.scores],
    )  # fmt: skip
    if found.apart:
        _show_comparison(found.apart, against)
    if found.speeds:
        _show_speeds(found.speeds)


# -- reading options --------------------------------------------------------------------------------------


def _seconds(budget: str) -> float:
    from isoflop.budget import Budget

    seconds = Budget.parse(budget).seconds
    if seconds is None:
        raise BudgetError(f"the budget {budget!r} is no time", hint="write a time such as 10m, 2h or 90s")
    return seconds


def _values(listed: Sequence[str]) -> dict[str, Any]:
    """Numbers and truth values as JSON has them; `augment` is a list; other words as they are."""
    found: dict[str, Any] = {}
    for name, text in pairs(listed, "--set").items():
        try:
            found[name] = json_text.loads(text)
        except json_text.JSONDecodeError:
            found[name] = text
    if "augment" in found:
        found["augment"] = str(found["augment"]).split(",")
    return found


def _quiet() -> Any:
    """Without the bars and reports of transformers and datasets."""
    from isoflop.adapting.quiet import quiet

    return quiet()


# -- showing ----------------------------------------------------------------------------------------------


def _show(done: Adapted) -> None:
    typer.echo(", ".join(f"{role} is the column {column!r}" for role, column in done.columns.items()))
    counts = ", ".join(f"{count:,} {split}" for split, count in done.examples.items())
    cut = f"; {done.cut:,} training inputs are cut to {done.spec.max_length} tokens" if done.cut else ""
    typer.echo(f"examples: {counts}{cut}")
    for note in (*done.spec.notes, *done.notes):
        typer.echo(note)
    table("Tried", ("method", "rate", "batch", "passes", "validation", "seconds", "ended"), [
        _row(done, trial) for trial in done.trials
    ])  # fmt: skip
    prompted = {"zero-shot": done.baseline, "few-shot": done.few_shot}
    others = {name: {s.metric: s for s in scores} for name, scores in prompted.items() if scores}
    table(
        "Scores on test examples", ("metric", *others, _kept(done), "90% interval", "unit"),
        [
            (s.metric, *(_with_interval(by.get(s.metric)) for by in others.values()), f"{s.value:.4f}",
             _interval(s), s.unit)
            for s in done.test
        ],
    )  # fmt: skip
    for says in filter(None, (done.baseline_says, done.few_shot_says)):
        typer.echo(f"the base, {says}")
    if done.peer:
        _show_comparison(done.peer.apart, f"{done.peer.says}, of {done.peer.examples:,} examples")
    if done.peer and done.peer.gain:
        _show_comparison(done.peer.gain, "the model alone")
    if done.taught:
        _show_comparison(done.taught.apart, f"its teacher {done.taught.path}")
    for law in (done.law, done.peer.law if done.peer else None):
        for sentence in law.sentences if law else ():
            typer.echo(sentence)
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in done.seconds.items())
    typer.echo(f"{sum(done.seconds.values()) / 60:.1f} minutes ({parts})")


def _kept(done: Adapted) -> str:
    """What answers, in few words."""
    joined = done.peer is not None and done.peer.step is not None
    return f"{done.config.method} and its peer" if joined else done.config.method


def _row(done: Adapted, trial: Trial) -> tuple[str, ...]:
    config = trial.config
    passes = trial.curve[-1].examples / done.examples["train"] if trial.curve else 0.0
    score = f"{trial.score:.4f}" if math.isfinite(trial.score) else "–"
    mark = "* " if config == done.config else "  "
    return (
        f"{mark}{config.method}", f"{config.lr:.2g}", str(config.batch), f"{passes:.2f}", score,
        f"{trial.seconds:.1f}", trial.stopped or "at its end",
    )  # fmt: skip


def _interval(score: Score) -> str:
    return f"{score.low:.4f} to {score.high:.4f}"


def _with_interval(score: Score | None) -> str:
    return "–" if score is None else f"{score.value:.4f} ({_interval(score)})"


def _show_comparison(apart: Sequence[Comparison], against: object) -> None:
    table(f"Above {against}", ("metric", "the other", "this", "difference", "90% interval", "better in"), [
        (c.metric, f"{c.first:.4f}", f"{c.second:.4f}", f"{c.difference:+.4f}",
         f"{c.low:+.4f} to {c.high:+.4f}", f"{c.p_better:.0%}")
        for c in apart
    ])  # fmt: skip


def _show_speeds(found: Sequence[AdaptedSpeed]) -> None:
    first, sizes = found[0], list(found[0].rates)
    table(
        f"Examples a second, {first.tokens:.0f} tokens each, threads: {first.threads}, others' load: "
        f"{first.others:.1f} cores",
        ("model", "bytes", *(f"batch {size}" for size in sizes)),
        [
            (f"{s.path} ({s.engine})", f"{s.bytes:,}", *(
                f"{s.rates[size].median:.1f} ({s.rates[size].low:.1f} to {s.rates[size].high:.1f})"
                for size in sizes
            ))
            for s in found
        ],
    )  # fmt: skip
    if len(found) > 1:
        other, own = found
        times = ", ".join(
            f"{own.rates[size].median / other.rates[size].median:.1f}x the speed at batch {size}"
            for size in sizes
        )
        typer.echo(f"{other.bytes / own.bytes:.1f}x smaller, {times}")
