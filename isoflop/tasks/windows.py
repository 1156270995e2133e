"""Rows that are read as several windows: their features are lists of windows, which a batch lays flat.

So a row stays one row, whatever its length, and nothing of it is cut.

Shapes: b rows of a batch, w windows of all of them, t tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from isoflop.errors import AdaptError
from isoflop.tasks.protocol import Base
from isoflop.tasks.text import NAMES

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLE = "example"  # (w,) numbers of rows in the batch


def check_fast(base: Base) -> None:
    """Raises AdaptError for a tokenizer that cannot say where its tokens are in a text."""
    if not base.processor.is_fast:
        raise AdaptError(
            f"the tokenizer of {base.folder} does not say where its tokens are in a text",
            hint="name a model with a tokenizer.json",
        )


def by_row(found: Any, rows: int) -> list[list[int]]:
    """Numbers of the windows of each row, of what a tokenizer gives with `return_overflowing_tokens`."""
    windows: list[list[int]] = [[] for _ in range(rows)]
    for number, row in enumerate(found["overflow_to_sample_mapping"]):
        windows[row].append(number)
    return windows


def inputs_by_row(found: Any, rows: int) -> dict[str, list[Any]]:
    """The model's inputs, as lists of windows."""
    windows = by_row(found, rows)
    return {
        name: [[found[name][number] for number in numbers] for numbers in windows]
        for name in NAMES if name in found
    }  # fmt: skip


def side_by_side(
    base: Base, features: Sequence[Mapping[str, Any]], fill: Mapping[str, int]
) -> dict[str, Tensor]:
    """Inputs (w, t), whose rows they are, and further lists of a number a token, padded with their `fill`."""
    names = [name for name in NAMES if name in features[0]]
    counts = torch.tensor([len(f["input_ids"]) for f in features])
    windows = [{name: f[name][i] for name in names} for f in features for i in range(len(f["input_ids"]))]
    batch: dict[str, Tensor] = dict(base.processor.pad(windows, return_tensors="pt", padding_side="right"))
    batch[EXAMPLE] = torch.arange(len(features)).repeat_interleave(counts)
    t = batch["input_ids"].shape[1]
    for name, value in fill.items():
        if name in features[0]:
            rows = [[*row, *[value] * (t - len(row))] for f in features for row in f[name]]
            batch[name] = torch.tensor(rows)
    return batch


def mean_by_row(nats: Tensor, targets: Tensor, example_w: Tensor) -> Tensor:
    """(b,) mean over the targets of each row, of nats and of a mark of each target (w, ...)."""
    rows = int(example_w.max()) + 1
    sums = [
        torch.zeros(rows, dtype=nats.dtype, device=nats.device).index_add(
            0, example_w, values.flatten(1).sum(1)
        )
        for values in (nats * targets, targets.to(nats.dtype))
    ]
    return sums[0] / sums[1].clamp(min=1)
