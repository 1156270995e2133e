"""The runs of a task's law: subsets of the examples, default values, and further bases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from isoflop.adapting.bases import spec_like
from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, some
from isoflop.adapting.law import CHOSEN, DEFAULT, LEAST_STEPS, Price, Wanted, epochs_of, task_law
from isoflop.adapting.loop import fine_tune, predict_all
from isoflop.adapting.pace import Seen, look
from isoflop.adapting.records import AdaptConfig, LawPoint, TaskLaw, Trial
from isoflop.adapting.usual import unlearned
from isoflop.adapting.work import FINAL, Work
from isoflop.errors import AdaptError
from isoflop.metrics import scored
from isoflop.tasks.protocol import Base, Spec


class Subject(NamedTuple):
    """A base that the law is about."""

    base: Base
    spec: Spec
    params: int


@dataclass(frozen=True)
class Runs:
    """What makes a run of the law."""

    work: Work
    config: AdaptConfig
    subjects: dict[str, Subject]  # by who asks for them

    def measure(self, wanted: Wanted, passes: float) -> LawPoint | None:
        """Train on a subset for so many passes, and score on the test examples; the ledger keeps it."""
        work = self.work
        examples = max(2, round(wanted.share * len(work.rows[TRAIN])))
        done = {(p.who, p.examples, p.seed): p for p in work.record.points}
        if (wanted.who, examples, wanted.seed) in done:
            return done[wanted.who, examples, wanted.seed]
        try:
            with work.part("law"):
                point = self._made(wanted, examples, passes)
        except AdaptError as error:
            work.notes.append(
                f"a run of the law failed ({wanted.who}, {examples:,} examples): {error.message}"
            )
            return None
        work.change(points=(*work.record.points, point), law_passes=passes)
        work.progress.log(
            f"law: {wanted.who}, {examples:,} examples: {point.score.metric} {point.score.value:.4f} in "
            f"{point.seconds:.1f} s"
        )
        return point

    def _made(self, wanted: Wanted, examples: int, passes: float) -> LawPoint:
        work, began = self.work, time.monotonic()
        base, spec, params = self.subjects[wanted.who]
        rows, test = some(work.rows[TRAIN], examples, work.seed + wanted.seed), work.rows[TEST]
        tuned = fine_tune(
            work.task, base, spec, rows, work.rows[VALIDATION], self._config(wanted, passes, examples),
            features=work.features, teacher=work.teacher if wanted.who == CHOSEN else None,
        )  # fmt: skip
        found = predict_all(work.task, base, spec, tuned.model, test, features=work.features)
        return LawPoint(
            who=wanted.who, params=params, examples=examples, seed=wanted.seed,
            score=scored(work.metric, found, work.task.references(spec, test)),
            seconds=time.monotonic() - began,
        )  # fmt: skip

    def _config(self, wanted: Wanted, passes: float, examples: int) -> AdaptConfig:
        """Scored at its end alone."""
        config = default_of(self.config) if wanted.who == DEFAULT else self.config
        epochs, seed = epochs_of(passes, examples, config.batch), config.seed + wanted.seed
        return config.model_copy(
            update={"epochs": epochs, "steps": 0, "evaluations": 1, "patience": 0, "seed": seed}
        )


def default_of(config: AdaptConfig) -> AdaptConfig:
    """Full fine-tuning with the values that nobody chose, in the chosen one's precision."""
    return AdaptConfig(task=config.task, seed=config.seed, precision=config.precision)


def law_is_paid(work: Work, best: AdaptConfig, others: Sequence[Base], seen: Seen, seconds: float) -> bool:
    """Whether so many seconds will do for a law, as far as the trials tell."""
    trial = next(trial for trial in work.record.trials if trial.config == best)
    fixed = seen.pace.opening + seen.pace.predicting * (len(work.rows[VALIDATION]) + len(work.rows[TEST]))
    relative = {str(base.folder): 1.0 for base in others}
    price = Price(trial.seconds / trial.curve[-1].examples, fixed, relative, LEAST_STEPS * best.batch)
    return price.least_seconds(len(work.rows[TRAIN])) <= seconds


def law_of_task(
    work: Work, config: AdaptConfig, name: str, others: Sequence[Base], seen: Seen, scoring: float
) -> TaskLaw:
    """What is left of the budget goes to it.

    `name` is the model that was chosen, and `scoring` the seconds of its scores on the test examples.
    """
    own = Subject(work.base, work.spec, seen.params)
    subjects, relative = {CHOSEN: own, DEFAULT: own}, {}
    with work.part("law"):
        for base in others:
            cut = replace(base, max_length=min(base.max_length, work.base.max_length))
            spec = spec_like(work.spec, work.task, cut, work.rows[TRAIN])
            other = look(work.task, cut, spec, work.rows[TRAIN])
            subjects[str(base.folder)] = Subject(cut, spec, other.params)
            relative[str(base.folder)] = other.pace.training / seen.pace.training
    trained, examples = _trained(work, config, name), len(work.rows[TRAIN])
    learned = trained.curve[-1].examples
    fixed = seen.pace.opening + seen.pace.predicting * len(work.rows[VALIDATION]) + scoring
    values = {"method", "lr", "batch"}
    return task_law(
        Runs(work, config, subjects).measure, work.metric, examples,
        work.left + sum(point.seconds for point in work.record.points),
        Price(trained.seconds / learned, fixed, relative, LEAST_STEPS * config.batch),
        passes=learned / examples, known=work.record.law_passes, seed=work.seed,
        default=config.model_dump(include=values) != default_of(config).model_dump(include=values),
        unlearned=unlearned(work.task, work.spec, work.rows[TRAIN], work.rows[TEST]),
    )  # fmt: skip


def _trained(work: Work, config: AdaptConfig, name: str) -> Trial:
    """The training that made the chosen model."""
    if name == FINAL and work.record.final is not None:
        return work.record.final
    return next(trial for trial in work.record.trials if trial.config == config)
