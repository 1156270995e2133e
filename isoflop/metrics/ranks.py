"""Metrics of the rank, from 1, at which the second text of a pair is found by its first.

A prediction is the pair's embeddings (2, d), a reference a number of its second text that equal texts share.
Candidates are the second texts of all pairs that are scored together, each once: the more, the harder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import counted, ratio

BLOCK = 1 << 24  # similarities held at once


class MeanReciprocalRank:
    name: ClassVar[str] = "mrr"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "mean of 1 over the rank of the right second text among all of them"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return counted(1 / ranks(predictions, references))

    def value(self, sums: Array) -> Array:
        return ratio(sums)


class RecallAt1:
    name: ClassVar[str] = "recall_at_1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "share of first texts whose second is the nearest of all of them"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return counted((ranks(predictions, references) == 1).astype(np.float64))

    def value(self, sums: Array) -> Array:
        return ratio(sums)


def ranks(predictions: Sequence[Any], references: Sequence[Any]) -> Array:
    """(n,). What is as near as the right one counts as nearer: a model that tells nothing apart is last."""
    first_nd, second_nd = np.stack([np.asarray(pair) for pair in predictions], axis=1)
    _, once, right_n = np.unique(np.asarray(references), return_index=True, return_inverse=True)
    candidates_cd = second_nd[once]
    made = []
    rows = max(1, BLOCK // len(candidates_cd))
    for start in range(0, len(first_nd), rows):
        near = first_nd[start : start + rows] @ candidates_cd.T
        own = np.take_along_axis(near, right_n[start : start + rows, None], axis=1)
        made.append((near >= own).sum(1))
    return np.concatenate(made).astype(np.float64)
