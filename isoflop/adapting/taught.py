"""An adaptation with a teacher: what its student learns from, and the teacher on the same test examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.adapting.inputs import TEST, TRAIN
from isoflop.adapting.loop import predict_all, scores_of
from isoflop.adapting.records import Taught
from isoflop.adapting.saved import load_adapted
from isoflop.adapting.teaching import Teacher, flops_of_writing, told_rows, written_texts
from isoflop.adapting.work import Work
from isoflop.metrics import METRICS, compared
from isoflop.store import HASH_DIGITS, atomic_write, content_hash
from isoflop.tasks.sequences import FromTextToText

TEXTS = "written.json"  # of a teacher that writes, in the folder of encoded rows


class Lesson(NamedTuple):
    """What a teacher has said."""

    teacher: Teacher
    flops: float
    predictions: list[Any]  # of the test examples

    def beside(self, work: Work, own: Sequence[Any]) -> Taught:
        """The teacher's scores, and how much a student's predictions of the test examples are above them."""
        references = work.task.references(work.spec, work.rows[TEST])
        folder = self.teacher.base.folder
        return Taught(
            path=str(folder), hash=content_hash(folder)[:HASH_DIGITS], flops=self.flops,
            test=scores_of(work.task, self.predictions, references),
            apart=tuple(
                compared(METRICS[name], self.predictions, own, references) for name in work.task.metrics
            ),
        )  # fmt: skip


def learned_from(work: Work, folder: Path) -> Lesson:
    """Ask a teacher about the training and the test examples.

    Of labels the student learns the teacher's logits; what it writes takes the place of the targets. Raises
    AdaptError for a folder that is no adapted model, or that the student cannot learn from.
    """
    with work.part("teacher"):
        teacher = Teacher(*load_adapted(folder, alone=True))
        teacher.check(work.task, work.base, work.spec)
        work.features.mkdir(parents=True, exist_ok=True)
        if isinstance(work.task, FromTextToText):
            flops = _write_targets(work, work.task, teacher)
        else:
            work.teacher, flops = told_rows(
                teacher, work.base, work.spec, work.rows[TRAIN], work.features, progress=work.progress
            )
        predictions = predict_all(
            teacher.task, teacher.base, teacher.spec, teacher.model, work.rows[TEST], features=work.features
        )
    return Lesson(teacher, flops, predictions)


def _write_targets(work: Work, task: FromTextToText, teacher: Teacher) -> float:
    """The FLOPs of the teacher's texts, which the training rows now have as targets."""
    rows, path = work.rows[TRAIN], work.features / TEXTS
    asked = (task, teacher.base, teacher.spec, teacher.model, rows)
    flops = flops_of_writing(*asked)
    if not path.is_file():
        atomic_write(path, json.dumps(written_texts(*asked, progress=work.progress)))
    work.rows[TRAIN] = task.answered(rows, json.loads(path.read_text()))
    return flops
