"""Metrics of labels, numbers, tags and ranks against other sources, and the bootstrap that they share."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isoflop.metrics import METRICS, compared, scored

LABELS = st.lists(st.integers(0, 4), min_size=2, max_size=30)


def value(name: str, predictions: Any, references: Any) -> float:
    found = METRICS[name].statistics(predictions, references)
    return float(METRICS[name].value(found.sum(0, keepdims=True))[0])


def f1_of(found: Any, true: Any) -> float:
    """From precision and recall, as Van Rijsbergen has it."""
    hits = float((found & true).sum())
    if not hits:
        return 0.0
    precision, recall = hits / found.sum(), hits / true.sum()
    return float(2 * precision * recall / (precision + recall))


@given(LABELS)
def test_equal_lists_are_perfect(labels: list[int]) -> None:
    assert value("accuracy", labels, labels) == value("macro_f1", labels, labels) == 1
    hot = np.eye(5)[labels]
    assert value("micro_f1", hot, hot) == value("macro_f1_labels", hot, hot) == 1
    tags = [[f"B-{label}", "O"] for label in labels]
    assert value("entity_f1", tags, tags) == value("token_accuracy", tags, tags) == 1
    assert value("rmse", labels, labels) == 0


@given(LABELS, st.integers(0, 9))
@settings(max_examples=40)
def test_f1_is_the_mean_of_precision_and_recall(labels: list[int], seed: int) -> None:
    found = np.random.default_rng(seed).integers(0, 5, len(labels))
    true = np.array(labels)
    seen = sorted({*found.tolist(), *labels})
    expected = np.mean([f1_of(found == c, true == c) for c in seen])
    assert value("macro_f1", found, labels) == pytest.approx(expected)
    assert value("macro_f1_labels", np.eye(5)[found], np.eye(5)[true]) == pytest.approx(expected)
    assert value("micro_f1", np.eye(5)[found], np.eye(5)[true]) == pytest.approx(np.mean(found == true))


def test_several_labels_an_example() -> None:
    rng = np.random.default_rng(0)
    probabilities, true = rng.random((50, 4)), rng.random((50, 4)) < 0.3
    found = probabilities >= 0.5
    assert value("micro_f1", probabilities, true) == pytest.approx(f1_of(found, true))
    each = [f1_of(found[:, c], true[:, c]) for c in range(4)]
    assert value("macro_f1_labels", list(probabilities), true.tolist()) == pytest.approx(np.mean(each))
    assert value("micro_f1", [[0.1, 0.2]], [[0, 0]]) == value("macro_f1_labels", [[0.1, 0.2]], [[0, 0]]) == 0


def test_probabilities_stand_for_the_likeliest_label() -> None:
    assert value("accuracy", [np.array([0.2, 0.8]), np.array([0.6, 0.4])], [1, 1]) == 0.5


@given(
    st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=4, max_size=30),
    st.floats(-1e6, 1e6),
)
@settings(max_examples=60)
def test_numbers_as_scipy_has_them(pairs: list[tuple[float, float]], shift: float) -> None:
    x, y = np.round(np.array(pairs), 2).T
    assert value("rmse", x, y) == pytest.approx(np.linalg.norm(x - y) / math.sqrt(len(x)))
    if np.ptp(x) > 0 and np.ptp(y) > 0:
        assert value("pearson", x + shift, y) == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-6)
        assert value("spearman", x, y) == pytest.approx(stats.spearmanr(x, y)[0], abs=1e-9)
    else:
        assert math.isnan(value("pearson", x, y))
        assert math.isnan(value("spearman", x, y))


def test_anscombe() -> None:
    """F. J. Anscombe, 1973, "Graphs in statistical analysis", table 1, data set 1: a correlation of .816."""
    x = [10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5]
    y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68]
    assert value("pearson", y, x) == pytest.approx(0.816, abs=5e-4)


def test_entities_as_seqeval_counts_them() -> None:
    """The example of its README, of which it says .50; and random tags against its own corpus function."""
    from seqeval.metrics import f1_score

    true = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    assert value("entity_f1", found, true) == 0.5 == f1_score(true, found)
    assert value("token_accuracy", found, true) == 0.8
    rng = np.random.default_rng(0)
    names = np.array(["O", "B-nr", "I-nr", "B-ns", "I-ns"])
    a, b = ([names[rng.integers(5, size=12)].tolist() for _ in range(60)] for _ in range(2))
    assert value("entity_f1", a, b) == pytest.approx(f1_score(b, a))
    assert value("entity_f1", [["O"]], [["O"]]) == 0


def test_tokens_that_were_cut_off_are_wrong() -> None:
    assert value("token_accuracy", [["O"]], [["O", "O"]]) == 0.5
    assert value("entity_f1", [["B-x"]], [["B-x", "O", "B-x"]]) == pytest.approx(2 / 3)


def test_calibration_by_its_definition() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 3)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(3, size=500)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    expected = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert value("calibration_error", list(probabilities), labels) == pytest.approx(expected)
    assert value("calibration_error", [[0.0, 1.0], [1.0, 0.0]], [1, 0]) == 0
    assert value("calibration_error", [[0.0, 1.0], [1.0, 0.0]], [0, 1]) == 1


def test_right_probabilities_are_calibrated() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 20_000)
    labels = (rng.random(20_000) > sure).astype(int)
    assert value("calibration_error", np.stack([sure, 1 - sure], axis=1), labels) < 0.02


def test_perplexity_of_even_odds_is_their_number() -> None:
    assert value("perplexity", [(3 * math.log(50), 3), (5 * math.log(50), 5)], ["", ""]) == pytest.approx(50)
    weighted = value("perplexity", [(2.0, 1), (3.0, 9)], ["", ""])
    assert weighted == pytest.approx(math.exp(0.5))


def test_ranks() -> None:
    """Ranks of 3, 2 and 1 are 11/18 (Voorhees, 1999, TREC-8: the mean of reciprocal ranks)."""
    assert value("mrr", [3, 2, 1], [None] * 3) == pytest.approx(11 / 18)
    assert value("recall_at_1", [3, 2, 1], [None] * 3) == pytest.approx(1 / 3)


def test_programs_that_parse() -> None:
    deep = "(" * 10_000 + ")" * 10_000
    texts = ["x = 1\n", "def f(:\n", "x = '\\d'\n", "\0", deep, ""]
    assert METRICS["parse_rate"].statistics(texts, texts)[:, 0].tolist() == [1, 0, 1, 0, 0, 1]


@given(LABELS, st.integers(0, 20))
@settings(max_examples=40)
def test_an_interval_holds_the_value(labels: list[int], seed: int) -> None:
    found = np.random.default_rng(seed).integers(0, 5, len(labels)).tolist()
    score = scored(METRICS["accuracy"], found, labels, seed=seed)
    assert score.low <= score.value <= score.high
    assert score == scored(METRICS["accuracy"], found, labels, seed=seed)
    assert score.examples == len(labels)


@given(LABELS, st.integers(0, 20))
@settings(max_examples=20)
def test_equal_models_differ_by_nothing(labels: list[int], seed: int) -> None:
    found = np.random.default_rng(seed).integers(0, 5, len(labels)).tolist()
    for name in ("accuracy", "macro_f1", "rmse"):
        same = compared(METRICS[name], found, found, labels, seed=seed, resamples=100)
        assert (same.difference, same.low, same.high, same.p_better) == (0, 0, 0, 0.5)


def test_a_pair_is_told_apart_where_two_intervals_overlap() -> None:
    """Better on 10 of 200 examples and as good on the others: certain in pairs, not side by side."""
    labels = [1] * 200
    first = [1] * 140 + [0] * 60
    second = [1] * 150 + [0] * 50
    one, other = (scored(METRICS["accuracy"], found, labels) for found in (first, second))
    assert one.high > other.low
    gain = compared(METRICS["accuracy"], first, second, labels)
    assert gain.difference == pytest.approx(0.05)
    assert 0 < gain.low < gain.difference < gain.high
    assert gain.p_better > 0.99
    loss = compared(METRICS["rmse"], first, second, labels)
    assert loss.high < 0
    assert loss.p_better > 0.99


def test_the_bootstrap_has_the_normal_interval_of_a_share() -> None:
    found = [1] * 800 + [0] * 200
    score = scored(METRICS["accuracy"], found, [1] * 1000, resamples=4000)
    half = stats.norm.ppf(0.95) * math.sqrt(0.8 * 0.2 / 1000)
    assert score.low == pytest.approx(0.8 - half, abs=2e-3)
    assert score.high == pytest.approx(0.8 + half, abs=2e-3)


def test_intervals_of_90_percent_cover_the_truth_about_as_often() -> None:
    """Accuracy .8 on 200 examples, 300 times."""

    @cache
    def covers(right: int) -> bool:
        score = scored(METRICS["accuracy"], [1] * right + [0] * (200 - right), [1] * 200)
        return score.low <= 0.8 <= score.high

    found = np.random.default_rng(0).binomial(200, 0.8, size=300)
    assert 0.85 <= np.mean([covers(int(right)) for right in found]) <= 0.95
