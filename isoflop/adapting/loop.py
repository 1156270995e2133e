"""The one loop that adapts every task's model, by whichever method, and how its models are scored.

Batches, dropout and all other chance are functions of the seed: the same data, configuration and machine end
with the same bits, also after an interruption. With a time to keep the number of steps is planned from a
measured pace, so that the learning rate has fallen to zero when the time is over.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from isoflop.adapting.augment import augment_for
from isoflop.adapting.batches import Rows, tell_cut
from isoflop.adapting.methods import prepared
from isoflop.adapting.objective import Teacher
from isoflop.adapting.records import AdaptConfig, Trial
from isoflop.adapting.running import Clock, Report, Running, predicted
from isoflop.adapting.training import Penalty, Training, set_dropout
from isoflop.devices import device_for
from isoflop.interrupt import heeded
from isoflop.metrics import METRICS, Score, scored
from isoflop.precision import check_precision
from isoflop.progress import Progress, Silent
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Tuned:
    """What came of an adaptation."""

    model: nn.Module  # with the weights of its best score, in evaluation mode; what the method added is on
    trial: Trial
    cut: int  # training inputs that were longer than the model reads


def fine_tune(
    task: Task, base: Base, spec: Spec, train: Dataset, validation: Dataset, config: AdaptConfig, *,
    seconds: float | None = None, report: Report = lambda point: False, progress: Progress | None = None,
    initial: nn.Module | None = None, checkpoint: Path | None = None, teacher: Teacher | None = None,
    penalty: Penalty | None = None, replay: Dataset | None = None, features: Path | None = None,
) -> Tuned:  # fmt: skip
    """Adapt the base to the task; the best weights by the chief metric on `validation` are kept.

    It takes `seconds` at most, encoding and scores among them; `report` hears each score. `initial` is
    trained as it is, in place of a new model: what requires gradients of it. `checkpoint` is a folder: called again
    after a kill it goes on there. A `teacher` gives logits of a batch, `penalty` adds gradients, and of
    `replay` the share `config.replay` of each batch is drawn. A folder `features` keeps encoded rows for the
    next call.

    Raises AdaptError for a method, option or data that do not fit or a loss that is not finite, BudgetError
    where the time is too short for one step, CorruptError for a damaged checkpoint; Interrupted, saved, at
    Ctrl-C.
    """
    progress = progress or Silent()
    started = time.monotonic()
    with _kept(features) as folder, torch.random.fork_rng(), heeded(progress) as pressed:
        torch.manual_seed(config.seed)
        device = device_for()
        check_precision(config.precision, device, progress)
        model = initial if initial is not None else prepared(task.build(base, spec), config, base)
        model = model.to(device)
        if config.dropout is not None:
            set_dropout(model, config.dropout)
        training = Training(task, model, spec, config, device, teacher, penalty)
        rows = Rows(task, base, spec, train, folder, "training")
        tell_cut(rows, "training", progress)
        held = Rows(task, base, spec, validation, folder, "validation")
        earlier = Rows(task, base, spec, replay, folder, "replay") if replay is not None else None
        augment = augment_for(task, base, config.augment) if config.augment else None
        running = Running(training, rows, held, earlier, augment, Clock(started, seconds), device)
        trial = running.run(report, progress, pressed, checkpoint)
    return Tuned(model.eval(), trial, rows.cut)


def predict_all(
    task: Task, base: Base, spec: Spec, model: nn.Module, rows: Dataset, *, batch: int = 32,
    progress: Progress | None = None, features: Path | None = None,
) -> list[Any]:  # fmt: skip
    """One prediction for each row, in the rows' order and the form that the task's metrics take.

    A folder `features` keeps encoded rows for the next call.
    """
    with _kept(features) as folder:
        encoded = Rows(task, base, spec, rows, folder, "prediction")
        tell_cut(encoded, "prediction", progress or Silent())
        return predicted(encoded, model, batch, progress or Silent())


def scores_of(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> tuple[Score, ...]:
    """Every metric of the task, the chief one first, with bootstrap intervals."""
    return tuple(scored(METRICS[name], predictions, references) for name in task.metrics)


@contextmanager
def _kept(folder: Path | None) -> Iterator[Path]:
    """The folder, or one for this block alone."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as own:
        yield Path(own)
