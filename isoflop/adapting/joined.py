"""A model and a peer that answer together: a task whose predictions are of both.

    peer/peer.json    which peer it is, and how much it has to say
    peer/...          what it has learned

Whoever encodes, collates and predicts by the task of `saved.load_adapted` needs to know nothing of it. What
has not gone through `encode`, e.g. a text with some tokens left out, is the model's alone.

Shapes: b examples of a batch, k numbers of a peer's answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch.nn.utils.rnn import pad_sequence

from isoflop.adapting.peers import KINDS, Learner
from isoflop.errors import CorruptError, ProjectError
from isoflop.records import Record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from isoflop.tasks.protocol import Base, LossOptions, Spec, Task

FOLDER, SAYS = "peer", "peer.json"
ANSWERS = "peer"  # in features and batches


class _Says(Record):
    kind: str
    step: float


class Joined:
    """A task, all of whose other sides are as they were."""

    def __init__(self, task: Task, peer: Learner, step: float) -> None:
        self.task, self.peer, self.step = task, peer, step

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copies and pickles ask of an object that has no task yet
            raise AttributeError(name)
        return getattr(self.task, name)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        answers = self.peer.answers(self.task, base, spec, rows)
        return {**self.task.encode(base, spec, rows), ANSWERS: [answer_k.tolist() for answer_k in answers]}

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        plain = [{name: value for name, value in f.items() if name != ANSWERS} for f in features]
        batch = self.task.collate(base, spec, plain)
        if ANSWERS in features[0]:
            answers = [torch.tensor(f[ANSWERS], dtype=torch.float32) for f in features]
            batch[ANSWERS] = pad_sequence(answers, batch_first=True, padding_value=torch.nan)
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return self.task.logits(model, _plain(batch))

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        return self.task.loss(logits, _plain(batch), options)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """The model is asked for what the peer does not answer alone."""
        if ANSWERS not in batch:
            return self.task.predict(model, base, spec, batch)
        answers = [answer_k[~np.isnan(answer_k)] for answer_k in batch[ANSWERS].cpu().numpy()]
        asked = [i for i, answer_k in enumerate(answers) if self.peer.asks(answer_k, self.step)]
        own: dict[int, Any] = {}
        if asked:
            some = _plain(batch)
            if len(asked) < len(answers):
                some = {name: values[asked] for name, values in some.items()}
            own = dict(zip(asked, self.task.predict(model, base, spec, some), strict=True))
        return [self.peer.together(own.get(i), answer_k, self.step) for i, answer_k in enumerate(answers)]


def _plain(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in batch.items() if name != ANSWERS}


def save_peer(model: Path, peer: Learner, step: float) -> None:
    """Into the folder of an adapted model, in the place of one that is there."""
    folder = model / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    peer.save(folder)
    (folder / SAYS).write_text(_Says(kind=peer.name, step=step).model_dump_json(indent=2))


def with_peer(task: Task, model: Path) -> Task:
    """The task of an adapted model's folder, with the peer that is in it, if there is one.

    Raises CorruptError for one that was changed since, ProjectError without the packages.
    """
    folder = model / FOLDER
    if not folder.is_dir():
        return task
    try:
        says = _Says.model_validate_json((folder / SAYS).read_text())
        peer = next(kind for kind in KINDS if kind.name == says.kind).load(folder)
    except ImportError:
        raise ProjectError(
            f"{folder} needs the package scikit-learn", hint="pip install 'isoflop[adapt]'"
        ) from None
    except (
        OSError,
        ValueError,
        KeyError,
        StopIteration,
        SafetensorError,
    ) as error:
        raise CorruptError(
            f"{folder} is not what was written: {str(error).splitlines()[0]}",
            hint="restore the folder, or adapt the model anew",
        ) from None
    return cast("Task", Joined(task, peer, says.step))
