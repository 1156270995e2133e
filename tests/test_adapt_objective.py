"""Each term of the loss that adapts against an independent computation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import reviews, tiny_bert
from torch import Tensor, nn

from isoflop.adapting.adversarial import ADVERSARIES, embeddings_changed, greatest_norm
from isoflop.adapting.objective import Objective, divergence, label_weights, mix
from isoflop.adapting.records import AdaptConfig
from isoflop.errors import AdaptError
from isoflop.precision import Precision
from isoflop.tasks import LossOptions, load_base, task_of

CPU = torch.device("cpu")
TASK = task_of("classification")
BERT = load_base(tiny_bert(), max_length=32)
ROWS = reviews(64)
SPEC = TASK.spec(ROWS, BERT)


def config_of(**options: Any) -> AdaptConfig:
    return AdaptConfig(task="classification", **options)


def batch_of(count: int = 8) -> dict[str, Tensor]:
    features = TASK.encode(BERT, SPEC, ROWS[:count])
    features.pop("cut")
    rows = [dict(zip(features, values, strict=True)) for values in zip(*features.values(), strict=True)]
    return TASK.collate(BERT, SPEC, rows)


def model_of() -> nn.Module:
    torch.manual_seed(0)
    return TASK.build(BERT, SPEC)


def loss_of(config: AdaptConfig, model: nn.Module, teacher: Any = None, spec: Any = SPEC) -> Tensor:
    precision = Precision("float32", CPU, [torch.optim.SGD(model.parameters(), lr=0.0)])
    made = Objective(TASK, model, spec, config, CPU, teacher)
    return made.gradients(batch_of(), np.random.default_rng(0), precision)


def grads_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_r_drop_is_both_divergences_of_two_passes() -> None:
    model, batch = model_of().train(), batch_of()
    torch.manual_seed(3)
    p, q = (TASK.logits(model, batch) for _ in range(2))
    nats = torch.stack([TASK.loss(z, batch, LossOptions()).mean() for z in (p, q)]).mean()
    P, Q = (torch.distributions.Categorical(logits=z) for z in (p, q))
    both = torch.distributions.kl_divergence(P, Q) + torch.distributions.kl_divergence(Q, P)
    assert both.mean() > 1e-5
    expected = nats + 0.7 * both.mean() / 2
    torch.manual_seed(3)
    assert loss_of(config_of(r_drop=0.7), model).item() == pytest.approx(expected.item(), rel=1e-5)
    found = grads_of(model)
    model.zero_grad()
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, grads_of(model), rtol=1e-3, atol=1e-6)


def test_a_teacher_counts_by_its_weight_at_its_temperature() -> None:
    model, batch = model_of().eval(), batch_of()
    told = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    z = TASK.logits(model, batch)
    kl = nn.functional.kl_div((z / 2).log_softmax(1), (told / 2).softmax(1), reduction="batchmean")
    expected = 0.25 * TASK.loss(z, batch, LossOptions()).mean() + 0.75 * 4 * kl
    config = config_of(teacher_weight=0.75, temperature=2.0)
    assert loss_of(config, model, lambda batch: told).item() == pytest.approx(expected.item(), rel=1e-5)
    found = grads_of(model)
    model.zero_grad()
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, grads_of(model), rtol=1e-3, atol=1e-6)


def test_divergences_are_of_places_that_have_a_target() -> None:
    p, q = torch.randn(2, 2, 3, 5)
    labels = torch.tensor([[1, -100, 2], [-100, -100, 4]])
    there = labels != -100
    P, Q = (torch.distributions.Categorical(logits=z[there]) for z in (p, q))
    expected = torch.distributions.kl_divergence(P, Q).mean()
    torch.testing.assert_close(divergence(p, q, {"labels": labels}), expected)


def test_rare_labels_weigh_more_and_the_mean_is_one() -> None:
    rows = reviews(200, good=0.1)
    spec = TASK.spec(rows, BERT)
    weights = label_weights(spec)
    counts = torch.tensor(spec.counts, dtype=torch.float32)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1.0)
    torch.testing.assert_close(weights * counts, counts.mean().expand(2))
    model, batch = model_of().eval(), batch_of()
    nats = TASK.loss(TASK.logits(model, batch), batch, LossOptions())
    expected = (nats * weights[batch["labels"]]).mean()
    found = loss_of(config_of(balanced=True), model, spec=spec)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", ADVERSARIES)
def test_changes_have_the_stated_norm_spare_padding_and_raise_the_loss(name: str) -> None:
    model, batch = model_of().eval(), batch_of()
    where = batch["attention_mask"][..., None].expand(-1, -1, 32).float()
    norm = greatest_norm(model, 0.5)
    table = model.get_input_embeddings().weight  # type: ignore[operator]
    assert norm == pytest.approx(0.5 * table.norm(dim=1).mean().item())
    seen: list[tuple[Tensor, float]] = []

    def loss(change: Tensor) -> Tensor:
        with embeddings_changed(model, lambda x: x + change):
            found = TASK.loss(TASK.logits(model, batch), batch, LossOptions()).mean()
        seen.append((change.detach().clone(), found.item()))
        return found

    def backward(found: Tensor) -> Tensor:
        found.backward()  # type: ignore[no-untyped-call]
        return found.detach()

    torch.manual_seed(0)
    plain = ADVERSARIES[name](loss, where, norm, backward)
    assert plain.item() == pytest.approx(seen[0][1])
    last, highest = seen[-1]
    assert highest > seen[0][1]
    assert (last * (1 - where)).abs().max() == 0
    lengths = last.flatten(1).norm(dim=1)
    assert (lengths <= norm * (1 + 1e-5)).all()
    if name == "fgm":
        torch.testing.assert_close(lengths, torch.full_like(lengths, norm))


def test_fgm_adds_the_gradients_where_the_loss_is_worse() -> None:
    model, batch = model_of().eval(), batch_of()
    loss_of(config_of(adversarial="fgm", adversarial_size=0.5), model)
    found = grads_of(model)
    model.zero_grad()
    x = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()  # type: ignore[operator]

    def nats() -> Tensor:
        with embeddings_changed(model, lambda _: x):
            return TASK.loss(TASK.logits(model, batch), batch, LossOptions()).mean()

    (grad,) = torch.autograd.grad(nats(), x)
    model.zero_grad()
    length = grad.flatten(1).norm(dim=1)[:, None, None]
    worse = greatest_norm(model, 0.5) * grad / length
    for shift in (torch.zeros_like(worse), worse):
        with embeddings_changed(model, lambda y, shift=shift: y + shift):  # type: ignore[misc]
            worst = TASK.loss(TASK.logits(model, batch), batch, LossOptions()).mean()
        worst.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(found, grads_of(model), rtol=1e-3, atol=1e-5)


def test_mixup_is_one_share_for_inputs_and_targets() -> None:
    batch = batch_of()
    mixed = mix(batch, 0.4, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    share, other = rng.beta(0.4, 0.4), torch.from_numpy(rng.permutation(8))
    (a, first), (b, second) = mixed.targets
    assert (a, b) == (share, 1 - share)
    assert torch.equal(first["labels"], batch["labels"])
    assert torch.equal(second["labels"], batch["labels"][other])
    x = torch.randn(8, 5, 3)
    assert mixed.change is not None
    torch.testing.assert_close(mixed.change(x), share * x + (1 - share) * x[other])
    pixels = mix({"pixel_values": x, "labels": batch["labels"]}, 0.4, np.random.default_rng(0))
    assert pixels.change is None
    torch.testing.assert_close(pixels.inputs["pixel_values"], share * x + (1 - share) * x[other])
    with pytest.raises(AdaptError, match="these are sequences"):
        mix({"labels": torch.zeros(8, 4, dtype=torch.long)}, 0.4, rng)
    ids = torch.zeros(16, 5, dtype=torch.long)
    pairs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": batch["labels"]}
    with pytest.raises(AdaptError, match="pairs or windows"):
        mix(pairs, 0.4, rng)
