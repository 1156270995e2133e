"""N-grams beside a model: what they learn, from how much, and what is said of it."""

from __future__ import annotations

import random
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

pytest.importorskip("sklearn", reason="the extra isoflop[adapt] is not installed")

from isoflop.adapting import ngrams
from isoflop.adapting.ngrams import beside, by_ngrams, learned
from isoflop.metrics import METRICS, scored
from isoflop.tasks import task_of
from isoflop.tasks.protocol import Spec

WORDS = ("bright", "dull", "plain")
FILL = [
    "the",
    "of",
    "and",
    "in",
    "to",
    "a",
    "is",
    "that",
    "it",
    "for",
    "was",
    "on",
    "are",
    "with",
    "as",
    "at",
]


def texts(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Long texts, near whose end stand the words that decide; and these words."""
    rng = random.Random(seed)
    said = [rng.sample(WORDS, rng.randint(1, 2)) for _ in range(count)]
    return [" ".join([*rng.choices(FILL, k=200), *words, "end"]) for words in said], said


def rows_of(task: str, count: int, seed: int) -> Dataset:
    made, said = texts(count, seed)
    if task == "regression":
        return Dataset.from_dict({"text": made, "number": [100.0 * len(words) + 7 for words in said]})
    if task == "multi-label":
        return Dataset.from_dict({"text": made, "labels": said})
    return Dataset.from_dict({"text": made, "label": [min(words) for words in said]})


def spec_of(name: str, train: Dataset) -> Spec:
    return task_of(name).spec(train, SimpleNamespace(max_length=16))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "least"), [("classification", 0.97), ("multi-label", 0.97), ("regression", 0.9)]
)
def test_whole_texts_are_learned(name: str, least: float) -> None:
    task, train, rows = task_of(name), rows_of(name, 700, 0), rows_of(name, 200, 1)
    found = by_ngrams(task, spec_of(name, train), train, rows, seconds=60, seed=0)
    assert found.examples == 700
    score = scored(METRICS[task.metrics[0]], found.predictions, task.references(spec_of(name, train), rows))
    assert score.value > least


def test_two_labels_are_one_question() -> None:
    task, train, rows = task_of("classification"), *(rows_of("classification", n, n) for n in (300, 100))
    train, rows = (some.filter(lambda row: row["label"] != "plain") for some in (train, rows))
    spec = spec_of("classification", train)
    found = by_ngrams(task, spec, train, rows, seconds=60, seed=0)
    assert np.allclose(np.sum(found.predictions, 1), 1)
    assert scored(METRICS["accuracy"], found.predictions, task.references(spec, rows)).value > 0.97


def test_without_time_it_learns_from_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one text it knows one label, and says no other."""
    monkeypatch.setattr(ngrams, "FIRST", 1)
    task, train = task_of("classification"), rows_of("classification", 64, 0)
    rows, spec = rows_of("classification", 20, 1), spec_of("classification", train)
    found = by_ngrams(task, spec, train, rows, seconds=0, seed=0)
    assert found.examples == 1
    assert all(sorted(said) == [0, 0, 1] for said in found.predictions)
    assert len({int(np.argmax(said)) for said in found.predictions}) == 1
    assert by_ngrams(task, spec, train, rows, seconds=60, seed=0).examples == 64


def test_texts_that_fill_the_memory_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "FIRST", 8)
    train = rows_of("classification", 64, 0)
    monkeypatch.setattr(ngrams, "HELD", 2 * sum(len(text) for text in train[:16]["text"]))
    task, spec = task_of("classification"), spec_of("classification", train)
    assert by_ngrams(task, spec, train, train, seconds=60, seed=0).examples < 64


@pytest.mark.parametrize("better", [True, False])
def test_who_is_beaten_is_told(better: bool) -> None:
    """A model that knows nothing is; one that knows all is not."""
    task, train, rows = (
        task_of("classification"),
        rows_of("classification", 300, 0),
        rows_of("classification", 80, 1),
    )
    spec = spec_of("classification", train)
    work: Any = SimpleNamespace(
        task=task, spec=spec, rows={"train": train, "test": rows}, seed=0, notes=[],
        part=lambda _: nullcontext(), metric=METRICS["macro_f1"],
        scores=lambda made, some: (scored(METRICS["macro_f1"], made, task.references(spec, some)),),
    )  # fmt: skip
    right = np.eye(3)[task.references(spec, rows)]
    found = learned(work, 60.0)
    assert found is not None
    peer = beside(work, found, list(np.full((80, 3), 1 / 3) if better else right))
    assert peer.examples == 300
    assert (peer.apart[0].difference < 0) is better
    assert len(work.notes) == better
    assert not better or "are better on the test examples" in work.notes[0]


def test_other_tasks_have_no_use_for_them() -> None:
    assert learned(SimpleNamespace(task=task_of("tagging")), 1.0) is None  # type: ignore[arg-type]
