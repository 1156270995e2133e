"""The optimizers of the matrices and the schedule against their definitions."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from isoflop import checkpoint
from isoflop.errors import TrainError
from isoflop.gpt import GPT
from isoflop.optim import ROWS_BETA2, Muon, make_optimizers, orthogonalise
from isoflop.progress import Silent
from isoflop.recipe import MATRIX_RATES, recipe, shape
from isoflop.records import Corpus, RunConfig
from isoflop.schedule import COOLDOWNS, rate
from isoflop.trainer import Trainer


@pytest.mark.parametrize("rows", [16, 48])
def test_newton_schulz_flattens_the_singular_values(rows: int) -> None:
    g = torch.randn(5, rows, 24, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(g))
    assert singular.min() > 0.3
    assert singular.max() < 1.3
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    aligned = torch.linalg.vecdot(orthogonalise(g).flatten(1), (u @ vh).flatten(1))
    assert (aligned > 0.8 * min(rows, 24)).all()


def test_a_batch_of_matrices_is_stepped_as_each_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(8, 6, generator=generator) for _ in range(3)]
    grads = [torch.randn(8, 6, generator=generator) for _ in range(3)]

    def stepped(tensors: list[torch.Tensor], gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        params = [nn.Parameter(t.clone()) for t in tensors]
        optimizer = Muon(params, lr=0.1, momentum=0.9, weight_decay=0.1)
        for _ in range(2):
            for p, g in zip(params, gradients, strict=True):
                p.grad = g.clone()
            optimizer.step()
        return [p.detach() for p in params]

    together = stepped(start, grads)
    for i in range(3):
        assert torch.allclose(together[i], stepped(start[i : i + 1], grads[i : i + 1])[0], atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_normuon_evens_the_rows_and_keeps_the_norm(transposed: bool) -> None:
    """With one gradient for ever, the running mean is that gradient's rows', up to a factor."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(12, 20, generator=generator) * torch.arange(1, 21)
    steps = []
    for beta2 in (0.0, ROWS_BETA2):
        p = nn.Parameter(torch.zeros(12, 20))
        group = [{"params": [p], "transposed": transposed}]
        optimizer = Muon(group, lr=1.0, momentum=0.0, rows_beta2=beta2)
        p.grad = grad.clone()
        optimizer.step()
        steps.append(p.detach().T if transposed else p.detach())
    plain, evened = steps
    lengths = evened.norm(dim=1)
    assert torch.allclose(lengths, lengths.mean().expand_as(lengths), rtol=1e-4)
    assert plain.norm(dim=1).std() > 0.01 * plain.norm(dim=1).mean()
    assert evened.norm() == pytest.approx(float(plain.norm()), rel=1e-5)
    assert torch.allclose(evened / lengths[:, None], plain / plain.norm(dim=1, keepdim=True), atol=1e-5)


@pytest.mark.parametrize("name", MATRIX_RATES)
def test_every_optimizer_learns_and_goes_on_from_a_checkpoint(
    name: str, corpus: Corpus, tmp_path: Path
) -> None:
    config = recipe(shape(64, corpus.vocab_size, context=32), 16 * 256, batch_tokens=256, optimizer=name)
    whole, halted, resumed = (Trainer(config, corpus, Silent()) for _ in range(3))
    losses = [whole.train_step(config.tokens) for _ in range(8)]
    assert losses[-1] < losses[0]
    for _ in range(4):
        halted.train_step(config.tokens)
    checkpoint.save(tmp_path, halted.state(), 4)
    state = checkpoint.load(tmp_path, Silent())
    assert state is not None
    resumed.load(state)
    assert [resumed.train_step(config.tokens) for _ in range(4)] == losses[4:]


def test_rates_of_adam_fall_with_the_width_and_those_of_muon_do_not() -> None:
    rates = {
        name: [recipe(shape(d, 512), 0, optimizer=name).lr_matrix for d in (64, 256)] for name in MATRIX_RATES
    }
    for name, (small, large) in rates.items():
        assert small / large == (4.0 if name in ("adamw", "soap") else 1.0)


def test_soap_without_its_library_is_told(small: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(TrainError, match="SOAP needs pytorch-optimizer") as caught:
        make_optimizers(GPT(small.model), small.model_copy(update={"optimizer": "soap"}))
    assert "isoflop[optimizers]" in caught.value.hint


@pytest.mark.parametrize(("name", "middle"), [("linear", 0.5), ("sqrt", 1 - 0.5**0.5), ("cosine", 0.5)])
def test_every_cooldown_falls_from_one_to_zero(name: str, middle: float, small: RunConfig) -> None:
    config = small.model_copy(
        update={"tokens": 10_000, "batch_tokens": 100, "cooldown": 0.2, "cooldown_shape": name}
    )
    assert rate(8000, config) == 1.0
    assert rate(9000, config) == pytest.approx(middle)
    assert rate(10_000, config) == 0.0
    falls = [rate(t, config) for t in range(8000, 10_001, 100)]
    assert falls == sorted(falls, reverse=True)
    assert set(COOLDOWNS) == {"linear", "sqrt", "cosine"}


def test_the_schedule_warms_up_holds_and_cools_to_zero(small: RunConfig) -> None:
    config = small.model_copy(
        update={"tokens": 10_000, "batch_tokens": 100, "warmup_tokens": 1000, "cooldown": 0.2}
    )
    assert rate(0, config) == pytest.approx(0.1)
    assert rate(900, config) == rate(7999, config) == 1.0
    assert rate(9000, config) == pytest.approx(0.5)
    assert rate(10_000, config) == 0.0
