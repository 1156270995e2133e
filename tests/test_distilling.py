"""The loss of a student: against plain torch, chunk by chunk, with and without autocast."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.gpt import LinearCrossEntropy
from isoflop.teaching.distilling import DistilledCrossEntropy, told_by
from isoflop.teaching.divergences import DIVERGENCES, Lesson

N, V, D = 700, 96, 16  # more than one chunk


def plain(z: Tensor, y: Tensor, teachers: list[Tensor], lesson: Lesson) -> Tensor:
    """The formula, by torch's own functions and autograd."""
    t = lesson.temperature
    p = torch.stack([(u / t).softmax(1) for u in teachers]).mean(0)
    q = (z / t).softmax(1)
    if lesson.divergence == "forward-kl":
        apart = F.kl_div(q.log(), p, reduction="batchmean")
    elif lesson.divergence == "reverse-kl":
        apart = F.kl_div(p.log(), q, reduction="batchmean")
    else:
        m = ((p + q) / 2).log()
        apart = (F.kl_div(m, p, reduction="batchmean") + F.kl_div(m, q, reduction="batchmean")) / 2
    return lesson.weight * t**2 * apart + (1 - lesson.weight) * F.cross_entropy(z, y)


def made(
    dtype: torch.dtype = torch.float32, teachers: int = 1
) -> tuple[Tensor, Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Hidden states, head, targets; the same of teachers of other widths."""
    g = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64).to(dtype)

    told = [(normal(N, D + 8 * i), 0.5 * normal(V, D + 8 * i)) for i in range(1, teachers + 1)]
    x, w = normal(N, D).requires_grad_(), (0.5 * normal(V, D)).requires_grad_()
    return x, w, torch.randint(V, (N,), generator=g), told


def distilled(
    x: Tensor, w: Tensor, y: Tensor, teachers: list[tuple[Tensor, Tensor]], lesson: Lesson
) -> Tensor:
    told = [told_by(*t) for t in teachers]
    loss: Tensor = DistilledCrossEntropy.apply(x, w, y, told, lesson)  # type: ignore[no-untyped-call]
    return loss


def gradients(loss: Tensor, *weights: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(3.0 * loss, weights))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("weight", [0.3, 1.0])
@pytest.mark.parametrize("teachers", [1, 3])
def test_it_is_the_formula(divergence: str, temperature: float, weight: float, teachers: int) -> None:
    lesson = Lesson(weight, temperature, divergence)
    x, w, y, told = made(torch.float64, teachers)
    wanted = plain(x @ w.T, y, [h @ u.T for h, u in told], lesson)
    found = distilled(x, w, y, told, lesson)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-10)
    for a, b in zip(gradients(found, x, w), gradients(wanted, x, w), strict=True):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-13)
    exact = found.item()
    x, w, y, told = made(torch.float32, teachers)
    assert distilled(x, w, y, told, lesson).item() == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_under_autocast_it_is_the_formula_of_rounded_products(divergence: str) -> None:
    lesson = Lesson(0.5, 2.0, divergence)
    x, w, y, told = made(teachers=2)
    low = [t.bfloat16().float() for t in (x, w)]
    z = (low[0] @ low[1].T).bfloat16().float().detach().requires_grad_()
    us = [(h.bfloat16().float() @ u.bfloat16().float().T).bfloat16().float() for h, u in told]
    wanted = plain(z, y, us, lesson)
    (by_logits,) = torch.autograd.grad(wanted, [z])
    with torch.autocast("cpu", torch.bfloat16):
        found = distilled(x, w, y, told, lesson)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(wanted.item(), rel=1e-4)
    for a, b in zip(
        torch.autograd.grad(found, [x, w]), (by_logits @ low[1], by_logits.T @ low[0]), strict=True
    ):
        assert a.dtype == torch.float32
        assert float((a - b).norm() / b.norm()) < 0.01


@pytest.mark.parametrize("low", [False, True])
def test_without_weight_it_is_cross_entropy(low: bool) -> None:
    x, w, y, told = made()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        ours = distilled(x, w, y, told, Lesson(0.0, 2.0, "reverse-kl"))
        usual = LinearCrossEntropy.apply(x, w, y)  # type: ignore[no-untyped-call]
    assert ours.item() == pytest.approx(usual.item(), rel=1e-6)
    for a, b in zip(gradients(ours, x, w), gradients(usual, x, w), strict=True):
        assert float((a - b).norm() / b.norm()) < (0.01 if low else 1e-5)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_its_own_teacher_teaches_nothing(divergence: str) -> None:
    x, w, y, _ = made(torch.float64)
    told = [(x.detach(), w.detach())]
    found = distilled(x, w, y, told, Lesson(1.0, 2.0, divergence))
    assert found.item() == pytest.approx(0, abs=1e-12)
    assert all(float(g.abs().max()) < 1e-12 for g in gradients(found, x, w))


def test_far_apart_nothing_overflows() -> None:
    """Probabilities that are 0 in 32 bits on either side."""
    x, w, y, told = made()
    z, (h, u) = (40 * x).detach().requires_grad_(), told[0]
    for name in DIVERGENCES:
        found = distilled(z, w, y, [(-40 * h, u)], Lesson(1.0, 1.0, name))
        assert math.isfinite(found.item())
        assert all(bool(torch.isfinite(g).all()) for g in gradients(found, z, w))
        if name == "jensen-shannon":
            assert found.item() <= math.log(2) + 1e-6
