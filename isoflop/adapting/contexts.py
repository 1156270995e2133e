"""The tokens around a token under a linear model: a peer of taggers, which takes seconds.

What maximum-entropy taggers look at (Ratnaparkhi 1996, "A Maximum Entropy Model for Part-Of-Speech Tagging",
table 1): the token, its neighbours alone and as n-grams, how it begins, ends and looks. They are hashed
(Weinberger et al., arXiv 0902.2206), and a logistic regression for each tag learns by stochastic gradients.

Shapes: n tokens, C tags, f features.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from isoflop.metrics.protocol import Array

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.tasks.protocol import Base, Spec, Task

Floats = NDArray[np.float32]

FEATURES = 2**20
EDGE = "\n"  # in the place of tokens beyond a text's ends
AFFIXES = 3  # characters of the longest
PASSES, DECAY = 3, 1e-6  # over the tokens; of weights
HELD = 3_000_000  # tokens: each becomes some 150 bytes
TAGS, NUMBERS = "contexts.json", "contexts.safetensors"


class Contexts:
    """Fitted. Its answers are the numbers of a row's tags."""

    name: ClassVar[str] = "contexts"
    says: ClassVar[str] = "a linear model of the tokens around each token"
    tasks: ClassVar[tuple[str, ...]] = ("tagging",)
    steps: ClassVar[tuple[float, ...]] = (0.0, 1.0)  # nothing, or all

    def __init__(
        self, labels: Sequence[str], weights_fc: Floats, biases_c: Floats, used_f: Any, tokens: int = 0
    ) -> None:
        self.labels, self.biases_c, self.used_f = tuple(labels), biases_c, used_f
        self.weights_fc = weights_fc  # of the features that are used
        self.tokens = tokens  # that it learned from
        self.hasher = _hasher()

    @classmethod
    def learn(cls, task: Task, base: Base, spec: Spec, rows: Dataset) -> Contexts:
        from sklearn.linear_model import SGDClassifier

        numbers = {label: number for number, label in enumerate(spec.labels)}
        tags = np.array([numbers[tag] for row in task.references(spec, rows) for tag in row])
        x, there = _hashed(_hasher(), rows["tokens"]), np.unique(tags)
        used_f = np.unique(x.indices)
        x = x[:, used_f]
        weights_fc = np.zeros((len(used_f), len(spec.labels)), np.float32)
        biases_c = np.full(len(spec.labels), -np.inf, np.float32)  # of a tag that no row has
        for number in there if len(there) > 1 else ():
            one = SGDClassifier(loss="log_loss", alpha=DECAY, max_iter=PASSES, tol=None, random_state=0)
            one.fit(x, tags == number)
            weights_fc[:, number], biases_c[number] = one.coef_[0], one.intercept_[0]
        biases_c[there] = np.maximum(biases_c[there], np.finfo(np.float32).min)
        return cls(spec.labels, weights_fc, biases_c, used_f, len(tags))

    @property
    def room(self) -> float:
        return HELD / max(1, self.tokens)

    def answers(self, task: Task, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[Array]:
        texts = rows["tokens"]
        said_nc = _hashed(self.hasher, texts)[:, self.used_f] @ self.weights_fc + self.biases_c
        ends = np.cumsum([len(tokens) for tokens in texts])[:-1]
        return np.split(np.asarray(said_nc.argmax(1), np.float64), ends)

    def asks(self, answer_k: Array, step: float) -> bool:
        return step < 1

    def together(self, own: Any, answer_k: Array, step: float) -> Any:
        return own if self.asks(answer_k, step) else [self.labels[int(number)] for number in answer_k]

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        (folder / TAGS).write_text(json.dumps(self.labels, ensure_ascii=False), encoding="utf-8")
        numbers = {"weights": self.weights_fc, "biases": self.biases_c, "used": self.used_f}
        save_file({name: np.ascontiguousarray(n) for name, n in numbers.items()}, folder / NUMBERS)

    @classmethod
    def load(cls, folder: Path) -> Contexts:
        from safetensors.numpy import load_file

        numbers = load_file(folder / NUMBERS)
        labels = json.loads((folder / TAGS).read_text(encoding="utf-8"))
        return cls(labels, numbers["weights"], numbers["biases"], numbers["used"])


def _hasher() -> Any:
    from sklearn.feature_extraction import FeatureHasher

    return FeatureHasher(FEATURES, input_type="string", alternate_sign=False, dtype=np.float32)


def _hashed(hasher: Any, texts: Sequence[Sequence[str]]) -> Any:
    """(n, f) sparse, of the tokens of all texts one after the other."""
    return hasher.transform(seen for tokens in texts for seen in _seen(tokens))


def _seen(tokens: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """What is looked at of each token of a text."""
    around = [EDGE, EDGE, *map(str, tokens), EDGE, EDGE]
    for a, b, c, d, e in zip(around, around[1:], around[2:], around[3:], around[4:], strict=False):
        yield (
            f"0 {c}", f"-1 {b}", f"-2 {a}", f"+1 {d}", f"+2 {e}", f"-1 0 {b}{EDGE}{c}", f"0 +1 {c}{EDGE}{d}",
            f"-1 +1 {b}{EDGE}{c}{EDGE}{d}", f"-2 -1 {a}{EDGE}{b}", f"+1 +2 {d}{EDGE}{e}",
            f"-2 0 {a}{EDGE}{b}{EDGE}{c}", f"0 +2 {c}{EDGE}{d}{EDGE}{e}", *(_inside(c) if len(c) > 1 else ()),
        )  # fmt: skip


def _inside(token: str) -> Iterator[str]:
    """Beginnings, ends, and of which kinds the characters are."""
    for size in range(1, min(AFFIXES, len(token) - 1) + 1):
        yield f"begins {token[:size]}"
        yield f"ends {token[-size:]}"
    kinds = "".join("A" if c.isupper() else "a" if c.isalpha() else "0" if c.isdigit() else c for c in token)
    yield "looks " + re.sub(r"(.)\1+", r"\1\1", kinds)
