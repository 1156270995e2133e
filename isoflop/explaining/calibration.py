"""Whether a label that is said to be likely at 80% is right in 80% of the cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.explaining.records import Bin, Reliability
from isoflop.tasks.protocol import Spec, Task

BINS = 10  # of equal width, as Guo et al. (arXiv 1706.04599, section 2) have them


def reliability(
    task: Task, spec: Spec, predictions: Sequence[Any], references: Sequence[Any]
) -> Reliability | None:
    """Of predictions that are probabilities (C,) of one label an example; None of others."""
    if not task.soft or np.shape(references[0]) or np.shape(predictions[0]) != (len(spec.labels),):
        return None
    p = np.array(predictions, np.float64)
    confidence, right = p.max(1), p.argmax(1) == np.array(references)
    numbers = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = tuple(
        Bin(
            low=number / BINS, high=(number + 1) / BINS, examples=int(mine.sum()),
            confidence=float(confidence[mine].mean()), accuracy=float(right[mine].mean()),
        )
        for number in range(BINS)
        if (mine := numbers == number).any()
    )  # fmt: skip
    error = sum(b.examples * abs(b.accuracy - b.confidence) for b in bins) / len(p)
    return Reliability(bins=bins, error=error)
