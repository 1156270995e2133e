"""The examples of an adaptation: read, named by roles, split, and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from isoflop.errors import AdaptError
from isoflop.examples import read_examples, splits_of, with_roles
from isoflop.progress import Progress
from isoflop.store import content_hash
from isoflop.tasks.labels import unseen_labels
from isoflop.tasks.protocol import Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
MEDIA = "image", "audio"  # that a role may hold
NAMED = 5  # labels or files in a sentence


class Sources(NamedTuple):
    """Where examples are."""

    data: Sequence[Path]
    validation: Sequence[Path] = ()
    test: Sequence[Path] = ()

    def digests(self) -> dict[str, str]:
        """Path and content's hash of each source, by split. Raises AdaptError where there is none."""
        return {split: ", ".join(map(_named, paths)) for split, paths in self._by_split().items() if paths}

    def _by_split(self) -> dict[str, Sequence[Path]]:
        return dict(zip(SPLITS, (self.data, self.validation, self.test), strict=True))

    def read(
        self, task: Task, columns: Mapping[str, str], seed: int, notes: list[str], progress: Progress
    ) -> tuple[dict[str, Dataset], dict[str, str]]:
        """Rows by split, with columns named by the task's roles, and role -> column."""
        found = read_examples(self.data, progress=progress, notes=notes)
        for split, paths in ((VALIDATION, self.validation), (TEST, self.test)):
            if paths:
                found[split] = read_examples(paths, progress=progress, notes=notes)[TRAIN]
        rows, names = with_roles(found[TRAIN], task.roles, columns, notes=notes)
        named = {TRAIN: rows}
        for split in found:
            if split != TRAIN:
                named[split], _ = with_roles(found[split], task.roles, names, notes=notes)
        return splits_of(named, seed=seed, notes=notes), names


def _named(path: Path) -> str:
    if not path.exists():
        raise AdaptError(f"{path} does not exist", hint="name files or folders of examples")
    return f"{path} {content_hash(path)[:16]}"


def tell_unreadable(spec: Spec, notes: list[str]) -> None:
    """Say which training files could not be read."""
    bad = spec.extra.get("unreadable", [])
    if bad:
        named = ", ".join(bad[:NAMED]) + (" ..." if len(bad) > NAMED else "")
        notes.append(f"{len(bad)} training files cannot be read, and stand as blank ones: {named}")


def tell_unseen(rows: Mapping[str, Dataset], spec: Spec, notes: list[str]) -> None:
    """Say which labels of held-out rows no training example has."""
    for split in (VALIDATION, TEST):
        unseen = unseen_labels(spec, rows[split]) if spec.labels and split in rows else {}
        if unseen:
            named = ", ".join(f"{label} ({count})" for label, count in list(unseen.items())[:NAMED])
            notes.append(f"{split} examples have labels that no training example has: {named}")


def some(rows: Dataset, most: int, seed: int) -> Dataset:
    """At most so many rows, drawn at random; those of a smaller number are among those of a larger one."""
    if len(rows) <= most:
        return rows
    order = np.random.default_rng((seed, len(rows))).permutation(len(rows))
    return rows.select(np.sort(order[:most]))
