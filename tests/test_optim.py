"""Muon and the schedule against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isoflop.optim import Muon, orthogonalise, rate
from isoflop.records import RunConfig


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


def test_the_schedule_warms_up_holds_and_cools_to_zero(small: RunConfig) -> None:
    config = small.model_copy(
        update={"tokens": 10_000, "batch_tokens": 100, "warmup_tokens": 1000, "cooldown": 0.2}
    )
    assert rate(0, config) == pytest.approx(0.1)
    assert rate(900, config) == rate(7999, config) == 1.0
    assert rate(9000, config) == pytest.approx(0.5)
    assert rate(10_000, config) == 0.0
