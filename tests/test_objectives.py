"""What objectives hide, that it can be put together again, and that it is a function of the key alone."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from isoflop.corpus import heldout_tokens, tokenizer, train_tokens, word_edges
from isoflop.errors import TrainError
from isoflop.model import IGNORE
from isoflop.objectives import OBJECTIVES
from isoflop.records import Corpus


def windows(corpus: Corpus, rows: int = 64, context: int = 128) -> torch.Tensor:
    tokens = heldout_tokens(corpus)[: rows * (context + 1)].astype(np.int64)
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


keys = st.tuples(st.integers(0, 2**32), st.integers(0, 1000), st.integers(0, 64))
drawn = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("name", OBJECTIVES)
@given(key=keys, context=st.integers(16, 160))
@drawn
def test_every_window_gives_as_many_and_the_key_decides(
    corpus: Corpus, name: str, key: tuple[int, ...], context: int
) -> None:
    objective, ids = OBJECTIVES[name], windows(corpus, 4, context)
    inputs, targets = objective.examples(ids, corpus, key)
    assert (inputs.shape[1], targets.shape[1]) == objective.lengths(context)
    relation = targets.shape[1] > context  # the last column is no token
    tokens = targets[:, :-1] if relation else targets
    assert ((tokens != IGNORE).sum(1) == objective.predicted(context)).all()
    again = objective.examples(ids, corpus, key)
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])
    assert max(int(inputs.max()), int(targets.max())) < corpus.vocab_size + len(objective.special)


@given(key=keys, context=st.integers(8, 600))
@drawn
def test_spans_fill_the_gaps(corpus: Corpus, key: tuple[int, ...], context: int) -> None:
    objective, ids = OBJECTIVES["spans"], windows(corpus, 3, context)
    inputs, targets = objective.examples(ids, corpus, key)
    for row, read, written in zip(ids, inputs.tolist(), targets.tolist(), strict=True):
        assert read.pop() == written.pop() == tokenizer(corpus).token_to_id("<|endoftext|>")
        hidden: dict[int, list[int]] = {}
        for token in written:
            if token >= corpus.vocab_size:
                assert token == corpus.vocab_size + len(hidden)  # each sentinel once, in order
                hidden[token] = []
                mark = token
            else:
                hidden[mark].append(token)
        assert all(hidden.values())
        whole = [x for token in read for x in (hidden.pop(token) if token in hidden else [token])]
        assert whole == row[:-1].tolist()
        assert not hidden


def test_spans_are_15_percent_in_threes(corpus: Corpus) -> None:
    inputs, targets = OBJECTIVES["spans"].examples(windows(corpus, 16, 512), corpus, (0,))
    noise = (targets[:, :-1] < corpus.vocab_size).sum(1)
    spans = (targets >= corpus.vocab_size).sum(1)
    assert set((noise / 512).tolist()) == {77 / 512}
    assert (noise / spans).tolist() == pytest.approx([3.0] * 16, abs=0.05)
    first = torch.stack([(row >= corpus.vocab_size).nonzero()[0, 0] for row in inputs])
    assert first.float().std() > 5  # they lie anywhere
    with pytest.raises(TrainError, match="100 sentinels"):
        OBJECTIVES["spans"].lengths(2048)


@given(key=keys)
@drawn
def test_the_second_stretch_follows_half_of_the_time(corpus: Corpus, key: tuple[int, ...]) -> None:
    ids = windows(corpus, 100, 64)
    inputs, targets = OBJECTIVES["masked-next"].examples(ids, corpus, key)
    cls, sep = corpus.vocab_size + 1, corpus.vocab_size + 2
    relation, chosen = targets[:, -1], targets[:, :-1] != IGNORE
    assert set(relation.tolist()) == {0, 1}
    assert 0.25 < relation.float().mean() < 0.75  # five standard deviations of 100
    assert (inputs[:, 0] == cls).all()
    assert (inputs[:, -1] == sep).all()
    assert ((inputs == sep).sum(1) == 2).all()
    assert not (chosen & (targets[:, :-1] >= corpus.vocab_size)).any()  # no special token is masked
    plain = torch.where(chosen, targets[:, :-1], inputs)
    for row, text, label in zip(plain, ids, relation, strict=True):
        end = int((row == sep).nonzero()[0, 0])
        first, second = row[1:end], row[end + 1 : -1]
        assert 15 <= len(first) <= 46  # a quarter of 61 tokens at least
        assert torch.equal(first, text[: len(first)])
        assert (label == 0) <= torch.equal(second, text[len(first) : 61])


def test_a_random_stretch_is_text_from_elsewhere(corpus: Corpus) -> None:
    inputs, targets = OBJECTIVES["masked-next"].examples(windows(corpus, 64, 64), corpus, (1,))
    plain = torch.where(targets[:, :-1] == IGNORE, inputs, targets[:, :-1]).numpy()
    text = train_tokens(corpus)[:].astype("<u2").tobytes()
    for row, label in zip(plain, targets[:, -1], strict=True):
        second = row[(row == corpus.vocab_size + 2).nonzero()[0][0] + 1 : -1]
        assert (label == 1) <= (second.astype("<u2").tobytes() in text)


def test_a_prefix_is_not_predicted(corpus: Corpus) -> None:
    ids = windows(corpus)
    inputs, targets = OBJECTIVES["prefix"].examples(ids, corpus, (0,))
    assert torch.equal(inputs, ids[:, :-1])
    assert torch.equal(targets[:, 63:], ids[:, 64:])
    assert (targets[:, :63] == IGNORE).all()
