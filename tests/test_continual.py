"""Tasks in order: what is forgotten, what keeps it, and the numbers that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny import BAD, GOOD, PLAIN, reviews, tiny_bert

from isoflop.adapting.continual import (
    Against,
    InOrder,
    Stage,
    average_score,
    backward_transfer,
    forward_transfer,
    learn_in_order,
    stages_of,
)
from isoflop.adapting.fisher import drawn, fisher_information
from isoflop.adapting.records import AdaptConfig
from isoflop.continued import Consolidation
from isoflop.errors import AdaptError
from isoflop.plots.continual import matrix_data, save_matrix
from isoflop.tasks import LossOptions, load_base, task_of

TASK = task_of("classification")
CONFIG = AdaptConfig(
    task="classification", lr=5e-3, steps=50, batch=16, dropout=0.0, evaluations=2, patience=0, seed=1
)
SEEDS = (1, 2, 3)


@given(st.integers(2, 5), st.integers(0, 1000))
def test_transfer_is_what_the_equations_say(tasks: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    r, b = rng.random((tasks, tasks)), rng.random(tasks)
    forgotten = sum(r[tasks - 1][i] - r[i][i] for i in range(tasks - 1)) / (tasks - 1)
    given_on = sum(r[i - 1][i] - b[i] for i in range(1, tasks)) / (tasks - 1)
    assert float(average_score(r)) == pytest.approx(sum(r[tasks - 1]) / tasks)
    assert float(backward_transfer(r)) == pytest.approx(forgotten)
    assert float(forward_transfer(r, b)) == pytest.approx(given_on)


FIRST, SECOND = {"good": GOOD, "bad": BAD}, {"good": ("river", "tree"), "bad": ("home", "bird")}
OTHERS = sorted(set(PLAIN) - set(SECOND["good"] + SECOND["bad"]))


def texts(count: int, seed: int, decides: Mapping[str, Sequence[str]], noise: Sequence[str] = ()) -> Dataset:
    """Of plain words, one that decides the label, and one that does not."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        label = ("good", "bad")[i % 2]
        words = [*rng.choice(OTHERS, 5), rng.choice(decides[label]), *([rng.choice(noise)] if noise else [])]
        rows.append({"text": " ".join(rng.permutation(words)), "label": label})
    return Dataset.from_list(rows)


def stages_for(seed: int) -> list[Stage]:
    """Words that decide in the first are noise in the second, where others do; one model can know both."""
    sizes, first = {"train": 192, "validation": 40, "test": 100}, 100 * seed
    return [
        Stage("first", {name: texts(n, first + i, FIRST) for i, (name, n) in enumerate(sizes.items())}),
        Stage(
            "second",
            {name: texts(n, first + 9 + i, SECOND, GOOD + BAD) for i, (name, n) in enumerate(sizes.items())},
        ),
    ]


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return stages_for(2)


def learned(stages: list[Stage], config: AdaptConfig = CONFIG, **against: Any) -> InOrder:
    return learn_in_order(TASK, load_base(tiny_bert()), stages, config, Against(**against))[0]


def each(**against: Any) -> dict[int, InOrder]:
    return {
        seed: learned(stages_for(seed), CONFIG.model_copy(update={"seed": seed}), **against) for seed in SEEDS
    }


@pytest.fixture(scope="module")
def plain() -> dict[int, InOrder]:
    """By seed."""
    return each()


@pytest.fixture(scope="module")
def forgetful(plain: dict[int, InOrder]) -> InOrder:
    return plain[2]


def mean_backward(found: dict[int, InOrder]) -> float:
    return float(np.mean([each.backward.value for each in found.values()]))


def test_plain_training_forgets(plain: dict[int, InOrder]) -> None:
    assert all(found.scores[0][0] > 0.9 for found in plain.values())
    assert mean_backward(plain) < -0.15


@pytest.mark.parametrize("against", [{"replay": 0.5}, {"ewc": 30_000.0}], ids=["replay", "ewc"])
def test_less_is_forgotten(plain: dict[int, InOrder], against: dict[str, float]) -> None:
    """On average over seeds: one seed's rounding, grown in fifty steps at a high rate, may say otherwise."""
    kept = each(**against)
    for seed, found in kept.items():
        assert found.scores[0] == plain[seed].scores[0]  # nothing was there to be kept
    assert mean_backward(kept) > mean_backward(plain) + 0.1
    gained = [found.average.value - plain[seed].average.value for seed, found in kept.items()]
    assert np.mean(gained) > 0.05


def test_the_answer_agrees_with_its_own_matrix(forgetful: InOrder) -> None:
    r, b = forgetful.scores, forgetful.before
    assert forgetful.average.value == pytest.approx((r[1][0] + r[1][1]) / 2)
    assert forgetful.backward.value == pytest.approx(r[1][0] - r[0][0])
    assert forgetful.forward.value == pytest.approx(r[0][1] - b[1])
    for found in (forgetful.average, forgetful.backward, forgetful.forward):
        assert found.low <= found.value <= found.high
    # of two paired scores of 100 examples each, the interval is a normal one's, about
    half = (forgetful.average.high - forgetful.average.low) / 2
    errors = [p * (1 - p) / 100 for p in r[1]]
    assert half == pytest.approx(1.645 * np.sqrt(sum(errors)) / 2, rel=0.25)


def test_an_adapter_for_each_forgets_nothing(stages: list[Stage]) -> None:
    config = CONFIG.model_copy(update={"method": "lora", "lr": 1e-2, "steps": 100, "batch": 24})
    found, _, models = learn_in_order(TASK, load_base(tiny_bert()), stages, config, Against(per_task=True))
    assert len(models) == 2
    assert found.backward.value == found.forward.value == 0
    assert found.scores[0][1] == found.before[1]
    assert found.scores[1][0] == found.scores[0][0] > found.before[0] + 0.15
    assert found.scores[1][1] > found.before[1] + 0.15


def test_the_fisher_information_is_that_of_the_models_own_labels(stages: list[Stage]) -> None:
    """Against squared gradients of every label, by its probability."""
    base, rows = load_base(tiny_bert()), stages[0].rows["train"].select(range(40))
    spec = TASK.spec(stages[0].rows["train"], base)
    torch.manual_seed(0)
    model: Any = TASK.build(base, spec).eval()
    names = ("classifier.weight", "bert.encoder.layer.1.output.dense.weight")
    for name, p in model.named_parameters():
        p.requires_grad_(name in names)
    weights = [model.get_parameter(name) for name in names]
    sums = [torch.zeros_like(p) for p in weights]
    for row in rows:
        logp = model(**base.processor(row["text"], return_tensors="pt")).logits.log_softmax(-1)[0]
        for label in logp:
            grads = torch.autograd.grad(label, weights, retain_graph=True)
            for total, grad in zip(sums, grads, strict=True):
                total += label.exp().detach() * grad.square() / len(rows)
    found = [fisher_information(TASK, base, spec, model, rows, seed=seed) for seed in range(6)]
    for name, total in zip(names, sums, strict=True):
        mine = torch.stack([one[name] for one in found])
        assert float(mine.mean(0).sum()) == pytest.approx(float(total.sum()), rel=0.3)
        assert float(torch.corrcoef(torch.stack([mine.mean(0).flatten(), total.flatten()]))[0, 1]) > 0.9


@pytest.mark.parametrize(
    ("task", "logits", "labels"),
    [
        ("classification", [[0.3, -1.0, 2.0]], torch.tensor([0])),
        ("masked", [[[0.5, 1.0], [2.0, 0.0], [0.1, -3.0]]], torch.tensor([[1, -100, 0]])),
        ("multi-label", [[0.3, -2.0]], torch.tensor([[0.0, 1.0]])),
        ("regression", [[0.7]], torch.tensor([2.0])),
    ],
)
def test_what_is_drawn_has_the_loss_second_derivatives(
    task: str, logits: list[Any], labels: torch.Tensor
) -> None:
    found, z = task_of(task), torch.tensor(logits)
    batch = {"labels": labels}
    torch.manual_seed(0)
    v = torch.stack([drawn(found, z, batch).flatten() for _ in range(6000)])

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return found.loss(flat.reshape(z.shape), batch, LossOptions()).sum()

    hessian = torch.autograd.functional.hessian(loss, z.flatten())  # type: ignore[no-untyped-call]
    torch.testing.assert_close(v.T @ v / len(v), hessian, atol=0.05 * float(hessian.max()), rtol=0.05)


def test_texts_that_are_compared_have_no_fisher_information() -> None:
    with pytest.raises(AdaptError, match="embedding compares texts"):
        drawn(task_of("embedding"), torch.zeros(1, 2, 4), {"labels": torch.tensor([0])})


def test_the_penalty_pulls_back_by_its_weight() -> None:
    model = torch.nn.Linear(2, 2)
    penalty = Consolidation(model, {"bias": torch.ones(2)}, 3.0)
    with torch.no_grad():
        model.bias.add_(0.5)
    model.bias.grad = torch.zeros(2)
    penalty.add_gradients(2.0)
    assert model.bias.grad.tolist() == pytest.approx([3.0, 3.0])


def test_labels_are_those_of_all(stages: list[Stage]) -> None:
    third = {
        name: Dataset.from_dict({"text": rows["text"], "label": ["neither"] * len(rows)})
        for name, rows in stages[0].rows.items()
    }
    quick = CONFIG.model_copy(update={"steps": 2})
    found = learned([stages[0], Stage("third", third)], quick)
    assert found.labels == ("bad", "good", "neither")
    assert any("third has no examples of bad, good" in note for note in found.notes)


def test_data_sets_are_read_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv"]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        reviews(60, seed).to_csv(path, index=False)
    assert [stage.name for stage in stages_of(TASK, paths, {})] == ["x", "x 2"]
    with pytest.raises(AdaptError, match="two data sets or more"):
        stages_of(TASK, paths[:1], {})


@pytest.mark.parametrize(
    ("against", "says"),
    [
        ({"replay": 1.0}, "no share of a batch"), ({"ewc": -1.0}, "would drive weights away"),
        ({"per_task": True, "replay": 0.1}, "forgets nothing"), ({"per_task": True}, "leaves the base"),
    ],
)  # fmt: skip
def test_what_does_not_fit(stages: list[Stage], against: dict[str, Any], says: str) -> None:
    with pytest.raises(AdaptError, match=says):
        learned(stages, **against)


def test_the_picture_shows_the_matrix(forgetful: InOrder, tmp_path: Path) -> None:
    data = matrix_data(forgetful)
    assert data.rows == ("before", "after first", "after second")
    assert data.scores.tolist() == [list(forgetful.before), *map(list, forgetful.scores)]
    save_matrix(tmp_path / "sequence.png", forgetful)
    assert (tmp_path / "sequence.png").read_bytes().startswith(b"\x89PNG")
