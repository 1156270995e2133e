"""Whether a label that is said to be likely at 80% is right in 80% of the cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.explaining.records import Bin, Reliability
from isoflop.metrics import METRICS, scored
from isoflop.metrics.modelling import BINS, bin_of
from isoflop.tasks.protocol import Spec, Task


def reliability(
    task: Task, spec: Spec, predictions: Sequence[Any], references: Sequence[Any]
) -> Reliability | None:
    """Of predictions that are probabilities (C,) of one label an example; None of others."""
    if not task.soft or np.shape(references[0]) or np.shape(predictions[0]) != (len(spec.labels),):
        return None
    p = np.array(predictions, np.float64)
    confidence, right = p.max(1), p.argmax(1) == np.array(references)
    numbers = bin_of(confidence)
    bins = tuple(
        Bin(
            low=number / BINS, high=(number + 1) / BINS, examples=int(mine.sum()),
            confidence=float(confidence[mine].mean()), accuracy=float(right[mine].mean()),
        )
        for number in range(BINS)
        if (mine := numbers == number).any()
    )  # fmt: skip
    return Reliability(bins=bins, error=scored(METRICS["calibration_error"], predictions, references))
