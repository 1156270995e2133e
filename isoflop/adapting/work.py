"""One adaptation while it goes on: its inputs, its budget, and what the ledger has of it.

The record is put after every piece of work, so that the same call goes on where it was interrupted. Models
that may still be chosen lie in the project's folder `adapting/ID/`, which is deleted at the end.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from isoflop.adapting.batches import Rows
from isoflop.adapting.loop import fine_tune, predict_all, scores_of
from isoflop.adapting.methods import AS_IS
from isoflop.adapting.objective import Teacher
from isoflop.adapting.records import AdaptConfig, LawPoint, Point, Trial
from isoflop.adapting.saved import is_adapted, load_adapted, save_adapted
from isoflop.metrics import METRICS, Metric, Score
from isoflop.progress import Progress
from isoflop.records import Record
from isoflop.store import Project
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

KIND = "adapting"
BEST, FINAL, BASE = "best", "final", "base"  # models: of the search, of the long training, as it was
CHECKPOINT, FEATURES = "checkpoint", "features"  # what else the folder has
MARGIN = 0.98  # of the seconds that a training is given; the rest is for putting it away


class Adapting(Record):
    """An adaptation that goes on."""

    id: str
    max_length: int | None = None  # tokens of an input; None: that is not known yet
    cut: int = 0  # training inputs that are longer
    tested: int | None = None  # test examples that are scored
    validated: int | None = None  # validation examples that are scored in the search
    each: float | None = None  # seconds of a trial
    trials: tuple[Trial, ...] = ()
    best: AdaptConfig | None = None  # of the search, once that is over
    final: Trial | None = None
    baseline: tuple[Score, ...] = ()
    baseline_says: str = ""
    few_shot: tuple[Score, ...] = ()
    few_shot_says: str = ""
    law_passes: float | None = None  # of the law's runs, once that is known
    points: tuple[LawPoint, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)  # by stage, of all processes


@dataclass
class Work:
    """What one adaptation works with."""

    project: Project
    record: Adapting
    task: Task
    base: Base
    spec: Spec
    rows: dict[str, Dataset]  # train, validation, test; columns are roles
    budget: float  # seconds
    seed: int
    notes: list[str]
    progress: Progress
    teacher: Teacher | None = None  # tells its logits of training rows

    @property
    def folder(self) -> Path:
        return self.project.folder / KIND / self.record.id

    @property
    def features(self) -> Path:
        """Encoded rows."""
        return self.folder / FEATURES

    @property
    def metric(self) -> Metric:
        """The chief one."""
        return METRICS[self.task.metrics[0]]

    @property
    def as_is(self) -> AdaptConfig:
        """Of the base that learned nothing."""
        return AdaptConfig(task=self.task.name, method=AS_IS.name, lr=AS_IS.lr, epochs=0, seed=self.seed)

    @property
    def left(self) -> float:
        return self.budget - sum(self.record.seconds.values())

    def change(self, **values: object) -> None:
        """Replace fields of the record, and keep it."""
        self.record = self.record.model_copy(update=values)
        self.project.put(KIND, self.record)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of a piece of work."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.count(name, time.monotonic() - began)

    def count(self, name: str, seconds: float) -> None:
        """More seconds of a stage."""
        spent = self.record.seconds.get(name, 0.0) + seconds
        self.change(seconds={**self.record.seconds, name: spent})

    def read_to(self, length: int) -> None:
        """Cut inputs to so many tokens."""
        if length < self.base.max_length:
            self.notes.append(
                f"inputs are read to {length} tokens, for want of time; --max-length says otherwise"
            )
            self.base = replace(self.base, max_length=length)
            self.spec = self.spec.model_copy(update={"max_length": length})
        self.change(max_length=length)

    def encode(self) -> None:
        """Encode all rows, so that no trial pays for it."""
        with self.part("encode"):
            self.features.mkdir(parents=True, exist_ok=True)
            for split, rows in self.rows.items():
                Rows(self.task, self.base, self.spec, rows, self.features, split)

    # -- trainings --------------------------------------------------------------------------------------

    def attempt(
        self, config: AdaptConfig, validation: Dataset, seconds: float, report: Callable[[Point], bool]
    ) -> Trial:
        """A trial of the search; its model is kept while it is the best of those so far."""
        with self.part("search"):
            began = time.monotonic()
            tuned = fine_tune(
                self.task, self.base, self.spec, self.rows["train"], validation, config,
                seconds=MARGIN * seconds, report=report, features=self.features, teacher=self.teacher,
            )  # fmt: skip
            self.record = self.record.model_copy(update={"cut": tuned.cut})
            gain = self._gain(tuned.trial)
            if all(gain > self._gain(t) for t in self.record.trials if t.curve):
                self._save(BEST, config, tuned.model)
            return tuned.trial.model_copy(update={"seconds": time.monotonic() - began})

    def train(self, config: AdaptConfig, seconds: float) -> None:
        """The long training of the chosen configuration, from its start."""
        with self.part("train"):
            tuned = fine_tune(
                self.task, self.base, self.spec, self.rows["train"], self.rows["validation"], config,
                seconds=MARGIN * seconds, progress=self.progress, checkpoint=self.folder / CHECKPOINT,
                features=self.features, teacher=self.teacher,
            )  # fmt: skip
            self._save(FINAL, config, tuned.model)
            self.record = self.record.model_copy(update={"final": tuned.trial, "cut": tuned.cut})
        shutil.rmtree(self.folder / CHECKPOINT)

    def _gain(self, trial: Trial) -> float:
        return trial.score if self.metric.higher_is_better else -trial.score

    # -- models -----------------------------------------------------------------------------------------

    def _save(self, name: str, config: AdaptConfig, model: nn.Module) -> None:
        folder = self.folder / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        save_adapted(folder, self.task, self.base, self.spec, config, model)

    def save_base(self) -> nn.Module:
        """The base under its task's head, as it is; a model like the others."""
        model = self.task.build(self.base, self.spec).eval()
        self._save(BASE, self.as_is, model)
        return model

    def saved(self, name: str) -> nn.Module | None:
        """That model, if it is there."""
        return load_adapted(self.folder / name, alone=True)[3] if is_adapted(self.folder / name) else None

    def predicted(self, model: nn.Module, rows: Dataset) -> list[Any]:
        """What a model says of rows."""
        return predict_all(self.task, self.base, self.spec, model, rows, features=self.features)

    def scores(self, predictions: Sequence[Any], rows: Dataset) -> tuple[Score, ...]:
        return scores_of(self.task, predictions, self.task.references(self.spec, rows))
