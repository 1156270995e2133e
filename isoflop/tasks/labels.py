"""Labels by number, and those that training had not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from isoflop.tasks.iob2 import iob2
from isoflop.tasks.protocol import MIDDLE, Base, Spec

if TYPE_CHECKING:
    from datasets import Dataset

UNSEEN = -1  # in place of a label's number


def counted(task: str, counts: Mapping[str, int], base: Base) -> Spec:
    """The spec of labels in sorted order, with how many training examples have each."""
    labels = tuple(sorted(counts))
    return Spec(
        task=task, labels=labels, counts=tuple(counts[label] for label in labels), max_length=base.max_length,
        cut=MIDDLE,
    )  # fmt: skip


def numbers_of(spec: Spec, labels: Iterable[Any], *, unseen: int = UNSEEN) -> list[int]:
    """Of labels in the order of the head's outputs; `unseen` for one that training had not."""
    numbers = {label: number for number, label in enumerate(spec.labels)}
    return [numbers.get(str(label), unseen) for label in labels]


def unseen_labels(spec: Spec, rows: Dataset) -> dict[str, int]:
    """Labels or tags of rows that training had not, with how many rows have them.

    No prediction of these can be right.
    """
    known = set(spec.labels)
    counts = Counter(label for row in _labels(spec, rows) for label in row - known)
    return dict(sorted(counts.items()))


def _labels(spec: Spec, rows: Dataset) -> Iterable[set[str]]:
    """All of each row; nothing for rows without labels."""
    if "label" in rows.column_names:
        return ({str(label)} for label in rows["label"])
    if "labels" in rows.column_names:
        return ({str(label) for label in labels} for labels in rows["labels"])
    if "tags" in rows.column_names:
        return (set(iob2(tags, plain=spec.extra["plain"])) for tags in rows["tags"])
    return ()
