"""What is usual in the training examples: the baseline where a base cannot be asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.metrics import METRICS, scored
from isoflop.tasks.protocol import Spec

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.tasks.protocol import Task

Usual = tuple[list[Any], str]  # a prediction for each row, and what it is


def shares(spec: Spec, train: Dataset, rows: Dataset) -> Usual:
    """The share of the training examples that have each label, (C,)."""
    found = np.array(spec.counts) / len(train)
    return [found] * len(rows), "the labels' shares of the training examples"


def mean(spec: Spec, train: Dataset, rows: Dataset) -> Usual:
    found = float(np.mean(train["number"]))
    return [found] * len(rows), "the training examples' mean"


def tag(spec: Spec, train: Dataset, rows: Dataset) -> Usual:
    found = spec.labels[int(np.argmax(spec.counts))]
    return [[found] * len(tokens) for tokens in rows["tokens"]], f"the commonest tag, {found}"


def answer(spec: Spec, train: Dataset, rows: Dataset) -> Usual:
    found = Counter((answers["text"] or [""])[0] for answers in train["answers"]).most_common(1)[0][0]
    return [found] * len(rows), f"the commonest answer, {found!r}"


USUAL: Mapping[str, Callable[[Spec, Dataset, Dataset], Usual]] = {  # by task
    "multi-label": shares, "image-classification": shares, "image-text": shares, "regression": mean,
    "tagging": tag, "question-answering": answer,
}  # fmt: skip


def unlearned(task: Task, spec: Spec, train: Dataset, rows: Dataset) -> float | None:
    """The chief metric of who knows what is usual and reads nothing; None: the task has nothing usual."""
    found = {**USUAL, "classification": shares}.get(task.name)  # a base may be asked for that one's labels
    if found is None:
        return None
    predictions, _ = found(spec, train, rows)
    return scored(METRICS[task.metrics[0]], predictions, task.references(spec, rows)).value
