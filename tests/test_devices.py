"""Ranks that share a run's batches."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist

from isoflop import devices, flops
from isoflop.devices import average_gradients, collected, joined, rank, run_ranks, whole_machine
from isoflop.errors import TrainError
from isoflop.families import find
from isoflop.optim import Muon
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, RunConfig
from isoflop.throughput import probe_alone
from isoflop.trainer import Batches, Trainer


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


def orthogonal(rows: int, columns: int, n: int) -> list[torch.Tensor]:
    """Of every rank, the matrices after a step of Muon from zero."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(rows, columns)) for _ in range(n)]
    for p in params:
        p.grad = torch.randn(rows, columns, generator=generator)
    Muon(params, lr=0.1, momentum=0.9).step()
    return collected(torch.stack([p.data for p in params])) if joined() else [torch.stack([*params]).data]


@pytest.mark.parametrize("n", [1, 3, 4])
def test_ranks_share_the_orthogonalisation(n: int) -> None:
    (alone,) = orthogonal(8, 24, n)
    for step in run_ranks(2, partial(orthogonal, 8, 24, n)):
        torch.testing.assert_close(step, alone, rtol=1e-5, atol=1e-7)


def rows_of(config: RunConfig, corpus: Corpus) -> list[torch.Tensor]:
    """Inputs and targets of batch 3, each of all ranks."""
    parts = collected(Trainer(config, corpus, Silent()).examples(3))
    return [torch.cat(of_all) for of_all in zip(*parts, strict=True)]


@pytest.mark.parametrize("family", ["isoflop", "bert"])
def test_ranks_share_the_rows_of_one_batch(corpus: Corpus, small: RunConfig, family: str) -> None:
    config = small.model_copy(update={"model": find(family).shape(32, corpus.vocab_size, context=64)})
    whole = Trainer(config, corpus, Silent()).examples(3)
    shared = run_ranks(2, partial(rows_of, config.model_copy(update={"ranks": 2}), corpus))
    assert all(map(torch.equal, shared, whole))
    with pytest.raises(TrainError, match="4 rows cannot be shared evenly by 3 ranks"):
        Batches(corpus, small.model_copy(update={"ranks": 3}))


def mean_of_gradients() -> tuple[float, list[float]]:
    model = torch.nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.full((1, 2), float(rank()))
    loss = average_gradients(model, torch.tensor(10.0 * rank()))
    return float(loss), model.weight.grad.flatten().tolist()


def test_gradients_and_loss_become_their_means() -> None:
    assert run_ranks(2, mean_of_gradients) == (5.0, [0.5, 0.5])


def fails(number: int, error: BaseException) -> None:
    if rank() == number:
        raise error
    dist.all_reduce(torch.ones(1))


def last_is_killed() -> None:
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.all_reduce(torch.ones(1))


def test_the_error_of_one_rank_is_what_is_raised() -> None:
    ranks = 3
    with pytest.raises(TrainError, match="the first rank cannot"):
        run_ranks(ranks, partial(fails, 0, TrainError("the first rank cannot", hint="try")))
    with pytest.raises(OSError, match="no space"):
        run_ranks(ranks, partial(fails, 1, OSError("no space")))
    with pytest.raises(TrainError, match=f"one of the {ranks} processes of this run was killed"):
        run_ranks(ranks, last_is_killed)
    assert run_ranks(2, mean_of_gradients)[0] == 5.0  # the next run is not harmed


@pytest.mark.parametrize(
    ("cpus", "ranks", "threads"), [(1, 1, 1), (2, 2, 1), (3, 1, 3), (6, 2, 3), (8, 4, 2), (64, 4, 16)]
)
def test_as_many_cores_as_possible_are_used(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, cpus: int, ranks: int, threads: int
) -> None:
    monkeypatch.setattr(devices, "cores", lambda: cpus)
    monkeypatch.setattr(devices, "device_for", lambda: torch.device("cpu"))
    config = recipe(shape(64, corpus.vocab_size), 0, batch_tokens=4 * 512)
    found = whole_machine(config)
    assert (found.ranks, found.threads) == (ranks, threads)


def test_memory_limits_the_ranks(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "cores", lambda: 64)
    monkeypatch.setattr(devices, "device_for", lambda: torch.device("cpu"))
    config = recipe(shape(8192, 100_000), 0, batch_tokens=64 * 512)
    found = whole_machine(config)
    room = devices.MEMORY_SHARE * psutil.virtual_memory().total
    copies = flops.training_memory_bytes(found)
    assert found.ranks == 1 or copies <= room
    assert found.ranks * found.threads == 64
    small = recipe(shape(64, corpus.vocab_size), 0, batch_tokens=4 * 512)
    assert whole_machine(small, 4, 1e9).ranks == 4
    assert whole_machine(small, 4, 1e9, beside=2e8).ranks == 2  # of 5e8 bytes
    assert whole_machine(small, 4, 1e9, beside=1e9).ranks == 1


def test_ranks_that_were_not_started_are_refused(corpus: Corpus, small: RunConfig) -> None:
    with pytest.raises(ValueError, match="2 ranks was started in 1"):
        Trainer(small.model_copy(update={"ranks": 2}), corpus, Silent())


def test_the_speed_of_ranks_is_measured(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    measured = probe_alone(small.model_copy(update={"ranks": 2}), corpus)
    assert measured.ranks == 2
    assert measured.tokens_per_second > 0
    assert measured.packed == 1


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "in_group", "chosen"),
    [(True, True, False, "cuda"), (False, True, False, "mps"), (False, True, True, "cpu"),
     (False, False, False, "cpu")],
)  # fmt: skip
def test_cuda_is_chosen_before_mps_and_mps_by_lone_processes_before_the_cpu(
    has_cuda: bool, has_mps: bool, in_group: bool, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: has_mps)
    monkeypatch.setattr(devices, "joined", lambda: in_group)
    assert devices.device_for().type == chosen
