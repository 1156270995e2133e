"""A memory: the answer of the training example that is most alike, as translators have it.

Alike is what has the same n-grams of characters, rare ones weighing no more than common ones: the cosine of
1 + log of their counts, which found better answers than TF-IDF does (docs/LOG.md). Beside a model it answers
what is alike enough, and the model the rest; as a memory of fuzzy matches does in computer-aided translation,
and as nearest neighbours do beside a language model (Khandelwal et al., arXiv 1911.00172).

Shapes: n rows, m examples of the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from isoflop.metrics.protocol import Array
from isoflop.tasks.sequences import FromTextToText

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.tasks.protocol import Base, Spec, Task

SIZES = 1, 4
READ = 4000  # characters of a source
HELD = 20_000_000  # characters of all sources
MOST = 100_000  # examples: every answer is compared with all of them
TOGETHER = 10_000_000  # cosines at a time
ROUNDING = 1e-6  # by which the cosine of a text with itself may be off
EXAMPLES = "memory.parquet"


class Memory:
    """Of sources and their answers. Its own answers are a cosine and the number of an example."""

    name: ClassVar[str] = "memory"
    says: ClassVar[str] = "the answer of the training example that is most alike"
    tasks: ClassVar[tuple[str, ...]] = ("translation", "summarisation", "code")
    # How much unlike, 1 less its cosine, an example may be whose answer is given.
    steps: ClassVar[tuple[float, ...]] = (-1.0, 0.0, *(round(0.05 * i, 2) for i in range(1, 16)), 1.0)

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.sources, self.targets = list(sources), list(targets)
        self.vectors = TfidfVectorizer(
            analyzer="char_wb",
            ngram_range=SIZES,
            lowercase=False,
            use_idf=False,
            sublinear_tf=True,
            dtype=np.float32,
        )
        self.x = self.vectors.fit_transform(_cut(self.sources)).T.tocsr()  # (features, m)

    @classmethod
    def learn(cls, task: Task, base: Base, spec: Spec, rows: Dataset) -> Memory:
        return cls(_sources(task, base, spec, rows[:]), task.references(spec, rows))

    @property
    def room(self) -> float:
        return min(HELD / max(1, sum(map(len, self.sources))), MOST / len(self.sources))

    def answers(
        self, task: Task, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]
    ) -> Sequence[Array]:
        asked = self.vectors.transform(_cut(_sources(task, base, spec, rows)))
        found, size = np.zeros((asked.shape[0], 2)), max(1, TOGETHER // len(self.sources))
        for start in range(0, len(found), size):
            cosines = (asked[start : start + size] @ self.x).toarray()
            found[start : start + size] = np.stack([cosines.max(1), cosines.argmax(1)], 1)
        return list(found)

    def asks(self, answer_k: Array, step: float) -> bool:
        return bool(answer_k[0] < 1 - step - ROUNDING)

    def together(self, own: Any, answer_k: Array, step: float) -> Any:
        return own if self.asks(answer_k, step) else self.targets[int(answer_k[1])]

    def save(self, folder: Path) -> None:
        from datasets import Dataset

        Dataset.from_dict({"source": self.sources, "target": self.targets}).to_parquet(folder / EXAMPLES)

    @classmethod
    def load(cls, folder: Path) -> Memory:
        from pyarrow.parquet import read_table

        table = read_table(folder / EXAMPLES)
        return cls(table["source"].to_pylist(), table["target"].to_pylist())


def _sources(task: Task, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[str]:
    assert isinstance(task, FromTextToText)
    return [pair.source for pair in task.pairs(base, spec, rows)]


def _cut(texts: Sequence[str]) -> list[str]:
    return [text[:READ] for text in texts]
