"""How long an adaptation's parts take on this machine, measured on a few examples before any is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from isoflop.adapting.methods import METHODS
from isoflop.adapting.objective import Batch
from isoflop.adapting.parts import CHECKPOINTS, new_parameters
from isoflop.adapting.running import moved
from isoflop.devices import device_for, preferred_precision
from isoflop.precision import Precision
from isoflop.tasks.protocol import Base, LossOptions, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset

LOOKED_AT, MORE = 2, 32  # examples; more where these take no time worth speaking of
QUICK, SLOW = 0.1, 1.0  # seconds
SAMPLED = 200  # examples whose lengths are counted
SHORTEST = 128  # tokens
WRITING = ("translation", "summarisation", "code", "speech")  # together many answers take as long as two
OF_WHOLE_TEXTS = ("classification", "multi-label", "regression")
PROBE = "probe"  # which has nothing to train without a new head
LEAST_STEPS = 12  # of a trial worth its name, rehearsals among them


class Pace(NamedTuple):
    """In seconds, by the mean over the first training examples."""

    opening: float  # of a model
    training: float  # an example, all weights
    predicting: float  # an example

    def needed(self, examples: int, batch: int, validation: int) -> float:
        """Of the shortest trial of encoded examples: opened, some steps, one score."""
        return (
            self.opening + self.training * LEAST_STEPS * min(batch, examples) + self.predicting * validation
        )


class Seen(NamedTuple):
    """What opening the base has shown."""

    pace: Pace
    params: int
    scratch: bool  # there are no weights
    ready: bool  # it answers the task before it learns anything: all weights are there
    methods: frozenset[str]  # that fit the model


def look(task: Task, base: Base, spec: Spec, rows: Dataset) -> Seen:
    """Open the base under its head, and time it on a few rows.

    Raises AdaptError for a base of another kind.
    """
    began = time.monotonic()
    model = task.build(base, spec).to(device_for())
    opening = time.monotonic() - began
    batch_of = cache(lambda count: _batch(task, base, spec, rows.select(range(count))))
    counts = dict.fromkeys(min(count, len(rows)) for count in (LOOKED_AT, MORE))
    training = _each(partial(_trained, task, model), counts, batch_of, QUICK)
    predicting = _each(
        partial(_predicted, task, base, spec, model),
        counts,
        batch_of,
        SLOW if task.name in WRITING else QUICK,
    )
    params = sum(p.numel() for p in model.parameters())
    scratch = not any(file for form in CHECKPOINTS for file in base.folder.rglob(form))
    headed = bool(new_parameters(model, base.folder))
    fitting = {name for name, method in METHODS.items() if method.fits(model, base)}
    pace = Pace(opening, training, predicting)
    return Seen(
        pace,
        params,
        scratch,
        not (scratch or headed),
        frozenset(fitting - ({PROBE} if not headed else set())),
    )


def _batch(task: Task, base: Base, spec: Spec, rows: Dataset) -> Batch:
    columns = task.encode(base, spec, rows[:])
    features = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    features = [{name: value for name, value in f.items() if name != "cut"} for f in features]
    return moved(task.collate(base, spec, features), device_for())


def _each(
    call: Callable[[Batch], float], counts: Iterable[int], batch_of: Callable[[int], Batch], enough: float
) -> float:
    """Seconds an example: of the first of these counts that takes `enough` of them, else of the last.

    The first time of a size is not like the others; where it takes long it is near enough.
    """
    each = 0.0
    for count in counts:
        batch = batch_of(count)
        seconds = call(batch)
        if seconds < SLOW:
            seconds = call(batch)
        each = seconds / count
        if seconds >= enough:
            break
    return each


def length_for(task: Task, base: Base, spec: Spec, rows: Dataset, passes: float) -> int:
    """Tokens to which inputs are cut where a trial would see less than one pass: half, a quarter ... of what
    the base reads, `SHORTEST` at least, for tasks whose labels are of whole texts.

    `passes` are those of uncut inputs; time goes with tokens.
    """
    most = base.max_length
    if task.name not in OF_WHOLE_TEXTS or passes >= 1:
        return most
    columns = task.encode(base, spec, rows.select(range(min(SAMPLED, len(rows))))[:])
    lengths = np.array([len(ids) for ids in columns["input_ids"]])
    length = most
    while length // 2 >= SHORTEST and passes * lengths.sum() / np.minimum(lengths, length).sum() < 1:
        length //= 2
    return length


def _trained(task: Task, model: torch.nn.Module, batch: Batch) -> float:
    """Seconds of a batch's gradients, in the precision that is tried."""
    began = time.monotonic()
    with Precision(preferred_precision(), device_for(), []).autocast():
        loss = task.loss(task.logits(model.train(), batch), batch, LossOptions()).mean()
    torch.autograd.backward(loss)
    model.zero_grad(set_to_none=True)
    return time.monotonic() - began


@torch.no_grad()
def _predicted(task: Task, base: Base, spec: Spec, model: torch.nn.Module, batch: Batch) -> float:
    """Seconds of a batch's answers, in the precision of the weights, as they are scored at the end."""
    began = time.monotonic()
    task.predict(model.eval(), base, spec, batch)
    return time.monotonic() - began
