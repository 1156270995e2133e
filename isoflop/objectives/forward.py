"""Text from left to right: every token, or the second half of a window whose first half is seen whole."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from isoflop.model import IGNORE
from isoflop.objectives.protocol import BOTH, DECODER
from isoflop.records import Corpus


class Causal:
    """Each token from those before it."""

    test: ClassVar[str] = "causal"
    learners: ClassVar[tuple[str, ...]] = (DECODER,)
    special: ClassVar[tuple[str, ...]] = ()
    compresses: ClassVar[bool] = True

    def lengths(self, context: int) -> tuple[int, int]:
        return context, context

    def predicted(self, context: int) -> int:
        return context

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return windows_bu[:, :-1], windows_bu[:, 1:]


class Prefix:
    """Each token of a window's second half from all of the first half and those before it.

    Raffel et al., T5, arXiv 1910.10683, section 3.2.1. They split at random; here it is in the middle, so
    that all windows cost and predict the same. A decoder sees the prefix in both directions; of an
    encoder-decoder the encoder reads it, and the decoder writes the rest. The losses add up to the length of
    the rest given the prefix, which is no text's: there are no bits per byte.
    """

    test: ClassVar[str] = "prefix"
    learners: ClassVar[tuple[str, ...]] = (DECODER, BOTH)
    special: ClassVar[tuple[str, ...]] = ()
    compresses: ClassVar[bool] = False

    def prefix(self, context: int) -> int:
        """Tokens that are seen whole."""
        return max(1, context // 2)

    def lengths(self, context: int) -> tuple[int, int]:
        return context, context

    def predicted(self, context: int) -> int:
        return context + 1 - self.prefix(context)

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        inputs, targets = windows_bu[:, :-1], windows_bu[:, 1:].clone()
        targets[:, : inputs.shape[1] - self.predicted(inputs.shape[1])] = IGNORE
        return inputs, targets


def prefix_mask(context: int, prefix: int, device: torch.device | None = None) -> Tensor:
    """Who (t, t) is seen by whom: the prefix by all, the rest by what comes after it."""
    seen_tt = torch.ones(context, context, dtype=torch.bool, device=device).tril()
    seen_tt[:, :prefix] = True
    return seen_tt
