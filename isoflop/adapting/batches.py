"""Rows of a task as batches: encoded once into a temporary folder, read in an order that a seed fixes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.adapting.augment import Augment
from isoflop.errors import AdaptError
from isoflop.progress import Progress
from isoflop.store import HASH_DIGITS
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

MIXED = 50  # batches that are sorted by length together, so that a batch has rows of near lengths
CUT = "cut"

Batch = dict[str, "Tensor"]
Lengths = NDArray[np.int64]


class Rows:
    """Encoded rows of a task; the folder keeps them for whoever asks for the same."""

    def __init__(self, task: Task, base: Base, spec: Spec, rows: Dataset, folder: Path, name: str) -> None:
        self.task, self.base, self.spec, self.raw = task, base, spec, rows
        if not len(rows):
            raise AdaptError(f"there are no examples for {name}", hint="give more rows, or other shares")
        known = f"{rows._fingerprint} {task.name} {spec.digest()} {base.folder} {base.max_length}"
        key = hashlib.sha256(known.encode()).hexdigest()[:HASH_DIGITS]
        self.features = rows.map(
            lambda some: task.encode(base, spec, some), batched=True, remove_columns=rows.column_names,
            cache_file_name=str(folder / f"{key}.arrow"), load_from_cache_file=True, new_fingerprint=key,
        )  # fmt: skip
        if len(self.features) != len(rows):
            raise AdaptError(
                f"{task.name} made {len(self.features)} inputs of {len(rows)} examples",
                hint="encode each example as one input",
            )
        self.cut = 0
        if CUT in self.features.column_names:
            self.cut = sum(map(bool, self.features[CUT]))
            self.features = self.features.remove_columns(CUT)
        self.lengths = self._lengths()

    def __len__(self) -> int:
        return len(self.raw)

    def _lengths(self) -> Lengths:
        """(n,) tokens of each input, with those of its target where that is text too; 0 of what has none."""
        total = np.zeros(len(self), np.int64)
        for name in ("input_ids", "labels"):
            if name in self.features.column_names:
                column = self.features.data.column(name)
                if _is_list(column.type):
                    total += _tokens(column)
        return total

    def features_of(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Of those rows."""
        return _by_row(self.features[list(numbers)])

    def augmented(
        self, numbers: Sequence[int], augment: Augment, rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """The same, changed; where texts are, the rows are encoded anew."""
        if not augment.texts:
            return augment.features(self.features_of(numbers), rng)
        rows = augment.rows(self.raw[list(numbers)], rng)
        columns = self.task.encode(self.base, self.spec, rows)
        columns.pop(CUT, None)
        return augment.features(_by_row(columns), rng)

    def collated(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """A padded batch."""
        return self.task.collate(self.base, self.spec, features)

    def in_order(self, size: int) -> Iterator[tuple[list[int], Batch]]:
        """All rows, the longest first, with their numbers."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            numbers = order[start : start + size].tolist()
            yield numbers, self.collated(self.features_of(numbers))


def _is_list(type: Any) -> bool:
    import pyarrow.types as types

    return bool(types.is_list(type) or types.is_large_list(type))


def _tokens(column: Any) -> Lengths:
    """(n,) values in each list of an Arrow column, those of all its windows where it is lists of lists."""
    import pyarrow.compute as pc

    parts: Lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    if not _is_list(column.type.value_type):
        return parts
    before = np.concatenate([[0], np.cumsum(_tokens(pc.list_flatten(column)))])
    ends = np.cumsum(parts)
    return np.asarray(before[ends] - before[ends - parts], np.int64)


def _by_row(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def order_of(lengths: Lengths, size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers of each batch of a pass, every row once: near lengths together, batches shuffled."""
    rng = np.random.default_rng((seed, epoch))
    rows = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(rows), MIXED * size):
        some = rows[start : start + MIXED * size]
        some = some[np.argsort(-lengths[some], kind="stable")]
        batches += [some[i : i + size].tolist() for i in range(0, len(some), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def tell_cut(rows: Rows, name: str, progress: Progress) -> None:
    """Says how many inputs are longer than the model reads."""
    if rows.cut:
        most = rows.spec.max_length or rows.base.max_length
        progress.log(f"{rows.cut:,} of {len(rows):,} {name} inputs were cut to {most} tokens")
