"""Ranks that share a run's batches."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from isoflop.devices import average_gradients, rank, run_ranks, whole_machine
from isoflop.errors import TrainError
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, RunConfig
from isoflop.throughput import probe_alone
from isoflop.trainer import Batches, Trainer
from isoflop.workers import cores


def gathered_weights(config: RunConfig, corpus: Corpus, steps: int) -> tuple[float, list[torch.Tensor]]:
    """The last loss, and the flattened weights of every rank."""
    trainer = Trainer(config, corpus, Silent())
    losses = [trainer.train_step(steps * config.batch_tokens) for _ in range(steps)]
    flat = torch.nn.utils.parameters_to_vector(trainer.model.parameters()).detach()
    if config.ranks == 1:
        return losses[-1], [flat]
    all_flat = [torch.empty_like(flat) for _ in range(config.ranks)]
    dist.all_gather(all_flat, flat)
    return losses[-1], all_flat


def test_ranks_train_as_one_process_does_and_stay_equal(corpus: Corpus, small: RunConfig) -> None:
    loss, (alone,) = gathered_weights(small, corpus, 12)
    for ranks in (2, 4):
        config = small.model_copy(update={"ranks": ranks})
        shared, weights = run_ranks(ranks, partial(gathered_weights, config, corpus, 12))
        assert all(torch.equal(weights[0], w) for w in weights[1:])
        assert shared == pytest.approx(loss, rel=1e-3)
        # Rounding differs, and each step of Adam and Muon has a fixed size: not equal, but close.
        assert (weights[0] - alone).norm() < 0.02 * alone.norm()


def rows_of(config: RunConfig, corpus: Corpus) -> list[torch.Tensor]:
    mine = Batches(corpus, config)(3)
    parts = [torch.empty_like(mine) for _ in range(config.ranks)]
    dist.all_gather(parts, mine)
    return parts


def test_ranks_share_the_rows_of_one_batch(corpus: Corpus, small: RunConfig) -> None:
    whole = Batches(corpus, small)(3)
    parts = run_ranks(2, partial(rows_of, small.model_copy(update={"ranks": 2}), corpus))
    assert torch.equal(torch.cat(parts), whole)
    with pytest.raises(TrainError, match="4 rows cannot be shared evenly by 3 ranks"):
        Batches(corpus, small.model_copy(update={"ranks": 3}))


def mean_of_gradients() -> tuple[float, list[float]]:
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.full((1, 2), float(rank()))
    loss = average_gradients(model, torch.tensor(10.0 * rank()))
    return float(loss), model.weight.grad.flatten().tolist()


def test_gradients_and_loss_become_their_means() -> None:
    assert run_ranks(2, mean_of_gradients) == (5.0, [0.5, 0.5])


def first_fails() -> None:
    if rank() == 0:
        raise TrainError("the first rank cannot", hint="try")
    dist.all_reduce(torch.ones(1))


def last_is_killed() -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def test_the_error_of_one_rank_is_what_is_raised() -> None:
    with pytest.raises(TrainError, match="the first rank cannot"):
        run_ranks(2, first_fails)
    with pytest.raises(TrainError, match="one of the 2 processes of this run was killed"):
        run_ranks(2, last_is_killed)
    assert run_ranks(2, mean_of_gradients)[0] == 5.0  # the next run is not harmed


def test_the_whole_machine_is_used_and_no_more(corpus: Corpus) -> None:
    for width in (64, 256, 1024):
        config = whole_machine(recipe(shape(width, corpus.vocab_size), 0))
        assert config.ranks * config.threads <= cores()
        assert (config.batch_tokens // config.model.context) % config.ranks == 0


def test_the_speed_of_ranks_is_measured(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    measured = probe_alone(small.model_copy(update={"ranks": 2}), corpus)
    assert measured.ranks == 2
    assert measured.tokens_per_second > 0
    assert measured.packed == 1
