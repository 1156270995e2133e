"""Spans of text that are missing, written one after the other: T5's pre-training.

Shapes: b windows, u = t + 1 tokens each; i inputs, o targets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.corpus import end_token
from isoflop.errors import TrainError
from isoflop.objectives.protocol import BOTH
from isoflop.objectives.special import SENTINELS, special_ids
from isoflop.records import Corpus

NOISE_SHARE, MEAN_SPAN = 0.15, 3.0  # Raffel et al., arXiv 1910.10683, section 3.1.4


class Spans:
    """Span corruption (Raffel et al., T5, arXiv 1910.10683, section 3.1.4).

    15% of a window's t tokens, in spans of 3 on average, are replaced by a sentinel each; targets are the
    spans, each after its sentinel. Both end with the end of text. How t tokens are cut into spans is drawn
    uniformly from all ways to begin with what stays and end with a span, so that every window gives as many
    inputs and targets. T5 chooses t so that inputs fill its context; here t is the context, and counts as the
    tokens seen.
    """

    test: ClassVar[str] = "spans"
    learners: ClassVar[tuple[str, ...]] = (BOTH,)
    special: ClassVar[tuple[str, ...]] = SENTINELS
    compresses: ClassVar[bool] = False

    def counts(self, context: int) -> tuple[int, int]:
        """Hidden tokens, and spans. Raises TrainError when there are not enough sentinels."""
        noise = min(max(1, round(NOISE_SHARE * context)), context - 1)
        spans = max(1, round(noise / MEAN_SPAN))
        if spans > len(SENTINELS):
            raise TrainError(
                f"a window of {context} tokens hides {spans} spans, and there are {len(SENTINELS)} sentinels",
                hint="take a shorter context",
            )
        return noise, spans

    def lengths(self, context: int) -> tuple[int, int]:
        noise, spans = self.counts(context)
        return context - noise + spans + 1, noise + spans + 1

    def predicted(self, context: int) -> int:
        return self.lengths(context)[1]

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ids_bt = windows_bu[:, :-1].numpy()
        b, t = ids_bt.shape
        noise, spans = self.counts(t)
        rng = np.random.default_rng(key)
        sentinels = special_ids(self.special, corpus)[:spans]
        pieces = np.stack([_cut(t - noise, spans, b, rng), _cut(noise, spans, b, rng)], axis=2)
        ends_bs = pieces.reshape(b, -1).cumsum(axis=1)[:, :-1]
        end = end_token(corpus)
        inputs: list[NDArray[np.int64]] = []
        targets: list[NDArray[np.int64]] = []
        for ids, ends in zip(ids_bt, ends_bs, strict=True):
            parts = np.split(ids, ends)
            inputs.append(np.hstack([*_woven(parts[::2], sentinels), end]))
            targets.append(np.hstack([*_woven(sentinels, parts[1::2]), end]))
        return torch.from_numpy(np.stack(inputs)), torch.from_numpy(np.stack(targets))


def _woven(first: Sequence[Any], second: Sequence[Any]) -> Iterator[Any]:
    """Of both in turn."""
    return chain.from_iterable(zip(first, second, strict=True))


def _cut(total: int, parts: int, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """For each row lengths (rows, parts) of one or more, of sum `total`, all such lists equally likely."""
    borders = 1 + np.sort(rng.random((rows, total - 1)).argsort(axis=1)[:, : parts - 1], axis=1)
    edges = np.concatenate([np.zeros((rows, 1)), borders, np.full((rows, 1), total)], axis=1)
    return np.diff(edges, axis=1).astype(np.int64)
