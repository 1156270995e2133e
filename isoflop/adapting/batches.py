"""Rows of a task as batches: encoded once into a temporary folder, read in an order that a seed fixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import AdaptError
from isoflop.progress import Progress
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

MIXED = 50  # batches that are sorted by length together, so that a batch has rows of near lengths
CUT = "cut"

Encode = Callable[[Mapping[str, Sequence[Any]]], dict[str, list[Any]]]
Batch = dict[str, "Tensor"]


class Rows:
    """Encoded rows of a task."""

    def __init__(self, task: Task, base: Base, spec: Spec, rows: Dataset, folder: Path, name: str) -> None:
        self.task, self.base, self.spec, self.raw = task, base, spec, rows
        if not len(rows):
            raise AdaptError(f"there are no examples for {name}", hint="give more rows, or other shares")
        self.features = rows.map(
            lambda some: task.encode(base, spec, some), batched=True, remove_columns=rows.column_names,
            cache_file_name=str(folder / f"{name}.arrow"), load_from_cache_file=False, new_fingerprint=name,
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

    def _lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(n,) tokens of each input, with those of its target where that is text too; 0 of what has none."""
        total = np.zeros(len(self), np.int64)
        for name in ("input_ids", "labels"):
            if name in self.features.column_names:
                column = self.features.data.column(name)
                if str(column.type).startswith(("list", "large_list")):
                    import pyarrow.compute as pc

                    total += pc.list_value_length(column).to_numpy()
        return total

    def features_of(self, numbers: Sequence[int], change: Encode | None = None) -> list[dict[str, Any]]:
        """Of those rows; `change` encodes their raw rows anew."""
        columns = self.features[list(numbers)] if change is None else change(self.raw[list(numbers)])
        kept = {name: values for name, values in columns.items() if name != CUT}
        return [dict(zip(kept, values, strict=True)) for values in zip(*kept.values(), strict=True)]

    def collated(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """A padded batch."""
        return self.task.collate(self.base, self.spec, features)

    def in_order(self, size: int) -> Iterator[tuple[list[int], Batch]]:
        """All rows, the longest first, with their numbers."""
        order = np.argsort(-self.lengths, kind="stable")
        for start in range(0, len(order), size):
            numbers = order[start : start + size].tolist()
            yield numbers, self.collated(self.features_of(numbers))


def order_of(lengths: Sequence[int], size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers of each batch of a pass, every row once: near lengths together, batches shuffled."""
    rng = np.random.default_rng((seed, epoch))
    rows, known = rng.permutation(len(lengths)), np.asarray(lengths)
    batches = []
    for start in range(0, len(rows), MIXED * size):
        some = rows[start : start + MIXED * size]
        some = some[np.argsort(-known[some], kind="stable")]
        batches += [some[i : i + size].tolist() for i in range(0, len(some), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def tell_cut(rows: Rows, name: str, progress: Progress) -> None:
    """Says how many inputs are longer than the model reads."""
    if rows.cut:
        most = rows.spec.max_length or rows.base.max_length
        progress.log(f"{rows.cut:,} of {len(rows):,} {name} inputs were cut to {most} tokens")
