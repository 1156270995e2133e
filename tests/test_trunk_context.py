"""A trunk whose windows are shorter than those of the cooldown."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.identity import tokens_of_trunk
from isoflop.progress import Silent
from isoflop.records import Corpus, RunConfig
from isoflop.train import train, train_trunk
from isoflop.trainer import Trainer


@pytest.fixture
def short(small: RunConfig) -> RunConfig:
    """60 steps of 4 windows; the trunk's are halved."""
    return small.model_copy(update={"trunk_context": small.model.context // 2})


def test_the_windows_are_cut_and_every_target_stays(short: RunConfig, corpus: Corpus) -> None:
    trainer = Trainer(short, corpus, Silent())
    whole, cut = (trainer.examples(3, c) for c in (short.model.context, short.trunk_context))
    for one, two in zip(whole, cut, strict=True):
        assert two.shape == (2 * one.shape[0], one.shape[1] // 2)
        assert torch.equal(one.flatten(), two.flatten())


def test_all_the_context_is_used_from_the_cooldown_on(
    short: RunConfig, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, seen = Trainer(short, corpus, Silent()), list[int]()
    loss = trainer.model.loss

    def spied(x: Tensor, y: Tensor, **options: float) -> Tensor:
        seen.append(x.shape[1])
        return loss(x, y, **options)

    monkeypatch.setattr(trainer.model, "loss", spied)
    for _ in range(60):
        trainer.train_step(short.tokens)
    trunk = short.trunk_steps(60)
    assert seen == [short.trunk_context] * trunk + [short.model.context] * (60 - trunk)


def test_compute_is_counted_as_it_was_spent(short: RunConfig, corpus: Corpus, tmp_path: Path) -> None:
    half, full = short.tokens // 2, short.tokens
    runs = train_trunk(short, [half, full], corpus, tmp_path)
    cheap, dear = flops.flops_per_token(short.trunk_model), flops.flops_per_token(short.model)
    assert cheap < dear
    trunk, cooled = tokens_of_trunk([half, full], short)
    assert sum(r.flops_spent for r in runs) == cheap * trunk + dear * cooled
    steps = short.trunk_steps(60)
    assert runs[1].flops == short.batch_tokens * (cheap * steps + dear * (60 - steps))
    assert runs[1].loss == train(short, corpus, tmp_path / "alone").loss  # a branch is a run of its own


def test_a_context_that_cannot_be_cut_is_refused(small: RunConfig, corpus: Corpus) -> None:
    with pytest.raises(TrainError, match="64 cannot be cut into parts of 48"):
        Trainer(small.model_copy(update={"trunk_context": 48}), corpus, Silent())
