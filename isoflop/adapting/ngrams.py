"""N-grams of characters under a linear model: a peer that takes seconds, reads whole texts, and may be best.

The baseline of Wang and Manning (2012), "Baselines and Bigrams", with n-grams of characters within words for
words, so that no language needs a tokenizer: TF-IDF, then a logistic regression for each label, or a ridge
regression for a number.

Shapes: n texts, C targets (of two labels the second alone, or the number), f features.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.tasks.protocol import Base, Spec, Task

SIZES = 1, 4
FEATURES = 300_000
WEIGHTS = 30_000_000  # of all labels: with many, each has fewer features
STRENGTH = 100.0  # inverse of the regularization's: long texts have many weak features
READ = 40_000  # characters of a text
HELD = 20_000_000  # characters of all texts; each becomes some 50 bytes of features
WORDS, NUMBERS = "ngrams.json", "ngrams.safetensors"


class NGrams:
    """Fitted. Its answers are probabilities of all labels, or the number."""

    name: ClassVar[str] = "n-grams"
    says: ClassVar[str] = "a linear model of n-grams of characters"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "multi-label", "regression")
    steps: ClassVar[tuple[float, ...]] = (0.0, 0.25, 0.5, 0.75, 1.0)  # its share of a mean with the model's

    def __init__(
        self, vectors: Any, weights_fc: Array, biases_c: Array, *, number: bool, characters: int = 0
    ) -> None:
        self.vectors, self.weights_fc, self.biases_c = vectors, weights_fc, biases_c
        self.number = number  # is what it answers
        self.characters = characters  # that it learned from

    @classmethod
    def learn(cls, task: Task, base: Base, spec: Spec, rows: Dataset) -> NGrams:
        from sklearn.feature_extraction.text import TfidfVectorizer

        most = max(1000, min(FEATURES, WEIGHTS // max(1, len(spec.labels))))
        texts, targets_nc = _texts(rows["text"]), _targets(task, spec, rows)
        vectors = TfidfVectorizer(**_reads(), max_features=most)
        x = vectors.fit_transform(texts)
        fitted = [_fitted(task, x, target_n) for target_n in targets_nc.T]
        return cls(
            vectors, np.stack([weights_f for weights_f, _ in fitted], 1).astype(np.float32),
            np.array([bias for _, bias in fitted], np.float32), number=task.name == "regression",
            characters=sum(map(len, texts)),
        )  # fmt: skip

    @property
    def room(self) -> float:
        return HELD / max(1, self.characters)

    def answers(
        self, task: Task, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]
    ) -> Sequence[Array]:
        said = self.vectors.transform(_texts(rows["text"])) @ self.weights_fc + self.biases_c
        if self.number:
            return list(np.asarray(said, np.float64))
        with np.errstate(over="ignore"):
            found = 1 / (1 + np.exp(-said))
        if task.name == "classification":
            found = np.hstack([1 - found, found]) if found.shape[1] == 1 else found
            found = found / np.maximum(found.sum(1, keepdims=True), np.finfo(float).tiny)
        return list(np.asarray(found, np.float64))

    def asks(self, answer_k: Array, step: float) -> bool:
        return step < 1

    def together(self, own: Any, answer_k: Array, step: float) -> Any:
        answer = float(answer_k[0]) if self.number else answer_k
        return answer if own is None or step == 1 else (1 - step) * own + step * answer

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        says = {"number": self.number, "ngrams": self.vectors.get_feature_names_out().tolist()}
        (folder / WORDS).write_text(json.dumps(says, ensure_ascii=False), encoding="utf-8")
        numbers = {"idf": self.vectors.idf_, "weights": self.weights_fc, "biases": self.biases_c}
        save_file(
            {name: np.ascontiguousarray(n, np.float32) for name, n in numbers.items()}, folder / NUMBERS
        )

    @classmethod
    def load(cls, folder: Path) -> NGrams:
        from safetensors.numpy import load_file
        from sklearn.feature_extraction.text import TfidfVectorizer

        numbers = load_file(folder / NUMBERS)
        says = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        vectors = TfidfVectorizer(**_reads(), vocabulary=says["ngrams"])
        vectors.idf_ = numbers["idf"]
        return cls(vectors, numbers["weights"], numbers["biases"], number=says["number"])


def _reads() -> dict[str, Any]:
    return {"analyzer": "char_wb", "ngram_range": SIZES, "sublinear_tf": True, "dtype": np.float32}


def _texts(texts: Sequence[Any]) -> list[str]:
    return [str(text)[:READ] for text in texts]


def _fitted(task: Task, x: Any, target_n: Array) -> tuple[Array, float]:
    """Weights (f,) and a bias; of a label that all or no examples have, the bias alone."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if task.name == "regression":
        ridge = Ridge().fit(x, target_n)
        return np.asarray(ridge.coef_, np.float64), float(ridge.intercept_)
    if target_n.min() == target_n.max():
        return np.zeros(x.shape[1]), np.inf if target_n[0] else -np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        one = LogisticRegression(C=STRENGTH, solver="liblinear").fit(x, target_n)
    return np.asarray(one.coef_[0], np.float64), float(one.intercept_[0])


def _targets(task: Task, spec: Spec, rows: Dataset) -> Array:
    """(n, C) of 0 and 1, or (n, 1) of numbers; of two labels the second alone is learned."""
    references = task.references(spec, rows)
    if task.name == "classification":
        marks = np.eye(len(spec.labels))[references]
        return marks[:, 1:] if len(spec.labels) == 2 else marks
    return np.asarray(references, np.float64).reshape(len(rows), -1)
