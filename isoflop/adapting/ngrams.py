"""N-grams of characters under a linear model: a peer that takes seconds, reads whole texts, and may be best.

The baseline of Wang and Manning (2012), "Baselines and Bigrams", with n-grams of characters within words for
words, so that no language needs a tokenizer: TF-IDF, then a logistic regression for each label, or a ridge
regression for a number.

Shapes: n texts to learn from, m to answer, C labels, f features.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isoflop.adapting.inputs import TEST, TRAIN, some
from isoflop.adapting.records import Peer
from isoflop.metrics import METRICS, compared
from isoflop.metrics.protocol import Array

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.adapting.work import Work
    from isoflop.tasks.protocol import Spec, Task

TASKS = "classification", "multi-label", "regression"
SIZES = 2, 5
FEATURES = 300_000
WEIGHTS = 30_000_000  # of all labels: with many, each has fewer features
STRENGTH = 100.0  # inverse of the regularization's: long texts have many weak features
FIRST = 500  # texts that are learned from at first
READ = 40_000  # characters of a text
HELD = 20_000_000  # characters of all texts; each becomes some 50 bytes of features
GROWS = 1.3  # power of their number by which the time for texts grows, at most
SURE = 0.95  # share of resamples in which one is better


class Answers(NamedTuple):
    predictions: list[Any]  # m, in the task's form
    examples: int  # that were learned from


def by_ngrams(task: Task, spec: Spec, train: Dataset, rows: Dataset, *, seconds: float, seed: int) -> Answers:
    """What n-grams of training texts say of rows.

    It learns from 500 texts drawn at random, and then from as many as there are and about so many seconds
    suffice for.
    """
    ends, size = time.monotonic() + seconds, FIRST
    from sklearn.feature_extraction.text import TfidfVectorizer

    most = max(1000, min(FEATURES, WEIGHTS // max(1, len(spec.labels))))
    while True:
        began, drawn = time.monotonic(), some(train, size, seed)
        texts = _texts(drawn)
        vectors = TfidfVectorizer(
            analyzer="char_wb", ngram_range=SIZES, sublinear_tf=True, max_features=most, dtype=np.float32
        )
        models = _models(task, spec, vectors.fit_transform(texts), drawn)
        now, room = time.monotonic(), HELD / max(1, sum(map(len, texts)))
        time_for = max(0.0, (ends - now) / (now - began)) ** (1 / GROWS)
        larger = min(int(size * min(time_for, room)), len(train))
        if larger < 2 * size and (larger < len(train) or len(train) <= size):  # not worth it
            return Answers(_said(task, models, vectors.transform(_texts(rows))), len(drawn))
        size = larger


def learned(work: Work, seconds: float) -> Answers | None:
    """N-grams' predictions of the test examples. None: the task has no use for them."""
    if work.task.name not in TASKS:
        return None
    train, rows = work.rows[TRAIN], work.rows[TEST]
    with work.part("n-grams"):
        return by_ngrams(work.task, work.spec, train, rows, seconds=seconds, seed=work.seed)


def beside(work: Work, found: Answers, own: Sequence[Any]) -> Peer:
    """N-grams' scores, and how much a model's own predictions of the test examples are above theirs."""
    rows = work.rows[TEST]
    references = work.task.references(work.spec, rows)
    apart = tuple(compared(METRICS[name], found.predictions, own, references) for name in work.task.metrics)
    peer = Peer(
        says="n-grams of characters with a linear model", examples=found.examples,
        test=work.scores(found.predictions, rows), apart=apart,
    )  # fmt: skip
    if apart[0].p_better <= 1 - SURE:
        work.notes.append(
            f"{peer.says}, which learn in seconds from {peer.examples:,} examples, are better on the test "
            f"examples ({work.metric.name} {apart[0].first:.4f}): this base needs more time, or is not needed"
        )
    return peer


def _texts(rows: Dataset) -> list[str]:
    return [str(text)[:READ] for text in rows["text"]]


def _models(task: Task, spec: Spec, x: Any, rows: Dataset) -> list[Any]:
    """A fitted model of each target; a share where all examples have the same."""
    from sklearn.linear_model import LogisticRegression, Ridge

    targets = _targets(task, spec, rows)
    if task.name == "regression":
        return [Ridge().fit(x, targets[:, 0])]
    found: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        for target in targets.T:
            same = target.min() == target.max()
            one = LogisticRegression(C=STRENGTH, solver="liblinear")
            found.append(float(target[0]) if same else one.fit(x, target))
    return found


def _targets(task: Task, spec: Spec, rows: Dataset) -> Array:
    """(n, C) of 0 and 1, or (n, 1) of numbers; of two labels the second alone is learned."""
    references = task.references(spec, rows)
    if task.name == "classification":
        marks = np.eye(len(spec.labels))[references]
        return marks[:, 1:] if len(spec.labels) == 2 else marks
    return np.asarray(references, np.float64).reshape(len(rows), -1)


def _said(task: Task, models: Sequence[Any], x: Any) -> list[Any]:
    """Predictions of texts (m, f)."""
    if task.name == "regression":
        numbers: list[float] = models[0].predict(x).tolist()
        return numbers
    columns = [
        np.full(x.shape[0], model) if isinstance(model, float) else model.predict_proba(x)[:, 1]
        for model in models
    ]
    found = np.stack(columns, 1)
    if task.name == "classification":
        found = np.hstack([1 - found, found]) if len(models) == 1 else found
        found = found / np.maximum(found.sum(1, keepdims=True), np.finfo(float).tiny)
    return list(found)
