"""The runs of a task's law: subsets of the examples, default values, and further bases."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, some
from isoflop.adapting.law import CHOSEN, DEFAULT, Price, Wanted, task_law
from isoflop.adapting.loop import fine_tune, predict_all
from isoflop.adapting.pace import Seen, look
from isoflop.adapting.records import AdaptConfig, LawPoint, TaskLaw, Trial
from isoflop.adapting.work import FINAL, Work
from isoflop.metrics import scored
from isoflop.tasks.protocol import Base


@dataclass(frozen=True)
class Runs:
    """What makes a run of the law."""

    work: Work
    config: AdaptConfig
    bases: dict[str, tuple[Base, int]]  # by who asks for them: the base and its parameters

    def measure(self, wanted: Wanted, passes: float) -> LawPoint:
        """Train on a subset for so many passes, and score on the test examples; the ledger keeps it."""
        work = self.work
        examples = max(2, round(wanted.share * len(work.rows[TRAIN])))
        asked = (wanted.who, examples, wanted.seed)
        done = {(p.who, p.examples, p.seed): p for p in work.record.points}
        if asked in done:
            return done[asked]
        with work.part("law"):
            began = time.monotonic()
            base, params = self.bases[wanted.who]
            rows = some(work.rows[TRAIN], examples, work.seed + wanted.seed)
            tuned = fine_tune(
                work.task, base, work.spec, rows, work.rows[VALIDATION], self._config(wanted, passes)
            )
            found = predict_all(work.task, base, work.spec, tuned.model, work.rows[TEST])
            score = scored(work.metric, found, work.task.references(work.spec, work.rows[TEST]))
            point = LawPoint(
                who=wanted.who, params=params, examples=examples, seed=wanted.seed, score=score,
                seconds=time.monotonic() - began,
            )  # fmt: skip
        work.change(points=(*work.record.points, point))
        work.progress.log(
            f"law: {wanted.who}, {examples:,} examples: {score.metric} {score.value:.4f} in "
            f"{point.seconds:.1f} s"
        )
        return point

    def _config(self, wanted: Wanted, passes: float) -> AdaptConfig:
        """Scored at its end alone."""
        config = default_of(self.config) if wanted.who == DEFAULT else self.config
        return config.model_copy(
            update={
                "epochs": passes, "steps": 0, "evaluations": 1, "patience": 0,
                "seed": config.seed + wanted.seed,
            }
        )  # fmt: skip


def default_of(config: AdaptConfig) -> AdaptConfig:
    """Full fine-tuning with the values that nobody chose."""
    return AdaptConfig(task=config.task, seed=config.seed)


def law_of_task(
    work: Work, config: AdaptConfig, name: str, others: Sequence[Base], seen: Seen, scoring: float
) -> TaskLaw:
    """What is left of the budget goes to it. `scoring` is the seconds of the test examples."""
    trained = _trained(work, config, name)
    examples = len(work.rows[TRAIN])
    bases = {CHOSEN: (work.base, seen.params), DEFAULT: (work.base, seen.params)}
    relative = {}
    for base in others:
        with work.part("law"):
            other = look(work.task, base, work.spec, work.rows[TRAIN])
        bases[str(base.folder)] = base, other.params
        relative[str(base.folder)] = other.pace.training / seen.pace.training
    seen_examples = trained.curve[-1].examples
    price = Price(
        trained.seconds / seen_examples,
        seen.pace.opening + seen.pace.predicting * len(work.rows[VALIDATION]) + scoring, relative,
    )  # fmt: skip
    own = {"method", "lr", "batch"}
    return task_law(
        Runs(work, config, bases).measure, work.metric, examples, work.left + _law_spent(work), price,
        passes=seen_examples / examples, seed=work.seed,
        default=config.model_dump(include=own) != default_of(config).model_dump(include=own),
    )  # fmt: skip


def _law_spent(work: Work) -> float:
    """On runs of an ended process, which count as those of this one."""
    return sum(point.seconds for point in work.record.points)


def _trained(work: Work, config: AdaptConfig, name: str) -> Trial:
    """The training that made the chosen model."""
    if name == FINAL and work.record.final is not None:
        return work.record.final
    return next(trial for trial in work.record.trials if trial.config == config)
