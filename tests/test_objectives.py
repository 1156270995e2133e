"""What is hidden from a masked model, and that it is a function of the key alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from isoflop.corpus import heldout_tokens, tokenizer, word_edges
from isoflop.model import IGNORE
from isoflop.objectives import OBJECTIVES
from isoflop.records import Corpus


def windows(corpus: Corpus, rows: int = 64, context: int = 128) -> torch.Tensor:
    tokens = np.array(heldout_tokens(corpus)[: rows * (context + 1)]).astype(np.int64)
    return torch.from_numpy(tokens.reshape(rows, context + 1))


def test_a_causal_model_predicts_every_next_token(corpus: Corpus) -> None:
    ids = windows(corpus)
    inputs, targets = OBJECTIVES["causal"].examples(ids, corpus, (0,))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert OBJECTIVES["causal"].predicted(128) == 128


@pytest.mark.parametrize("name", ["masked", "masked-words"])
def test_masks_follow_bert(corpus: Corpus, name: str) -> None:
    objective, ids = OBJECTIVES[name], windows(corpus)
    inputs, targets = objective.examples(ids, corpus, (0, 5))
    chosen = targets != IGNORE
    assert (chosen.sum(1) == objective.predicted(128)).all()
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.005)
    assert torch.equal(targets[chosen], ids[:, :-1][chosen])
    assert torch.equal(inputs[~chosen], ids[:, :-1][~chosen])
    hidden = (inputs[chosen] == corpus.vocab_size).float().mean()
    kept = (inputs[chosen] == targets[chosen]).float().mean()
    assert hidden == pytest.approx(0.8, abs=0.04)
    assert kept == pytest.approx(0.1, abs=0.03)
    assert inputs.max() == corpus.vocab_size
    again, other = (objective.examples(ids, corpus, (0, step))[1] for step in (5, 6))
    assert torch.equal(targets, again)
    assert not torch.equal(targets, other)


def test_whole_words_are_hidden_together(corpus: Corpus) -> None:
    ids, tok = windows(corpus), tokenizer(corpus)
    opens, closes = word_edges(corpus)
    assert opens[tok.token_to_id("e")]
    assert not opens[tok.token_to_id("Ġ")]
    assert not closes[tok.token_to_id("(")]
    inside = opens[ids[:, 1:-1]] & closes[ids[:, :-2]]  # token i + 1 goes on with the word of token i

    def torn(name: str) -> float:
        """Share of the borders inside words that lie between a hidden token and another."""
        hidden = (OBJECTIVES[name].examples(ids, corpus, (0,))[1] != IGNORE).numpy()
        return float((hidden[:, 1:] != hidden[:, :-1])[inside].mean())

    assert torn("masked") > 0.2
    assert torn("masked-words") < 0.02  # the last word of a window may be cut
