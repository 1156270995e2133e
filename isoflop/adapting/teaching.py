"""An adapted model as a teacher: the logits that a student learns from, or the texts that the teacher writes.

The teacher is asked once for each training row. Its logits are kept by what the student reads of the row, so
that every pass of every trial finds them, whatever part of the rows it trains on.

Shapes: b examples of a batch, w windows, t tokens, C labels, V vocabulary; p rows of logits that are kept.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from isoflop.adapting.batches import Rows
from isoflop.devices import preferred_precision
from isoflop.errors import AdaptError
from isoflop.precision import Precision
from isoflop.progress import Progress, Silent
from isoflop.records import digest
from isoflop.store import atomic_write
from isoflop.tasks.protocol import Base, Spec, Task
from isoflop.tasks.sequences import FromTextToText, written

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

STAGE = "teach"
BATCH = 32
OF_TEXTS, OF_TOKENS = ("classification",), ("tagging",)  # tasks whose logits are told: (b, C), (w, t, C)


class Teacher:
    """An adapted model, and whether a student can learn from it."""

    def __init__(self, task: Task, base: Base, spec: Spec, model: nn.Module) -> None:
        self.task, self.base, self.spec, self.model = task, base, spec, model.eval()

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, C) or (b, t, V), as the student's; never trained."""
        return self.task.logits(self.model, batch)

    def check(self, task: Task, student: Base, spec: Spec) -> None:
        """Raises AdaptError where the teacher's answers would mean something else to a student."""
        if task.name != self.task.name:
            raise AdaptError(
                f"the teacher {self.base.folder} was adapted to {self.task.name}, not to {task.name}",
                hint="name a teacher of the same task",
            )
        if isinstance(task, FromTextToText):
            return  # its texts are learned from, whatever its tokens are
        if task.name not in OF_TEXTS + OF_TOKENS:
            raise AdaptError(f"a teacher of {task.name} is not known", hint="train without a teacher")
        if spec.labels != self.spec.labels:
            raise AdaptError(
                f"the teacher {self.base.folder} knows the labels {', '.join(self.spec.labels)}, and the "
                f"training examples have {', '.join(spec.labels)}",
                hint="adapt teacher and student to the same training examples",
            )
        if task.name in OF_TOKENS:
            self._check_tokens(student)

    def _check_tokens(self, student: Base) -> None:
        if student.processor.get_vocab() != self.base.processor.get_vocab():
            raise AdaptError(
                f"{self.base.folder} reads other tokens than {student.folder}, and {self.task.name} has "
                "logits of each token",
                hint="take a student of the same tokenizer, e.g. fewer of its own layers: --keep-layers",
            )
        if student.max_length > self.base.max_length:
            raise AdaptError(
                f"the teacher {self.base.folder} reads {self.base.max_length} tokens, and the student "
                f"{student.max_length}",
                hint=f"give --max-length {self.base.max_length}",
            )


class Told:
    """A teacher's logits of rows, for batches of a student."""

    def __init__(self, logits_pc: NDArray[np.float32], at: Mapping[bytes, int], of_tokens: bool) -> None:
        self.logits_pc, self.at, self.of_tokens = logits_pc, at, of_tokens

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, C) or, zero on padding, (w, t, C). Raises AdaptError for a text that the teacher never read."""
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()
        found = []
        for row, real in zip(ids.cpu(), mask.cpu(), strict=True):
            own = row[real].tolist()
            start = self.at.get(_key(own))
            if start is None:
                raise AdaptError(
                    "the teacher was not asked about a text of this batch",
                    hint="leave augmentation out, or the teacher",
                )
            found.append(self.logits_pc[start : start + (len(own) if self.of_tokens else 1)])
        told = torch.from_numpy(np.concatenate(found)).to(ids.device)
        if not self.of_tokens:
            return told
        logits_wtc = told.new_zeros((*ids.shape, told.shape[1]))
        logits_wtc[mask] = told
        return logits_wtc


def told_rows(
    teacher: Teacher, base: Base, spec: Spec, rows: Dataset, folder: Path, *, progress: Progress | None = None
) -> tuple[Told, float]:
    """The teacher's logits of rows for a student of `base`, and their FLOPs, by those of a batch.

    Of whole texts the teacher reads a row by its own tokenizer. `folder` keeps encoded rows and logits.
    """
    of_tokens = teacher.task.name in OF_TOKENS
    own = Rows(teacher.task, base, spec, rows, folder, "training")
    theirs = own
    if not of_tokens:
        theirs = Rows(teacher.task, teacher.base, teacher.spec, rows, folder, "the teacher")
    at, p = {}, 0
    order = [number for numbers, _ in theirs.in_order(BATCH) for number in numbers]
    for ids in own.features[order]["input_ids"]:
        for window in ids if of_tokens else [ids]:
            at[_key(window)] = p
            p += len(window) if of_tokens else 1
    key = digest([theirs.features._fingerprint, str(teacher.base.folder)])
    path = folder / f"told-{key}.npy"
    if not path.is_file():
        logits_pc = _asked(teacher, theirs, of_tokens, progress or Silent())
        buffer = io.BytesIO()
        np.save(buffer, logits_pc)
        atomic_write(path, buffer.getvalue())
    tokens = p if of_tokens else int(theirs.lengths.sum())
    return Told(np.load(path, mmap_mode="r"), at, of_tokens), tokens * _flops_per_token(teacher, theirs)


def _asked(teacher: Teacher, rows: Rows, of_tokens: bool, progress: Progress) -> NDArray[np.float32]:
    """(p, C), the rows as `in_order` has them, each window's tokens in turn; in the machine's precision."""
    found, done = [], 0
    precision = Precision(preferred_precision(), torch.device("cpu"), [])
    progress.start(STAGE, len(rows), "examples")
    for numbers, batch in rows.in_order(BATCH):
        with precision.autocast():
            logits = teacher.logits(batch)
        logits = logits.float()
        found.append((logits[batch["attention_mask"].bool()] if of_tokens else logits).numpy())
        done += len(numbers)
        progress.update(STAGE, done)
    progress.finish(STAGE)
    return np.concatenate(found)


def _flops_per_token(teacher: Teacher, rows: Rows) -> float:
    """Of the longest batch."""
    _, batch = next(rows.in_order(BATCH))
    with FlopCounterMode(display=False) as counter:
        teacher.logits(batch)
    return float(counter.get_total_flops()) / batch["attention_mask"].numel()


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


def written_texts(
    task: FromTextToText, base: Base, spec: Spec, model: nn.Module, rows: Dataset, *, batch: int = 32,
    progress: Progress | None = None,
) -> list[str]:  # fmt: skip
    """The teacher's text for each row, by beam search if `Spec.extra` has "beams" above 1.

    With them in the place of the targets a student learns by sequence-level distillation (Kim and Rush, arXiv
    1606.07947, section 3.2).
    """
    progress = progress or Silent()
    pairs = [pair._replace(target=None) for pair in task.pairs(base, spec, rows[:])]
    ids = task.encode_pairs(base, spec, pairs)["input_ids"]
    order = sorted(range(len(ids)), key=lambda number: -len(ids[number]))
    texts = [""] * len(ids)
    device = next(model.parameters()).device
    progress.start(STAGE, len(ids), "examples")
    model.eval()
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        inputs = task.collate(base, spec, [{"input_ids": ids[number]} for number in numbers])
        with torch.no_grad():
            made = written(model, base, spec, {name: x.to(device) for name, x in inputs.items()})
        for number, text in zip(numbers, made, strict=True):
            texts[number] = text
        progress.update(STAGE, start + len(numbers))
    progress.finish(STAGE)
    return texts


def flops_of_writing(task: FromTextToText, base: Base, spec: Spec, model: nn.Module, rows: Dataset) -> float:
    """Of `written_texts`: those of its first rows, by rows."""
    first = rows.select(range(min(BATCH, len(rows))))
    with FlopCounterMode(display=False) as counter:
        written_texts(task, base, spec, model, first)
    return float(counter.get_total_flops()) * len(rows) / len(first)
