"""Distillation: a student that learns a teacher's next-token probabilities beside the text (`divergences`).

The student begins from scratch or goes on from a model folder, through the project's one training loop.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from isoflop.continued import Past, initial_model
from isoflop.devices import whole_machine
from isoflop.errors import TrainError
from isoflop.evaluate import heldout_windows
from isoflop.export import load_pretrained
from isoflop.flops import asking_memory_bytes
from isoflop.gpt import CHUNK_TOKENS
from isoflop.identity import job_id, whole_batches
from isoflop.model import LanguageModel
from isoflop.options import check_options
from isoflop.pipeline import train_model
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, ModelConfig, RunConfig, Task, digest
from isoflop.starting import chosen_config, continuation, corpus_at
from isoflop.store import Project
from isoflop.teaching.distilling import as_asked, check_head, named, told_by
from isoflop.teaching.divergences import Lesson
from isoflop.teaching.topk import left_out, places_in
from isoflop.transforms import (
    MODEL,
    TEACHER,
    Source,
    Transform,
    change_of,
    finished,
    scores_of,
    source_of,
    transform_id,
)
from isoflop.transforms.foretold import Foretold, foretold
from isoflop.using import check_finite, same_tokenizer
from isoflop.variant import DEFAULT, Variant

KIND = "distill"
MEASURED_TOKENS = 8192  # held-out, for what the likeliest tokens leave out


class Subject(NamedTuple):
    """A further task of a student."""

    text: Path  # a project, or a corpus folder, of the same tokenizer
    teacher: Path
    share: float  # of all batches


def student(
    project: Project, corpus: Corpus, *, tokens: int | None, width: int | None = None,
    layers: int | None = None, start: Path | None = None, lr_scale: float = 1.0, seed: int = 0,
    variant: Variant = DEFAULT, timed: bool = True, progress: Progress | None = None,
) -> tuple[RunConfig, Past]:  # fmt: skip
    """The run as it would be without teachers: of a width from scratch, or from the model folder `start` on.

    `timed` is that of `chosen_config`.

    Raises TrainError for settings that mean nothing, ProjectError or CorruptError for a folder that cannot be
    used.
    """
    if (width is None) == (start is None):
        raise TrainError("a student needs --width or --from", hint="give one of them, and --tokens")
    if start is None:
        config = chosen_config(
            project, corpus, width=width, layers=layers, tokens=tokens, lr_scale=lr_scale, seed=seed,
            variant=variant, timed=timed, progress=progress,
        )  # fmt: skip
        return config, Past()
    if layers is not None:
        raise TrainError(f"the shape of {start} is its own", hint="leave out --layers")
    config, past = continuation(project, corpus, start, tokens=tokens, lr_scale=lr_scale, seed=seed)
    model = initial_model(config, past)
    check_finite(model, start)
    check_head(model, start)
    return variant.applied(config), past


def distill(
    project: Project, corpus: Corpus, teachers: Sequence[Path], config: RunConfig, past: Past, *,
    lesson: Lesson | None = None, tasks: Sequence[Subject] = (), cache_bytes: float = 0.0,
    progress: Progress | None = None,
) -> Transform:  # fmt: skip
    """Train a `student` beside its teachers, which are averaged in probability.

    Further `tasks` are learned at once: their texts have their shares of all batches, each is taught by its
    own teacher alone, and `measured` says how well the student does on its held-out text.

    Where only their likeliest tokens count, what of their probabilities that leaves out is measured, and
    `cache_bytes` of the project's disk keep them: a window that is seen again, in this run or a later one,
    asks no teacher, and costs nothing.

    What was done is not done again, what was interrupted goes on. The ledger keeps the run and the transform;
    `predicted` and `verdict` are those of `foretold`.

    Raises TrainError for values that cannot be, for a teacher of another tokenizer, vocabulary or objective,
    or of a shorter context; ProjectError or CorruptError for a folder that cannot be used, CorpusError for a
    task's text.
    """
    progress = progress or Silent()
    plan = _plan(project, corpus, teachers, config, past, lesson or Lesson(), tasks)
    if (done := finished(project, plan.id)) is not None:
        return done
    config, models = plan.config, plan.models
    scored, expected = _expected(project, corpus, plan, progress)
    for sentence in expected.sentences:
        progress.log(sentence)
    measured = _left_out(plan.teachers, config, corpus, progress) if config.teacher_topk else {}
    past = replace(plan.past, **_answers(project, config, corpus, cache_bytes, progress))
    run = train_model(project, corpus, config, role="distilled", progress=progress, past=past)
    assert run.model is not None
    after = load_pretrained(project.folder / run.model)
    for task, text in zip(tasks, plan.texts, strict=True):
        measured[f"loss on {task.text.name}"] = scores_of(after, text, config.eval_tokens).loss
    change = change_of(models[-1], after, corpus, config.eval_tokens) if config.initial else (None, None)
    made = Transform(
        id=plan.id, kind=KIND, corpus_id=corpus.id, sources=scored, options=plan.options,
        flops={
            "training": run.flops_spent - run.flops_teachers_spent, "teacher": run.flops_teachers_spent,
        },
        seconds=run.seconds_train + run.seconds_eval + run.seconds_compile, eval_tokens=config.eval_tokens,
        after=scores_of(after, corpus, config.eval_tokens), change=change[0], change_se=change[1],
        measured=measured, predicted=expected.losses, verdict=expected.verdict, model=run.model,
        run_id=run.id,
    )  # fmt: skip
    project.put("transform", made)
    return made


def verdict(
    project: Project, corpus: Corpus, teachers: Sequence[Path], config: RunConfig, past: Past, *,
    lesson: Lesson | None = None, tasks: Sequence[Subject] = (), progress: Progress | None = None,
) -> Foretold:  # fmt: skip
    """What laws expect of a `distill` with these arguments, which is not done. Raises as that does."""
    plan = _plan(project, corpus, teachers, config, past, lesson or Lesson(), tasks)
    return _expected(project, corpus, plan, progress or Silent())[1]


def check_teachers(teachers: Sequence[Path], corpus: Corpus) -> None:
    """Raises TrainError, ProjectError or CorruptError for a folder that cannot teach on that corpus."""
    for folder in teachers:
        _opened(folder, corpus)


class _Plan(NamedTuple):
    """What is to be learned, from whom."""

    id: str  # of the transform
    config: RunConfig
    past: Past
    options: dict[str, Any]
    sources: list[Source]  # the teachers, those of further tasks, then the model that goes on, if one does
    models: list[LanguageModel]  # theirs
    texts: list[Corpus]  # of the further tasks

    @property
    def teachers(self) -> list[LanguageModel]:
        return self.models[: len(named(self.config))]


def _plan(
    project: Project, corpus: Corpus, teachers: Sequence[Path], config: RunConfig, past: Past, lesson: Lesson,
    tasks: Sequence[Subject],
) -> _Plan:  # fmt: skip
    """Raises as `distill` does."""
    folders = [*teachers, *(task.teacher for task in tasks)]
    texts = [corpus_at(task.text, corpus, "task's") for task in tasks]
    models = [_opened(folder, corpus) for folder in folders]
    sources = [source_of(project, TEACHER, folder) for folder in folders]
    hashes = [source.hash for source in sources]
    learned = tuple(
        Task(corpus=text.id, share=task.share, teacher=hash)
        for task, text, hash in zip(tasks, texts, hashes[len(teachers) :], strict=True)
    )
    config = _with_teachers(config, hashes[: len(teachers)], lesson, learned)
    for folder, teacher in zip(folders, models, strict=True):
        _check_fits(folder, teacher, config.model)
        teacher.config = as_asked(teacher.config, config.model)
    config = whole_machine(
        config, config.ranks * config.threads, beside=asking_memory_bytes([m.config for m in models], config)
    )
    if past.model is not None:
        sources.append(source_of(project, MODEL, past.model))
        models.append(initial_model(config, past))
    said = {name: value for name, value in lesson._asdict().items() if name != "noise" or value}
    options = {
        **said, "tokens": config.tokens, "seed": config.seed, "job": job_id(whole_batches(config), corpus)
    }  # fmt: skip
    if learned:
        options["tasks"] = [task.model_dump() for task in learned]
    past = replace(
        past, teachers=tuple(folder.absolute() for folder in folders),
        tasks=tuple(text.folder.absolute() for text in texts),
    )  # fmt: skip
    id = transform_id(KIND, corpus, sources, options)
    return _Plan(id, config, past, options, sources, models, texts)


def _expected(
    project: Project, corpus: Corpus, plan: _Plan, progress: Progress
) -> tuple[tuple[Source, ...], Foretold]:
    """The sources with their scores, and what these let expect."""
    taught, own = plan.teachers, len(plan.config.teachers)
    texts = [*[corpus] * own, *plan.texts, *[corpus] * (len(plan.models) - len(taught))]
    scored = tuple(
        _scored(source, model, plan.config, text, progress)
        for source, model, text in zip(plan.sources, plan.models, texts, strict=True)
    )
    best = min(s.scores.loss for s in scored[:own] if s.scores is not None)
    return scored, foretold(project, corpus, plan.config, [m.config for m in taught], best)


def _with_teachers(
    config: RunConfig, hashes: Sequence[str], lesson: Lesson, tasks: tuple[Task, ...]
) -> RunConfig:
    """Raises TrainError for values that cannot be."""
    taught = config.model_copy(
        update={
            "teachers": tuple(hashes),
            "teacher_weight": lesson.weight,
            "temperature": lesson.temperature,
            "divergence": lesson.divergence,
            "teacher_topk": lesson.topk,
            "feature_weight": lesson.features,
            "input_noise": lesson.noise,
            "tasks": tasks,
            "compile": config.compile and not lesson.features,
        }
    )
    check_options(taught)
    return taught


def _opened(folder: Path, corpus: Corpus) -> LanguageModel:
    """A model that can teach on that corpus. Raises TrainError, ProjectError or CorruptError."""
    teacher = load_pretrained(folder)
    if not same_tokenizer(teacher, folder, corpus):
        raise TrainError(
            f"the tokenizer of the teacher {folder} is not the tokenizer of corpus {corpus.id}: their "
            "probabilities are of different tokens",
            hint="learn from text that it writes (sequence-level distillation): isoflop write "
            f"{folder} --out FILE; or build the corpus with --tokenizer {folder / 'tokenizer.json'}",
        )
    if teacher.config.objective != "causal":
        raise TrainError(
            f"the teacher {folder} has learned the objective {teacher.config.objective!r}",
            hint="name a causal model",
        )
    check_finite(teacher, folder)
    check_head(teacher, folder)
    return teacher


def _check_fits(folder: Path, teacher: LanguageModel, student: ModelConfig) -> None:
    """Raises TrainError for a teacher that does not see or know all that the student does."""
    theirs = teacher.config
    if theirs.vocab_size < student.vocab_size:
        raise TrainError(
            f"the teacher {folder} knows {theirs.vocab_size} tokens, and the student {student.vocab_size}",
            hint="name a teacher of the student's vocabulary",
        )
    if theirs.context < student.context:
        raise TrainError(
            f"the teacher {folder} reads {theirs.context} tokens at once, and the student {student.context}",
            hint=f"give a shorter window: --set model.context={theirs.context}",
        )


def _scored(
    source: Source, model: LanguageModel, config: RunConfig, corpus: Corpus, progress: Progress
) -> Source:
    """With its scores, in windows of the student."""
    scores = scores_of(model, corpus, config.eval_tokens)
    progress.log(f"{source.role} {source.path}: loss {scores.loss:.4f}, {scores.params_matmul:,} parameters")
    return source.model_copy(update={"scores": scores})


@torch.no_grad()
def _left_out(
    teachers: Sequence[LanguageModel], config: RunConfig, corpus: Corpus, progress: Progress
) -> dict[str, float]:
    """What the likeliest tokens leave of the teachers' probabilities, a mean over held-out text."""
    ids = heldout_windows(corpus, config.model.context, MEASURED_TOKENS)[:, :-1]
    parts = []
    for teacher in teachers:
        told = told_by(teacher.features(ids, ids)[0], teacher.head[: config.model.vocab_size])
        rows = (slice(start, start + CHUNK_TOKENS) for start in range(0, ids.numel(), CHUNK_TOKENS))
        parts += [left_out(told(r), config.teacher_topk) for r in rows]
    mass, apart = (float(torch.cat(values).mean()) for values in zip(*parts, strict=True))
    progress.log(
        f"the {config.teacher_topk} likeliest tokens leave out {mass:.2%} of the teacher's probability; with "
        f"the rest spread evenly it moves by {apart:.4f} in L1"
    )
    return {"probability left out": mass, "L1 distance": apart}


def _answers(
    project: Project, config: RunConfig, corpus: Corpus, cache_bytes: float, progress: Progress
) -> dict[str, Any]:
    """Where `Past` says that the teachers' likeliest tokens are kept: one run's kind at a time, the last."""
    if not config.teacher_topk or not cache_bytes:
        return {}
    contexts = {config.model.context, config.trunk_model.context}
    if config.input_noise:
        raise TrainError(
            "answers are kept for windows that are seen again, and noise makes each of them new",
            hint="leave out --cache or --noise",
        )
    each = cache_bytes / len(named(config)) / len(contexts)
    room = places_in(each, config.model.context, config.teacher_topk, config.model.vocab_size)
    kind = [named(config), sorted(contexts), config.teacher_topk, config.precision, each]
    folder = (project.folder / "answers" / digest(kind)).absolute()
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    windows = min(config.tokens, corpus.train_tokens) / config.model.context
    if room < windows:
        progress.log(f"{cache_bytes:,.0f} bytes keep about {room / windows:.0%} of the answers")
    return {"answers": folder, "answers_bytes": each}
