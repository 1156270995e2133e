"""Tasks learned one after another by one model, and what each leaves of the others.

Against forgetting there are replay of earlier examples, elastic weight consolidation (Kirkpatrick et al.,
arXiv 1612.00796), and an adapter for each task on a base that never changes, chosen by the task when it
predicts. What is measured follows Lopez-Paz and Ranzato (arXiv 1706.08840, section 2).

Consolidation at strength 1 counts each earlier example once, as the posterior does, and holds
next to nothing, perhaps since its penalty takes each weight alone, while training moves them together. On the
tests' two small data sets strengths of 10,000 to 100,000 hold, as replay of half of each batch does.

Shapes: T tasks, r resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from isoflop.adapting.fisher import fisher_information
from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, Sources, tell_unseen
from isoflop.adapting.loop import fine_tune, predict_all
from isoflop.adapting.methods import prepared
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.training import Penalty
from isoflop.continued import Consolidation
from isoflop.devices import device_for
from isoflop.errors import AdaptError
from isoflop.metrics import METRICS, Metric
from isoflop.metrics.bootstrap import LEVEL, RESAMPLES, central, resampled
from isoflop.metrics.protocol import Array
from isoflop.progress import Progress, Silent
from isoflop.records import Interval, Record
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset


class Stage(NamedTuple):
    """One of the data sets that are learned in order."""

    name: str
    rows: Mapping[str, Dataset]  # train, validation and test, with columns named by roles


class Against(Record):
    """What is done against forgetting; nothing by default."""

    replay: float = 0.0  # share of each batch that is drawn from the examples of earlier tasks
    ewc: float = 0.0  # strength: as if each earlier example had been there so many times
    per_task: bool = False  # an adapter for each


class InOrder(Record):
    """What is known of each task after each has been learned."""

    task: str
    names: tuple[str, ...]  # of the data sets, in order
    labels: tuple[str, ...]  # of all of them together
    config: AdaptConfig
    against: Against
    metric: str
    higher_is_better: bool
    before: tuple[float, ...]  # (T,) b: of the base under a new head
    scores: tuple[tuple[float, ...], ...]  # (T, T) R: row i is after task i, column j is of test examples j
    average: Interval  # equation 2
    backward: Interval  # equation 3: what later tasks changed; below zero is forgetting of a higher-is-better
    forward: Interval  # equation 4: what earlier tasks gave to those that were not yet learned
    notes: tuple[str, ...] = ()


def average_score(r_tt: Array) -> Array:
    """Equation 2: the mean over tasks of the last row of R (..., T, T)."""
    return np.asarray(r_tt[..., -1, :].mean(-1))


def backward_transfer(r_tt: Array) -> Array:
    """Equation 3: the mean over all tasks but the last of R_Ti - R_ii, of R (..., T, T)."""
    own = np.diagonal(r_tt, axis1=-2, axis2=-1)
    return np.asarray((r_tt[..., -1, :] - own)[..., :-1].mean(-1))


def forward_transfer(r_tt: Array, b_t: Array) -> Array:
    """Equation 4: the mean over all tasks but the first of R_(i-1)i - b_i, with b (..., T)."""
    just_before = np.diagonal(r_tt, offset=1, axis1=-2, axis2=-1)
    return np.asarray((just_before - b_t[..., 1:]).mean(-1))


def stages_of(
    task: Task, data: Sequence[Path], columns: Mapping[str, str], *, seed: int = 0,
    notes: list[str] | None = None, progress: Progress | None = None,
) -> list[Stage]:  # fmt: skip
    """The data sets, each split on its own. Raises AdaptError for fewer than two, or data that do not fit."""
    if len(data) < 2:
        raise AdaptError("a sequence has two data sets or more", hint="give --data for each, in order")
    notes, progress = [] if notes is None else notes, progress or Silent()
    stages: list[Stage] = []
    for path in data:
        rows, _ = Sources([path]).read(task, columns, seed, notes, progress)
        same = sum(stage.name.partition(" ")[0] == path.stem for stage in stages)
        stages.append(Stage(path.stem if not same else f"{path.stem} {same + 1}", rows))
    return stages


def learn_in_order(
    task: Task, base: Base, stages: Sequence[Stage], config: AdaptConfig, against: Against, *,
    notes: Sequence[str] = (), progress: Progress | None = None,
) -> tuple[InOrder, Spec, list[nn.Module]]:  # fmt: skip
    """Learn the stages in order; returns what came of it, and the last model, or with adapters one a stage.

    Labels are those of all stages, from the beginning. Raises AdaptError for what does not go together.
    """
    _check(against, config)
    progress, notes = progress or Silent(), list(notes)
    config = config.model_copy(update={"replay": against.replay})
    spec = task.spec(_together([stage.rows[TRAIN] for stage in stages]), base)
    for stage in stages:
        _tell_labels(stage, spec, notes)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        fresh = prepared(task.build(base, spec), config, base).to(device_for())
    before = _predictions(task, base, spec, stages, fresh)
    learn = _apart if against.per_task else _on
    found, models = learn(task, base, spec, stages, config, against, fresh, before, progress)
    metric = METRICS["accuracy" if "accuracy" in task.metrics else task.metrics[0]]
    references = [task.references(spec, stage.rows[TEST]) for stage in stages]
    drawn = np.stack([_drawn(metric, row, references, config.seed) for row in (before, *found)])
    return _answer(task, spec, stages, config, against, metric, drawn, notes), spec, models


Predictions = list[list[Any]]  # of each stage's test examples


def _predictions(
    task: Task, base: Base, spec: Spec, stages: Sequence[Stage], model: nn.Module
) -> Predictions:
    return [predict_all(task, base, spec, model.eval(), stage.rows[TEST]) for stage in stages]


def _on(
    task: Task, base: Base, spec: Spec, stages: Sequence[Stage], config: AdaptConfig, against: Against,
    model: nn.Module, before: Predictions, progress: Progress,
) -> tuple[list[Predictions], list[nn.Module]]:  # fmt: skip
    """One model that goes on; predictions after each stage."""
    found: list[Predictions] = []
    held: list[tuple[Consolidation, int]] = []
    for number, stage in enumerate(stages):
        progress.log(f"learning {stage.name}, {number + 1} of {len(stages)}")
        earlier = [other.rows[TRAIN] for other in stages[:number]]
        model = fine_tune(
            task, base, spec, stage.rows[TRAIN], stage.rows[VALIDATION],
            config, initial=model, progress=progress, penalty=_penalty(held, len(stage.rows[TRAIN])),
            replay=_together(earlier) if earlier and against.replay else None,
        ).model  # fmt: skip
        found.append(_predictions(task, base, spec, stages, model))
        if against.ewc and number + 1 < len(stages):
            fisher = fisher_information(task, base, spec, model, stage.rows[TRAIN], seed=config.seed)
            held.append((Consolidation(model, fisher, against.ewc), len(stage.rows[TRAIN])))
    return found, [model]


def _penalty(held: Sequence[tuple[Consolidation, int]], examples: int) -> Penalty | None:
    """One for each earlier task and its number of examples (Kirkpatrick et al., section 2).

    The loss is a mean over examples, of which there are so many now: the old ones weigh as their numbers.
    """
    if not held:
        return None

    def add(model: nn.Module) -> None:
        for consolidation, old in held:
            consolidation.add_gradients(old / examples)

    return add


def _apart(
    task: Task, base: Base, spec: Spec, stages: Sequence[Stage], config: AdaptConfig, against: Against,
    fresh: nn.Module, before: Predictions, progress: Progress,
) -> tuple[list[Predictions], list[nn.Module]]:  # fmt: skip
    """A model for each stage; a stage that is not learned yet has the base under a new head."""
    models, own = list[nn.Module](), Predictions()
    for number, stage in enumerate(stages):
        progress.log(f"learning {stage.name}, {number + 1} of {len(stages)}")
        tuned = fine_tune(
            task, base, spec, stage.rows[TRAIN], stage.rows[VALIDATION], config, progress=progress
        )
        models.append(tuned.model)
        own.append(predict_all(task, base, spec, tuned.model, stage.rows[TEST]))
    return [own[: i + 1] + before[i + 1 :] for i in range(len(stages))], models


def _check(against: Against, config: AdaptConfig) -> None:
    if not 0 <= against.replay < 1:
        raise AdaptError(
            f"a replay of {against.replay:g} is no share of a batch", hint="give a number from 0 to below 1"
        )
    if against.ewc < 0:
        raise AdaptError(f"a strength of {against.ewc:g} would drive weights away", hint="give 0 or more")
    if against.per_task and (against.replay or against.ewc):
        raise AdaptError(
            "an adapter for each task forgets nothing", hint="leave out --replay and --ewc, or --per-task"
        )
    if against.per_task and config.method == "full":
        raise AdaptError(
            "an adapter for each task leaves the base as it is, and full training does not",
            hint="give --method lora",
        )


def _together(parts: Sequence[Dataset]) -> Dataset:
    from datasets import concatenate_datasets

    return concatenate_datasets(list(parts))


def _tell_labels(stage: Stage, spec: Spec, notes: list[str]) -> None:
    """Says which labels its training examples lack, and which of its held-out ones no stage trains on."""
    rows = stage.rows[TRAIN]
    if "label" in rows.column_names:
        missing = sorted(set(spec.labels) - {str(label) for label in rows["label"]})
        if missing:
            notes.append(
                f"{stage.name} has no examples of {', '.join(missing)}: labels are those of all sets"
            )
    tell_unseen(stage.rows, spec, notes)


def _drawn(metric: Metric, found: Predictions, references: Sequence[list[Any]], seed: int) -> Array:
    """(1 + r, T): each stage's score, and of resamples that are the same examples after every stage."""
    columns = []
    for j, (predictions, true) in enumerate(zip(found, references, strict=True)):
        value = metric.value(metric.statistics(predictions, true).sum(0, keepdims=True))
        columns.append(np.concatenate([value, resampled(metric, predictions, true, seed=seed + j)]))
    return np.stack(columns, axis=1)


def _answer(
    task: Task, spec: Spec, stages: Sequence[Stage], config: AdaptConfig, against: Against, metric: Metric,
    drawn: Array, notes: Sequence[str],
) -> InOrder:  # fmt: skip
    """Of (1 + T, 1 + r, T): before and after each stage, the score and its resamples, by test set."""
    assert drawn.shape == (1 + len(stages), 1 + RESAMPLES, len(stages))
    b, r = drawn[0], drawn[1:].swapaxes(0, 1)
    average, backward, forward = (
        _interval(values) for values in (average_score(r), backward_transfer(r), forward_transfer(r, b))
    )
    return InOrder(
        task=task.name, names=tuple(stage.name for stage in stages), labels=spec.labels, config=config,
        against=against, metric=metric.name, higher_is_better=metric.higher_is_better,
        before=tuple(b[0].tolist()), scores=tuple(tuple(row) for row in r[0].tolist()), average=average,
        backward=backward, forward=forward, notes=tuple(notes),
    )  # fmt: skip


def _interval(values: Array) -> Interval:
    """Of a value and its resamples (1 + r,)."""
    low, high = central(values[1:])
    return Interval(value=float(values[0]), low=low, high=high, level=LEVEL, of="mean")
