"""Where a model fails, on rows whose faults are planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from isoflop.errors import AdaptError
from isoflop.explaining.calibration import reliability
from isoflop.explaining.fairness import fairness
from isoflop.explaining.slices import slices
from isoflop.tasks import Spec, task_of

SAID = "some plain words that a text has in it and others like them"
ABOUT = SAID.split()
SPEC = Spec(task="classification", labels=("no", "yes"), counts=(1, 1))


def reviews(n: int, seed: int, **columns: list[str]) -> Dataset:
    """Texts of random words and one of two labels."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(ABOUT, rng.integers(4, 30))) for _ in range(n)]
    return Dataset.from_dict({"text": texts, "label": rng.choice(["no", "yes"], n).tolist(), **columns})


def guessed(rows: Dataset, wrong: np.ndarray[Any, Any], seed: int = 0) -> tuple[list[Any], list[int]]:
    """Probabilities of predictions that are wrong at these rates (n,), and the references."""
    true = np.array([SPEC.labels.index(label) for label in rows["label"]])
    found = np.where(np.random.default_rng(seed).random(len(true)) < wrong, 1 - true, true)
    return [np.array([0.9, 0.1]) if f == 0 else np.array([0.1, 0.9]) for f in found], true.tolist()


def test_planted_slices_are_found() -> None:
    rng = np.random.default_rng(5)
    shop = rng.choice(["north", "south", "east"], 1200).tolist()
    rows = reviews(1200, 5, shop=shop)
    has = np.array(["others" in text.split() for text in rows["text"]])
    wrong = np.where(np.array(shop) == "south", 0.4, 0.05) + 0.3 * has
    predictions, references = guessed(rows, wrong)
    found = slices(task_of("classification"), SPEC, rows, predictions, references)
    assert found is not None
    worse = {s.name for s in found.slices if s.worse}
    assert {"shop south", "with “others”"} <= worse
    assert not worse & {"shop north", "shop east", "label no", "label yes"}
    south = next(s for s in found.slices if s.name == "shop south")
    mine = [i for i, name in enumerate(shop) if name == "south"]
    right = [float(predictions[i].argmax() == references[i]) for i in mine]
    assert south.score.value == pytest.approx(np.mean(right))
    assert south.score.low < south.score.value < south.score.high
    assert south.score.examples == len(mine)
    assert found.looks == len(found.slices)
    assert all(s.q >= s.p for s in found.slices)


def test_nothing_is_found_in_noise() -> None:
    task, called = task_of("classification"), 0
    for seed in range(10):
        rows = reviews(300, seed, shop=np.random.default_rng(seed).choice(["a", "b", "c"], 300).tolist())
        predictions, references = guessed(rows, np.full(300, 0.2), seed)
        found = slices(task, SPEC, rows, predictions, references, seed=seed)
        assert found is not None
        assert found.looks > 8
        called += any(s.worse for s in found.slices)
    assert called <= 3  # of 10 at a rate of at most 0.1: more happens in 1% of the cases


def test_a_planted_bias_is_the_gap() -> None:
    n = 1500
    groups = np.random.default_rng(1).choice(["a", "b", "c", "rare"], n, p=[0.45, 0.35, 0.19, 0.01])
    rows = reviews(n, 1)
    true = np.array(rows["label"])
    wrong = np.where((groups == "b") & (true == "yes"), 0.3, 0.05)
    predictions, references = guessed(rows, wrong)
    found = fairness(task_of("classification"), SPEC, "town", groups.tolist(), predictions, references)
    assert found.too_small == {"rare": int((groups == "rare").sum())}
    gaps = {gap.measure: gap for gap in found.gaps}
    positives = gaps["true-positive rate of yes"]
    assert (positives.lowest, positives.highest != "b") == ("b", True)
    assert positives.gap.low < 0.25 < positives.gap.high
    assert positives.gap.low > 0.1
    assert gaps["true-positive rate of no"].gap.low < 0.02
    mine = (groups == "b") & (true == "yes")
    rate = np.mean([predictions[i].argmax() == 1 for i in np.flatnonzero(mine)])
    assert positives.values["b"] == pytest.approx(rate)
    assert gaps["rate of predicting yes"].lowest == "b"
    share = np.mean([predictions[i].argmax() == 1 for i in np.flatnonzero(groups == "b")])
    assert gaps["rate of predicting yes"].values["b"] == pytest.approx(share)
    assert gaps["macro_f1"].lowest == "b"
    assert {s.metric for s in found.scores["a"]} == {"macro_f1", "accuracy"}


def test_groups_that_are_too_small() -> None:
    rows = reviews(60, 2)
    predictions, references = guessed(rows, np.full(60, 0.1))
    groups = ["a"] * 40 + ["b"] * 20
    with pytest.raises(AdaptError, match="1 have 30 examples or more: a 40, b 20"):
        fairness(task_of("classification"), SPEC, "town", groups, predictions, references)


def test_confidence_is_compared_with_what_is_right() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1, 4000)
    right = rng.random(4000) < p
    predictions = [np.array([q, 1 - q]) for q in p]
    found = reliability(task_of("classification"), SPEC, predictions, (~right).astype(int).tolist())
    assert found is not None
    assert sum(b.examples for b in found.bins) == 4000
    assert found.error.value < 0.03
    weighed = sum(b.examples * abs(b.accuracy - b.confidence) for b in found.bins) / 4000
    assert found.error.value == pytest.approx(weighed)
    assert all(b.low <= b.confidence <= b.high for b in found.bins)
    sure = reliability(task_of("classification"), SPEC, [np.array([1.0, 0.0])] * 4, [0, 0, 1, 1])
    assert sure is not None
    assert sure.error.value == pytest.approx(0.5)
