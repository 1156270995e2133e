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
    example_fisher,
    forward_transfer,
    learn_in_order,
    stages_of,
)
from isoflop.adapting.records import AdaptConfig
from isoflop.continued import Consolidation
from isoflop.errors import AdaptError
from isoflop.plots.continual import matrix_data, save_matrix
from isoflop.tasks import load_base, task_of

TASK = task_of("classification")
CONFIG = AdaptConfig(
    task="classification", lr=3e-3, steps=70, batch=24, dropout=0.0, evaluations=2, patience=0, seed=1
)


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


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    """Words that decide in the first are noise in the second, where others do; one model can know both."""
    sizes = {"train": 240, "validation": 40, "test": 100}
    return [
        Stage("first", {name: texts(n, i, FIRST) for i, (name, n) in enumerate(sizes.items())}),
        Stage(
            "second", {name: texts(n, 9 + i, SECOND, GOOD + BAD) for i, (name, n) in enumerate(sizes.items())}
        ),
    ]


def learned(stages: list[Stage], config: AdaptConfig = CONFIG, **against: Any) -> InOrder:
    return learn_in_order(TASK, load_base(tiny_bert()), stages, config, Against(**against))[0]


@pytest.fixture(scope="module")
def forgetful(stages: list[Stage]) -> InOrder:
    return learned(stages)


def test_plain_training_forgets_and_replay_does_less(stages: list[Stage], forgetful: InOrder) -> None:
    assert forgetful.scores[0][0] > 0.9
    assert forgetful.scores[1][1] > 0.7
    assert forgetful.backward.high < -0.1
    replayed = learned(stages, replay=0.5)
    assert replayed.backward.value > forgetful.backward.value + 0.05
    assert replayed.average.value > forgetful.average.value
    assert replayed.scores[0] == forgetful.scores[0]  # nothing was there to replay


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
    config = CONFIG.model_copy(update={"method": "lora", "lr": 1e-2, "steps": 100})
    found, _, models = learn_in_order(TASK, load_base(tiny_bert()), stages, config, Against(per_task=True))
    assert len(models) == 2
    assert found.backward.value == found.forward.value == 0
    assert found.scores[0][1] == found.before[1]
    assert found.scores[1][0] == found.scores[0][0] > found.before[0] + 0.15
    assert found.scores[1][1] > found.before[1] + 0.15


def test_the_fisher_information_is_the_mean_square_of_gradients(stages: list[Stage]) -> None:
    base, rows = load_base(tiny_bert()), stages[0].rows["train"].select(range(3))
    spec = TASK.spec(stages[0].rows["train"], base)
    torch.manual_seed(0)
    model: Any = TASK.build(base, spec).eval()
    found = example_fisher(TASK, base, spec, model, rows)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for row in rows:
        inputs = base.processor(row["text"], return_tensors="pt")
        model.zero_grad()
        logp = model(**inputs).logits.log_softmax(-1)[0, spec.labels.index(row["label"])]
        logp.backward()
        for name, p in model.named_parameters():
            sums[name] += p.grad.square() if p.grad is not None else 0
    for name, total in sums.items():
        torch.testing.assert_close(found[name], total / 3, rtol=1e-3, atol=1e-10)
    penalty = Consolidation(model, {"classifier.bias": torch.ones(2)}, 3.0)
    with torch.no_grad():
        model.classifier.bias += 0.5
    model.classifier.bias.grad = torch.zeros(2)
    penalty.add_gradients()
    assert model.classifier.bias.grad.tolist() == pytest.approx([1.5, 1.5])


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
