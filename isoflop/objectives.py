"""What a model learns to predict: windows of text become inputs and targets.

Shapes: b windows, u = t + 1 tokens each, t time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.corpus import word_edges
from isoflop.model import IGNORE
from isoflop.records import Corpus

MASKED_SHARE = 0.15  # Devlin et al., BERT, arXiv 1810.04805, section 3.1 ...
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # ... of these become the mask token, a random one; the rest stay


class Objective(Protocol):
    """From windows to inputs (b, t) and targets (b, t), IGNORE where nothing is predicted."""

    test: ClassVar[str]  # the objective by which held-out text is scored
    extra_ids: ClassVar[int]  # token ids above the corpus's vocabulary
    compresses: ClassVar[bool]  # whether losses add up to a text's length in nats: it has bits per byte

    def predicted(self, context: int) -> int:
        """How many tokens of a window are predicted."""

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Inputs and targets; what is random is a function of `key` alone."""


class Causal:
    """Each token from those before it."""

    test: ClassVar[str] = "causal"
    extra_ids: ClassVar[int] = 0
    compresses: ClassVar[bool] = True

    def predicted(self, context: int) -> int:
        return context

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return windows_bu[:, :-1], windows_bu[:, 1:]


@dataclass(frozen=True)
class Masked:
    """BERT's: 15% of the tokens from all the others; the mask token is the id above the corpus's vocabulary.

    Every window has as many, chosen anew each time that it is read (dynamic masking, Liu et al., RoBERTa,
    arXiv 1907.11692). With `words` they are chosen word by word, the last as far as it fits. Held-out text is
    scored by single tokens either way, so that both can be compared.
    """

    words: bool
    test: ClassVar[str] = "masked"
    extra_ids: ClassVar[int] = 1
    compresses: ClassVar[bool] = False

    def predicted(self, context: int) -> int:
        return max(1, round(MASKED_SHARE * context))

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ids_bt = windows_bu[:, :-1].numpy()
        order, kind, other = np.random.default_rng(key).random((3, *ids_bt.shape))
        if self.words:
            order = np.take_along_axis(order, _word_numbers(ids_bt, corpus), axis=1)
        first = np.argsort(order, axis=1, kind="stable")[:, : self.predicted(ids_bt.shape[1])]
        chosen = np.zeros(ids_bt.shape, bool)
        np.put_along_axis(chosen, first, True, axis=1)
        mask, random = corpus.vocab_size, (other * corpus.vocab_size).astype(np.int64)
        changed = np.where(
            kind < MASK_SHARE, mask, np.where(kind < MASK_SHARE + RANDOM_SHARE, random, ids_bt)
        )
        inputs, targets = np.where(chosen, changed, ids_bt), np.where(chosen, ids_bt, IGNORE)
        return torch.from_numpy(inputs), torch.from_numpy(targets)


def _word_numbers(ids_bt: NDArray[np.int64], corpus: Corpus) -> NDArray[np.int64]:
    """Of each token, the number of its word in the window."""
    opens, closes = word_edges(corpus)
    starts = np.ones(ids_bt.shape, bool)
    starts[:, 1:] = ~(opens[ids_bt[:, 1:]] & closes[ids_bt[:, :-1]])
    return starts.cumsum(axis=1) - 1


OBJECTIVES: Mapping[str, Objective] = {
    "causal": Causal(),
    "masked": Masked(words=False),
    "masked-words": Masked(words=True),
}
