"""How fast adapted models predict: in turn, so that what else the machine does slows each of them.

Tokenizing is not counted; padding is. Rows of a batch have near lengths, as when a file is predicted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from isoflop.adapting.batches import Batch, Rows
from isoflop.adapting.inputs import some
from isoflop.adapting.saved import load_adapted
from isoflop.engines import ONNX
from isoflop.engines.speed import REPEATS, Rate, busy_others, rate_of
from isoflop.records import Record

if TYPE_CHECKING:
    from datasets import Dataset

SIZES = (1, 32)  # examples of a batch
EXAMPLES = 32  # that are predicted in each repetition


class AdaptedSpeed(Record):
    """One adapted model on this machine."""

    path: str
    engine: str
    threads: int
    bytes: int  # of its weights on disk, with the graph where there is one
    rates: dict[int, Rate]  # examples a second by batch size
    tokens: float  # of an example, the mean
    others: float  # cores that other processes kept busy meanwhile


def speeds(folders: Sequence[Path], rows: Dataset) -> list[AdaptedSpeed]:
    """Of each folder on the same rows, on as many threads as torch has."""
    rows = some(rows, EXAMPLES, 0)
    with tempfile.TemporaryDirectory() as folder:
        models = [_Timed(path, rows, Path(folder)) for path in folders]
        start, busy = time.perf_counter(), busy_others()
        rates: list[dict[int, Rate]] = [{} for _ in models]
        for size in SIZES:
            rounds = [[model.seconds(size) for model in models] for _ in range(REPEATS + 1)][
                1:
            ]  # one warms up
            for found, seconds in zip(rates, zip(*rounds, strict=True), strict=True):
                found[size] = rate_of(len(rows) / s for s in seconds)
        others = (busy_others() - busy) / (time.perf_counter() - start)
    return [
        AdaptedSpeed(
            path=str(model.folder), engine="ONNX Runtime" if (model.folder / ONNX).is_file() else "torch",
            threads=torch.get_num_threads(), bytes=weight_bytes(model.folder), rates=found,
            tokens=float(model.rows.lengths.mean()), others=max(0.0, others),
        )
        for model, found in zip(models, rates, strict=True)
    ]  # fmt: skip


def weight_bytes(folder: Path) -> int:
    """On disk: of a graph, else of the weights."""
    graph = folder / ONNX
    files = [graph] if graph.is_file() else folder.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


class _Timed:
    """A model and its batches."""

    def __init__(self, folder: Path, rows: Dataset, cache: Path) -> None:
        self.folder = folder
        self.task, self.base, self.spec, self.model = load_adapted(folder)
        self.rows = Rows(self.task, self.base, self.spec, rows, cache, "the speed")
        self.batches: dict[int, list[Batch]] = {
            size: [batch for _, batch in self.rows.in_order(size)] for size in SIZES
        }

    @torch.no_grad()
    def seconds(self, size: int) -> float:
        """For all rows in batches of that size."""
        start = time.perf_counter()
        for batch in self.batches[size]:
            self.task.predict(self.model, self.base, self.spec, batch)
        return time.perf_counter() - start
