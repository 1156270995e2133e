"""Which similarity finds the best answers in a memory of the training examples.

    python benchmarks/task_memory.py .demo-tasks/data/en-de .demo-tasks/data/pages

Of each way to compare sources: the chief metric of the most alike training example's answer on the validation
examples of the splits that `isoflop adapt` draws, and last of the memory that it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from isoflop.adapting.inputs import TRAIN, VALIDATION, Sources
from isoflop.adapting.memory import READ, Memory
from isoflop.metrics import METRICS, value_of
from isoflop.progress import Silent
from isoflop.tasks import task_of
from isoflop.tasks.protocol import Spec

TASKS = {"pages": "summarisation"}  # else translation
PLAIN: Any = SimpleNamespace(kind="encoder-decoder")  # a base without a template
WAYS: dict[str, dict[str, Any]] = {
    "TF-IDF, 2 to 5": {"ngram_range": (2, 5)},
    "TF-IDF, 2 to 5, case told": {"ngram_range": (2, 5), "lowercase": False},
    "TF-IDF, 1 to 4, case told": {"ngram_range": (1, 4), "lowercase": False},
    "counts, 2 to 5, case told": {"ngram_range": (2, 5), "lowercase": False, "use_idf": False},
    "counts, 1 to 4, case told": {"ngram_range": (1, 4), "lowercase": False, "use_idf": False},
}


def most_alike(way: dict[str, Any], known: list[str], asked: list[str]) -> list[int]:
    """Numbers of the known texts."""
    vectors = TfidfVectorizer(analyzer="char_wb", sublinear_tf=True, dtype=np.float32, **way)
    x, found = vectors.fit_transform(known).T.tocsr(), list[int]()
    for start in range(0, len(asked), 200):
        found += (vectors.transform(asked[start : start + 200]) @ x).toarray().argmax(1).tolist()
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+")
    print("| data | examples | asked | metric | alike by | score |\n|---|---|---|---|---|---|")
    for data in parser.parse_args().data:
        task: Any = task_of(TASKS.get(data.name, "translation"))
        rows, _ = Sources([data]).read(task, {}, 0, [], Silent())
        spec, train, held = Spec(task=task.name, source="{}"), rows[TRAIN], rows[VALIDATION]
        known, asked = (
            [pair.source[:READ] for pair in task.pairs(PLAIN, spec, part[:])] for part in (train, held)
        )
        targets, references = task.references(spec, train), task.references(spec, held)
        made = {name: [targets[i] for i in most_alike(way, known, asked)] for name, way in WAYS.items()}
        memory = Memory.learn(task, PLAIN, spec, train)
        answers = memory.answers(task, PLAIN, spec, held[:])
        made["the memory of isoflop adapt"] = [memory.together(None, a, memory.steps[-1]) for a in answers]
        metric = METRICS[task.metrics[0]]
        for name, said in made.items():
            value = value_of(metric, said, references)
            print(f"| {data.name} | {len(train):,} | {len(held):,} | {metric.name} | {name} | {value:.4g} |")


if __name__ == "__main__":
    main()
