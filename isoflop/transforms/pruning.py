"""`isoflop prune`: a model folder in, a smaller one out, healed by training on; each step has its record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import TrainError
from isoflop.export import load_pretrained
from isoflop.export.calibrate import CALIBRATION_TOKENS, tokens_read, windows
from isoflop.gpt import GPT
from isoflop.objectives import OBJECTIVES
from isoflop.pipeline import train_model
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, ModelConfig
from isoflop.starting import check_scale, continuation
from isoflop.store import Project
from isoflop.teaching.divergences import Lesson
from isoflop.transforms import (
    EVAL_TOKENS,
    MODEL,
    Source,
    Transform,
    change_of,
    finished,
    keep_model,
    scores_of,
    source_of,
    transform_id,
)
from isoflop.transforms.distill import distill, student
from isoflop.transforms.importance import RANDOM, Importance, measure, pass_flops
from isoflop.transforms.prune import prune
from isoflop.transforms.shapes import WORDS, candidates, path, sizes_of, smaller
from isoflop.using import decoder_of

SEARCH_TOKENS = 16_384  # of calibration text, on which each candidate shape is tried
PRUNE, HEAL = "prune", "heal"
HEALERS = ("distill", "train")  # with the unpruned model as teacher, or on the text alone


@dataclass(frozen=True)
class Wanted:
    """What to prune to, and how. Sizes by the names of `shapes.SIZES`."""

    keep: Mapping[str, int] = field(default_factory=dict)
    share: float | None = None  # of the stored parameters; None: the sizes in `keep` say all
    by: str = "activation"
    depth: str = "influence"
    tokens: int = CALIBRATION_TOKENS
    steps: int = 1
    seed: int = 0  # of random importance

    def target(self, model: GPT, corpus: Corpus, importance: Importance) -> tuple[ModelConfig, float]:
        """The shape to end with, and the FLOPs of finding it.

        Of the candidates for a share that with the lowest loss on calibration text, without any training.
        It may not be the best one after training, but nothing cheaper tells.
        """
        if self.share is None:
            return smaller(model.config, **self.keep), 0.0
        shapes = candidates(model.config, self.share, self.keep)
        if len(shapes) == 1:
            return shapes[0], 0.0
        tokens = min(self.tokens, SEARCH_TOKENS)
        losses = [calibration_loss(prune(model, importance, shape), corpus, tokens) for shape in shapes]
        read = tokens_read(corpus, model.config.context, tokens)
        spent = sum(pass_flops(shape, read, backward=False) for shape in shapes)
        return shapes[losses.index(min(losses))], spent


@dataclass(frozen=True)
class Heal:
    """How pruned models are trained on."""

    tokens: int  # of all steps together
    by: str = "distill"  # of HEALERS
    lr_scale: float = 1.0  # times the rates of a run that goes on
    seed: int = 0
    lesson: Lesson = field(default_factory=Lesson)


@torch.no_grad()
def calibration_loss(model: GPT, corpus: Corpus, tokens: int) -> float:
    """Mean loss of about so many tokens of training text, in nats a predicted token."""
    objective, total, count = OBJECTIVES[model.config.objective], 0.0, 0
    for rows in windows(corpus, model.config.context, tokens):
        total += float(model.token_losses(*objective.examples(rows, corpus, (0, count))).double().sum())
        count += len(rows)
    return total / (count * objective.predicted(model.config.context))


def prune_model(
    project: Project, corpus: Corpus, folder: Path, wanted: Wanted, *, heal: Heal | None = None,
    eval_tokens: int = EVAL_TOKENS, progress: Progress | None = None,
) -> list[Transform]:  # fmt: skip
    """Prune a model folder in `wanted.steps` steps, each healed by its part of `heal.tokens`.

    The records in order, the last one of the result; what is done is not done again. Raises ProjectError for
    another architecture, TrainError for a shape or an option that cannot be, CorruptError for a folder that
    is damaged, CorpusError when the text is too short.
    """
    progress = progress or Silent()
    model, source = decoder_of(folder, corpus, "pruned"), source_of(project, MODEL, folder)
    _check(model.config, wanted, heal)
    first = _step(project, corpus, model, source, wanted, 1, None, eval_tokens, progress)
    target = smaller(model.config, **first.options["target"])
    shapes, chain = path(model.config, target, wanted.steps), [first]
    for number in range(1, len(shapes) + 1):
        if number > 1:
            last = project.folder / chain[-1].model
            model, source = decoder_of(last, corpus, "pruned"), source_of(project, MODEL, last)
            chain.append(_step(project, corpus, model, source, wanted, number, shapes, eval_tokens, progress))
        if heal is not None:
            part = heal.tokens * number // len(shapes) - heal.tokens * (number - 1) // len(shapes)
            chain.append(_healed(project, corpus, chain[-1], folder, heal, part, eval_tokens, progress))
    return chain


def _step(
    project: Project, corpus: Corpus, model: GPT, source: Source, wanted: Wanted, number: int,
    shapes: Sequence[ModelConfig] | None, eval_tokens: int, progress: Progress,
) -> Transform:  # fmt: skip
    """Prune once, to the shape of that number; the first step decides on the shapes."""
    options: dict[str, Any] = {
        "keep": dict(wanted.keep), "share": wanted.share, "by": wanted.by, "depth": wanted.depth,
        "calibrate": wanted.tokens, "step": number, "steps": wanted.steps,
    }  # fmt: skip
    if RANDOM in (wanted.by, wanted.depth):
        options["seed"] = wanted.seed
    id = transform_id(PRUNE, corpus, [source], {**options, "eval_tokens": eval_tokens})
    if (done := finished(project, id)) is not None:
        return done
    began, spent = time.perf_counter(), dict[str, float]()
    importance = measure(
        model, corpus, by=wanted.by, depth=wanted.depth, tokens=wanted.tokens, seed=wanted.seed,
        progress=progress,
    )  # fmt: skip
    spent["calibration"] = importance.flops
    if shapes is None:
        target, searched = wanted.target(model, corpus, importance)
        spent |= {"search": searched} if searched else {}
        shapes = path(model.config, target, wanted.steps)
    shape = shapes[number - 1]
    made = prune(model, importance, shape)
    source = source.model_copy(update={"scores": scores_of(model, corpus, eval_tokens)})
    change, change_se = change_of(model, made, corpus, eval_tokens)
    kept = keep_model(project, corpus, PRUNE, id, made)
    record = Transform(
        id=id, kind=PRUNE, corpus_id=corpus.id, sources=(source,),
        options={**options, "target": sizes_of(shapes[-1]), "shape": sizes_of(shape)}, flops=spent,
        seconds=time.perf_counter() - began, eval_tokens=eval_tokens,
        after=scores_of(made, corpus, eval_tokens), model=kept, change=change, change_se=change_se,
    )  # fmt: skip
    project.put("transform", record)
    progress.log(
        f"pruned to {', '.join(f'{WORDS[name]} {size}' for name, size in sizes_of(shape).items())}: "
        f"loss {record.after.loss:.4f}, {record.after.params_total:,} parameters"
    )
    return record


def _healed(
    project: Project, corpus: Corpus, pruned: Transform, original: Path, heal: Heal, tokens: int,
    eval_tokens: int, progress: Progress,
) -> Transform:  # fmt: skip
    """Train a pruned model on, beside the original as its teacher or alone."""
    folder = project.folder / pruned.model
    if heal.by == "distill":
        config, past = student(
            project, corpus, tokens=tokens, start=folder, lr_scale=heal.lr_scale, seed=heal.seed,
            progress=progress,
        )  # fmt: skip
        config = config.model_copy(update={"eval_tokens": eval_tokens})
        return distill(project, corpus, [original], config, past, lesson=heal.lesson, progress=progress)
    source = source_of(project, MODEL, folder, pruned.after)
    options = {"tokens": tokens, "lr_scale": heal.lr_scale, "seed": heal.seed}
    id = transform_id(HEAL, corpus, [source], {**options, "eval_tokens": eval_tokens})
    if (done := finished(project, id)) is not None:
        return done
    config, past = continuation(
        project, corpus, folder, tokens=tokens, lr_scale=heal.lr_scale, seed=heal.seed
    )
    config = config.model_copy(update={"eval_tokens": eval_tokens})
    run = train_model(project, corpus, config, role="continued", progress=progress, past=past)
    assert run.model is not None
    before, after = load_pretrained(folder), load_pretrained(project.folder / run.model)
    change, change_se = None, None
    if before.config.context == after.config.context:  # else they read other windows
        change, change_se = change_of(before, after, corpus, eval_tokens)
    record = Transform(
        id=id, kind=HEAL, corpus_id=corpus.id, sources=(source,), options=options,
        flops={"training": run.flops_spent},
        seconds=run.seconds_train + run.seconds_eval + run.seconds_compile, eval_tokens=eval_tokens,
        after=scores_of(after, corpus, eval_tokens), model=run.model, run_id=run.id, change=change,
        change_se=change_se,
    )  # fmt: skip
    project.put("transform", record)
    return record


def _check(model: ModelConfig, wanted: Wanted, heal: Heal | None) -> None:
    """Raises TrainError for what cannot be, before anything is computed."""
    if wanted.share is None and not wanted.keep:
        raise TrainError(
            "there is nothing to prune to",
            hint="give --params-share 0.5, or some of --keep-layers, --keep-heads, --keep-ff, --keep-width",
        )
    path(model, smaller(model, **wanted.keep), wanted.steps)
    if wanted.share is not None:
        candidates(model, wanted.share, wanted.keep)
    if heal is not None and heal.by not in HEALERS:
        raise TrainError(f"--heal-by {heal.by} heals nothing", hint=f"name one of {', '.join(HEALERS)}")
    if heal is not None and heal.tokens < wanted.steps:
        raise TrainError(
            f"--heal-tokens is {heal.tokens}, which heals nothing", hint="give e.g. --heal-tokens 1M"
        )
    if heal is not None:
        check_scale(heal.lr_scale)
