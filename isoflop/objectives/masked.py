"""Masked tokens from all the others, and with them whether one stretch of text follows another.

Shapes: b windows, u = t + 1 tokens each, t time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.corpus import Tokens, train_tokens, word_edges
from isoflop.model import IGNORE
from isoflop.objectives.protocol import ENCODER
from isoflop.objectives.special import CLS, MASK, SEP, special_ids
from isoflop.records import Corpus

MASKED_SHARE = 0.15  # Devlin et al., BERT, arXiv 1810.04805, section 3.1 ...
MASK_SHARE, RANDOM_SHARE = 0.8, 0.1  # ... of these become the mask token, a random one; the rest stay
NEXT, RANDOM = 0, 1  # what the second stretch is, in transformers' numbers
LEAST_SHARE = 0.25  # of a pair's tokens that either stretch has

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Masked:
    """BERT's: 15% of the tokens from all the others; in place of most stands a mask token.

    Every window has as many, chosen anew each time that it is read (dynamic masking, Liu et al., RoBERTa,
    arXiv 1907.11692). With `words` they are chosen word by word, the last as far as it fits. Held-out text is
    scored by single tokens either way, so that both can be compared.
    """

    words: bool
    test: ClassVar[str] = "masked"
    learners: ClassVar[tuple[str, ...]] = (ENCODER,)
    special: ClassVar[tuple[str, ...]] = (MASK,)
    compresses: ClassVar[bool] = False

    def lengths(self, context: int) -> tuple[int, int]:
        return context, context

    def predicted(self, context: int) -> int:
        return max(1, round(MASKED_SHARE * context))

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        ids_bt = windows_bu[:, :-1].numpy()
        order, kind, other = np.random.default_rng(key).random((3, *ids_bt.shape))
        if self.words:
            order = np.take_along_axis(order, _word_numbers(ids_bt, corpus), axis=1)
        (mask,) = special_ids(self.special, corpus)
        return hide(ids_bt, order, kind, other, self.predicted(ids_bt.shape[1]), mask, corpus.vocab_size)


class MaskedNext:
    """BERT's own pre-training (Devlin et al., arXiv 1810.04805, section 3.1): masks, and the next sentence.

    Inputs are [CLS] A [SEP] B [SEP], as long as a window. A and what truly follows it are the window's
    beginning; half of the time B is a stretch from elsewhere in the training text instead. Where A ends is
    drawn anew, for sentences are not known here; as many tokens are masked as without pairs, none of them a
    special one. Targets have a column more than inputs: the last says NEXT or RANDOM.

    Held-out text is scored by masked tokens of plain windows, as `masked` is, so that both can be compared;
    how often pairs of it are told apart is said beside that (`evaluate.heldout`).
    """

    test: ClassVar[str] = "masked"
    learners: ClassVar[tuple[str, ...]] = (ENCODER,)
    special: ClassVar[tuple[str, ...]] = (MASK, CLS, SEP)
    compresses: ClassVar[bool] = False

    def lengths(self, context: int) -> tuple[int, int]:
        return context, context + 1

    def predicted(self, context: int) -> int:
        return max(1, round(MASKED_SHARE * context))

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        return self.pairs(windows_bu, corpus, key, train_tokens(corpus))

    def pairs(
        self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...], text: Tokens
    ) -> tuple[Tensor, Tensor]:
        """Examples whose stretches from elsewhere are of `text`."""
        mask, cls, sep = special_ids(self.special, corpus)
        rng = np.random.default_rng(key)
        ids_bt, where_bt, label_b = _pairs(windows_bu[:, :-1].numpy(), text, cls, sep, rng)
        order, kind, other = rng.random((3, *ids_bt.shape))
        order[where_bt] = 2.0  # special tokens come last
        inputs, targets = hide(
            ids_bt, order, kind, other, self.predicted(ids_bt.shape[1]), mask, corpus.vocab_size
        )
        return inputs, torch.cat([targets, torch.from_numpy(label_b)[:, None]], dim=1)


def _pairs(
    ids_bt: Ids, text: Tokens, cls: int, sep: int, rng: np.random.Generator
) -> tuple[Ids, NDArray[np.bool_], Ids]:
    """Inputs (b, t), where they are special, and NEXT or RANDOM (b,)."""
    b, t = ids_bt.shape
    length = t - 3
    least = max(1, int(LEAST_SHARE * length))
    first_b: Ids = rng.integers(least, length - least + 1, (b,))
    label_b: Ids = rng.integers(0, 2, (b,))
    starts_b: Ids = rng.integers(0, len(text) - length, (b,))
    pairs, where = np.full((b, t), cls), np.zeros((b, t), bool)
    for row, n in enumerate(first_b):
        start = int(starts_b[row])
        other = text[start : start + length - n]
        second = other if label_b[row] == RANDOM else ids_bt[row, n:length]
        pairs[row, 1:] = np.concatenate([ids_bt[row, :n], [sep], second, [sep]])
        where[row, [0, n + 1, t - 1]] = True
    return pairs, where, label_b


def hide(
    ids_bt: Ids, order: NDArray[np.float64], kind: NDArray[np.float64], other: NDArray[np.float64],
    count: int, mask: int, vocab_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Inputs and targets: the `count` tokens of least `order` in each row are hidden, as BERT hides them."""
    first = np.argsort(order, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(ids_bt.shape, bool)
    np.put_along_axis(chosen, first, True, axis=1)
    random = (other * vocab_size).astype(np.int64)
    changed = np.where(kind < MASK_SHARE, mask, np.where(kind < MASK_SHARE + RANDOM_SHARE, random, ids_bt))
    inputs, targets = np.where(chosen, changed, ids_bt), np.where(chosen, ids_bt, IGNORE)
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def _word_numbers(ids_bt: Ids, corpus: Corpus) -> Ids:
    """Of each token, the number of its word in the window."""
    opens, closes = word_edges(corpus)
    starts = np.ones(ids_bt.shape, bool)
    starts[:, 1:] = ~(opens[ids_bt[:, 1:]] & closes[ids_bt[:, :-1]])
    return starts.cumsum(axis=1) - 1
