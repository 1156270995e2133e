"""An adapted model as a teacher: its logits for a student of the same tokenizer, or the texts that it writes.

Shapes: b examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from isoflop.errors import AdaptError
from isoflop.progress import Progress, Silent
from isoflop.tasks.protocol import Base, Spec, Task
from isoflop.tasks.sequences import FromTextToText, written

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

STAGE = "teach"


class Teacher:
    """Tells its logits of a student's batches."""

    def __init__(self, task: Task, base: Base, spec: Spec, model: nn.Module) -> None:
        self.task, self.base, self.spec, self.model = task, base, spec, model.eval()

    @torch.no_grad()
    def logits(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, C) or (b, t, V), as the student's; never trained."""
        return self.task.logits(self.model, batch)

    def check(self, student: Base, spec: Spec) -> None:
        """Raises AdaptError where a student's batches and logits would mean something else to the teacher."""
        if not self.task.soft:
            raise AdaptError(
                f"{self.task.name} has no logits of categories to teach", hint="train without a teacher"
            )
        if student.kind != self.base.kind or student.processor.get_vocab() != self.base.processor.get_vocab():
            raise AdaptError(
                f"{self.base.folder} reads other tokens than {student.folder}",
                hint="take a student of the same kind and tokenizer, or let the teacher label more examples",
            )
        if (spec.labels, spec.source) != (self.spec.labels, self.spec.source):
            raise AdaptError(
                f"the teacher {self.base.folder} was adapted to other labels or prompts",
                hint="adapt teacher and student to the same training examples",
            )


def taught_rows(
    task: FromTextToText, base: Base, spec: Spec, model: nn.Module, rows: Dataset, *, batch: int = 32,
    progress: Progress | None = None,
) -> Dataset:  # fmt: skip
    """The rows with the teacher's texts as targets: sequence-level distillation (Kim and Rush, arXiv
    1606.07947, section 3.2), by beam search if `Spec.extra` has "beams" above 1.
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
    return task.answered(rows, texts)
