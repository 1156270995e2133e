"""Quantization-aware training: a model folder goes on with rounded weights, and is written as a GGUF of them.

The run is one of the project's loop, from the folder on, taught by the very model that it began with or by
the text alone (`rounding`). What it keeps has rounded weights already, so the file holds them exactly.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from isoflop.continued import Past
from isoflop.errors import TrainError
from isoflop.export import load_pretrained
from isoflop.export.calibrate import CALIBRATION_TOKENS
from isoflop.export.gated import FORMATS, Export, export, exportable
from isoflop.export.rounders import CALIBRATED
from isoflop.gpt import GPT
from isoflop.options import check_options
from isoflop.pipeline import train_model
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record, Run, RunConfig
from isoflop.rounding import check_kind
from isoflop.starting import continuation
from isoflop.store import Project
from isoflop.transforms import (
    EVAL_TOKENS,
    MODEL,
    Scores,
    Transform,
    change_of,
    scores_of,
    source_of,
    transform_id,
)
from isoflop.transforms.distill import distill
from isoflop.using import evaluate_model

KIND = "quantize"
TEACHERS = ("distill", "train")  # with the model that it begins with as teacher, or on the text alone
UNTRAINED = "loss without training"


@dataclass(frozen=True)
class Training:
    """How a model is trained for rounded weights."""

    kind: str  # of `rounding.KINDS`
    tokens: int
    by: str = "distill"  # of TEACHERS
    lr_scale: float = 0.3  # times the rates of a run that goes on; 1 and 0.1 are worse (docs/LOG.md)
    seed: int = 0


class Trained(Record):
    """A file of a model that was trained for it."""

    transform: Transform
    export: Export


def train_rounded(
    project: Project, corpus: Corpus, folder: Path, training: Training, *, eval_tokens: int = EVAL_TOKENS,
    progress: Progress | None = None,
) -> Trained:  # fmt: skip
    """Train a model folder on for a GGUF type, and write that file, which passes the gate of `export`.

    The record has the loss in llama.cpp, also of the original in that type as `export` rounds it. What was
    done is not done again, what was interrupted goes on.

    Raises TrainError for options that cannot be, ProjectError or CorruptError as `export` does.
    """
    _check(training)
    progress, model = progress or Silent(), exportable(folder, corpus)
    config, past = continuation(
        project, corpus, folder, tokens=training.tokens, lr_scale=training.lr_scale, seed=training.seed
    )
    config = config.model_copy(update={"rounding": training.kind, "eval_tokens": eval_tokens})
    check_options(config)
    source = source_of(project, MODEL, folder)
    options = {**vars(training), "eval_tokens": eval_tokens}
    id = transform_id(KIND, corpus, [source], options)
    done = project.get("trained", id, Trained)
    if done is not None and (project.folder / done.export.path).exists():
        return done
    start = time.perf_counter()
    run = _run(project, corpus, folder, training, config, past, progress)
    assert run.model is not None
    made = export(
        project, corpus, project.folder / run.model, kind=training.kind, calibrate=0, progress=progress
    )
    scored = source.model_copy(update={"scores": scores_of(model, corpus, eval_tokens)})
    after = evaluate_model(project.folder / made.path, corpus, eval_tokens=eval_tokens)
    change, change_se = None, None
    if config.model.context == model.config.context:  # else they read other windows
        kept = load_pretrained(project.folder / run.model)
        change, change_se = change_of(model, kept, corpus, eval_tokens)
    assert scored.scores is not None
    transform = Transform(
        id=id, kind=KIND, corpus_id=corpus.id, sources=(scored,), options=options,
        flops={"training": run.flops_spent - run.flops_teachers, "teacher": run.flops_teachers},
        seconds=time.perf_counter() - start, eval_tokens=eval_tokens,
        after=Scores(
            loss=after.loss, loss_se=after.loss_se, bpb=after.bpb, bpb_se=after.bpb_se,
            params_total=scored.scores.params_total, params_matmul=scored.scores.params_matmul,
        ),
        model=str(Path(made.path).parent), run_id=run.id, change=change, change_se=change_se,
        measured={UNTRAINED: _untrained(model, corpus, training.kind, eval_tokens)},
    )  # fmt: skip
    trained = Trained(transform=transform, export=made)
    project.put("transform", transform)
    project.put("trained", trained, id)
    return trained


def _check(training: Training) -> None:
    """Raises TrainError for what cannot be, before anything is read."""
    check_kind(training.kind)
    if training.by not in TEACHERS:
        raise TrainError(
            f"--train-by {training.by} trains nothing", hint=f"name one of {', '.join(TEACHERS)}"
        )


def _run(
    project: Project, corpus: Corpus, folder: Path, training: Training, config: RunConfig, past: Past,
    progress: Progress,
) -> Run:  # fmt: skip
    if training.by == "train":
        return train_model(project, corpus, config, role="continued", progress=progress, past=past)
    made = distill(project, corpus, [folder], config, past, progress=progress)
    run = project.get("run", str(made.run_id), Run)
    assert run is not None
    return run


def _untrained(model: GPT, corpus: Corpus, kind: str, eval_tokens: int) -> float:
    """The loss of the original in that type, rounded by what text feeds it."""
    with tempfile.TemporaryDirectory() as place:
        path = FORMATS["gguf"].write(model, corpus, Path(place), kind, CALIBRATED, CALIBRATION_TOKENS)
        return evaluate_model(path, corpus, eval_tokens=eval_tokens).loss
