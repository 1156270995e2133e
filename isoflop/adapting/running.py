"""An adaptation from its first step to its last: batches in order, scores, what ends it, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isoflop import checkpoint as checkpoints
from isoflop.adapting.augment import Augment
from isoflop.adapting.batches import Rows, order_of
from isoflop.adapting.objective import Batch
from isoflop.adapting.planning import SPARE, Pace, steps_asked, steps_that_fit
from isoflop.adapting.records import Point, Trial
from isoflop.adapting.training import Training, Weights
from isoflop.errors import AdaptError, BudgetError
from isoflop.interrupt import Interrupted
from isoflop.metrics import METRICS, scored
from isoflop.progress import Progress, Silent

REHEARSED = 3  # steps that the first plan is made from
REPLANNED = 10  # steps after which it is made again, from real ones; and after twice, four times ... as many
PREDICTED = 32  # examples of a batch that is only scored
CHECKPOINT_SECONDS = 20.0
STAGE = "adapt"

Report = Callable[[Point], bool]  # hears of a score; true stops the adaptation


@torch.no_grad()
def predicted(
    rows: Rows, model: nn.Module, size: int, progress: Progress,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Any]:  # fmt: skip
    """Predictions of encoded rows, in their order; the model's mode is left as it was."""
    device, training = next(model.parameters()).device, model.training
    found: list[Any] = [None] * len(rows)
    progress.start("predict", len(rows), "examples")
    model.eval()
    done = 0
    for numbers, batch in rows.in_order(size):
        with autocast():
            made = rows.task.predict(model, rows.base, rows.spec, moved(batch, device))
        for number, prediction in zip(numbers, made, strict=True):
            found[number] = prediction
        done += len(numbers)
        progress.update("predict", done)
    model.train(training)
    progress.finish("predict")
    return found


def moved(batch: Batch, device: torch.device) -> Batch:
    return {name: x.to(device) for name, x in batch.items()}


def units(batch: Batch) -> int:
    """What a batch's FLOPs go with: tokens of inputs and targets, padding among them; else its examples."""
    if "input_ids" not in batch:
        return len(next(iter(batch.values())))
    targets = batch["labels"].numel() if batch["labels"].dim() > 1 else 0
    return batch["input_ids"].numel() + targets


class Clock:
    """The time since the start, and how long a step and a score take."""

    def __init__(self, started: float, limit: float | None) -> None:
        self.started, self.limit, self.earlier = started, limit, 0.0
        self.steps: list[float] = []
        self.scorings: list[float] = []

    @property
    def seconds(self) -> float:
        """Since the start, those of an interrupted part among them."""
        return self.earlier + time.monotonic() - self.started

    @property
    def left(self) -> float:
        """But for what is kept back."""
        assert self.limit is not None
        return self.limit * (1 - SPARE) - self.seconds

    @property
    def pace(self) -> Pace:
        enough = len(self.steps) >= REHEARSED + REPLANNED
        steps = self.steps[REHEARSED:] if enough else self.steps  # the first are slower than the others
        return Pace(float(np.mean(steps)), float(np.mean(self.scorings)))


@dataclass
class Place:
    """How far an adaptation has come: what its checkpoint says beside the weights."""

    total: int  # steps that are planned
    scores: int  # that are planned
    step: int = 0
    scored_at: int = 0  # step of the last score
    examples: int = 0
    flops: float = 0.0
    flops_per_unit: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last score
    worse: int = 0  # scores in a row without a better one
    best: float | None = None
    seconds: float = 0.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Running:
    """Steps, scores, and what ends them."""

    def __init__(
        self, training: Training, train: Rows, validation: Rows, replay: Rows | None,
        augment: Augment | None, clock: Clock, device: torch.device,
    ) -> None:  # fmt: skip
        self.training, self.train, self.validation, self.replay = training, train, validation, replay
        self.config, self.augment, self.clock, self.device = training.config, augment, clock, device
        self.metric = METRICS[train.task.metrics[0]]
        self.references = train.task.references(train.spec, validation.raw)
        self.replayed = round(self.config.replay * self.config.batch) if replay is not None else 0
        self.fresh = max(1, self.config.batch - self.replayed)  # training examples of a batch
        self.asked = steps_asked(self.config, len(train), self.fresh)
        self.place = Place(self.asked, max(1, min(self.config.evaluations, self.asked)))
        self.best: Weights = {}
        self.order: tuple[int, list[list[int]]] = (-1, [])

    def run(
        self, report: Report, progress: Progress, pressed: Callable[[], bool], folder: Path | None
    ) -> Trial:
        """Train to the end; the model then has its best weights."""
        resumed = self._resumed(folder, progress)
        self._measure()
        if not resumed and self.clock.limit is not None:
            self._plan_first()
        place, saved, note = self.place, time.monotonic(), ""
        stopped = self._patience_over()
        progress.start(STAGE, place.total, "steps")
        self.training.model.train()
        while place.step < place.total and not stopped:
            if pressed():
                self._save(folder)
                raise Interrupted
            begun, scoring = time.monotonic(), 0.0
            self._step()
            self._keep_to_time()
            if self._due():
                stopped = self._score(report) or self._patience_over()
                scoring, note = self.clock.scorings[-1], f"{self.metric.name} {place.curve[-1]['score']:.4f}"
            if folder is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                self._save(folder)
                saved = time.monotonic()
            progress.update(STAGE, place.step, note)
            self.clock.steps.append(time.monotonic() - begun - scoring)
        self.training.load_weights(self.best)
        progress.finish(STAGE, f"{self.metric.name} {place.best:.4f}")
        assert place.best is not None
        return Trial(
            config=self.config, curve=tuple(Point(**point) for point in place.curve), score=place.best,
            seconds=self.clock.seconds, flops=place.flops, params_trained=self.training.params_trained,
            stopped=stopped or ("budget" if place.total < self.asked else ""),
        )  # fmt: skip

    def _step(self) -> None:
        place = self.place
        batch = self._batch(place.step)
        place.examples += len(self._rows(place.step))
        place.losses.append(self.training.step(batch, place.step, place.total))
        place.step += 1
        place.flops += place.flops_per_unit * units(batch)

    def _rows(self, step: int) -> list[int]:
        """Numbers of the training examples of a step, the same whenever they are asked for."""
        epoch, number = divmod(step, -(-len(self.train) // self.fresh))
        if self.order[0] != epoch:
            self.order = epoch, order_of(self.train.lengths, self.fresh, seed=self.config.seed, epoch=epoch)
        return self.order[1][number]

    def _batch(self, step: int) -> Batch:
        rng, rows = np.random.default_rng((self.config.seed, step)), self._rows(step)
        features = (
            self.train.features_of(rows)
            if self.augment is None
            else self.train.augmented(rows, self.augment, rng)
        )
        if self.replay is not None and self.replayed:
            features += self.replay.features_of(rng.integers(len(self.replay), size=self.replayed).tolist())
        return moved(self.train.collated(features), self.device)

    def _due(self) -> bool:
        place = self.place
        return (
            place.step - place.scored_at >= max(1, -(-place.total // place.scores))
            or place.step >= place.total
        )

    def _patience_over(self) -> str:
        return "patience" if self.config.patience and self.place.worse >= self.config.patience else ""

    def _score(self, report: Report) -> str:
        """Score the model and keep what is best; returns "pruned" where the report says so."""
        place, begun = self.place, time.monotonic()
        with self.training.averaged():
            autocast = self.training.precision.autocast
            found = predicted(self.validation, self.training.model, PREDICTED, Silent(), autocast)
            value = scored(self.metric, found, self.references, resamples=1).value
            sign = 1 if self.metric.higher_is_better else -1
            if place.best is None or math.isnan(place.best) or sign * value > sign * place.best:
                place.best, place.worse, self.best = value, 0, self.training.weights()
            else:
                place.worse += 1
        self.clock.scorings.append(time.monotonic() - begun)
        point = Point(
            step=place.step, examples=place.examples, seconds=self.clock.seconds,
            train_loss=float(np.mean(place.losses)), score=value,
        )  # fmt: skip
        place.curve.append(point.model_dump())
        place.scored_at, place.losses = place.step, []
        return "pruned" if report(point) else ""

    def _measure(self) -> None:
        """The FLOPs of a first step, and with a time to keep how long steps and scores take."""
        training = self.training
        with training.nothing_kept():
            first = self._batch(0)
            self.place.flops_per_unit = training.flops_of(first) / units(first)
            if self.clock.limit is None:
                return
            for step in range(REHEARSED):
                begun = time.monotonic()
                training.gradients(self._batch(step), step)
                self.clock.steps.append(time.monotonic() - begun)
            self.clock.scorings.append(self._rehearsed_scoring())

    def _plan_first(self) -> None:
        """Raises BudgetError where there is no time for a step."""
        self._plan()
        if not self.place.total:
            pace = self.clock.pace
            raise BudgetError(
                f"{self.clock.limit:.1f} seconds are too few: {self.clock.seconds:.1f} are over, and one "
                f"step with one score takes {sum(pace):.1f} more",
                hint="give more time, fewer validation examples, or a smaller model",
            )

    def _rehearsed_scoring(self) -> float:
        """Seconds that a score of all validation examples will take, by some of them."""
        some = np.linspace(0, len(self.validation) - 1, min(PREDICTED, len(self.validation))).astype(int)
        begun = time.monotonic()
        model, rows = self.training.model.eval(), self.validation
        batch = moved(rows.collated(rows.features_of(some.tolist())), self.device)
        with torch.no_grad(), self.training.precision.autocast():
            rows.task.predict(model, rows.base, rows.spec, batch)
        return (time.monotonic() - begun) * len(rows) / len(some)

    def _keep_to_time(self) -> None:
        """Plan again where real steps say more, and end where another step would be too late."""
        place = self.place
        if self.clock.limit is None or place.step >= place.total:
            return
        tens, rest = divmod(place.step, REPLANNED)
        if place.step == place.scored_at + 1 or (not rest and tens & (tens - 1) == 0):
            self._plan()
        elif self.clock.left < sum(self.clock.pace):
            place.total = place.step

    def _plan(self) -> None:
        place = self.place
        done = len(place.curve)
        steps, scores = steps_that_fit(self.clock.pace, max(1, place.scores - done), self.clock.left)
        place.total, place.scores = min(self.asked, place.step + steps), done + scores

    def _save(self, folder: Path | None) -> None:
        if folder is None:
            return
        self.place.seconds = self.clock.seconds
        state = {
            "config": self.config.model_dump_json(), "place": asdict(self.place), "best": self.best,
            "training": self.training.state(),
        }  # fmt: skip
        checkpoints.save(folder, state, self.place.step)

    def _resumed(self, folder: Path | None, progress: Progress) -> bool:
        """Whether there was a checkpoint, which it then goes on from. Raises AdaptError for another's."""
        state = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            state = checkpoints.load(folder, progress)
        if state is None:
            return False
        if state["config"] != self.config.model_dump_json():
            raise AdaptError(
                f"the checkpoint in {folder} is of another configuration", hint="name another folder for it"
            )
        self.place, self.best = Place(**state["place"]), state["best"]
        self.clock.earlier = self.place.seconds
        self.training.load(state["training"])
        progress.log(f"going on from step {self.place.step} of {self.place.total}")
        return True
