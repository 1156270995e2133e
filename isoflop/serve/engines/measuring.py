"""How fast artifacts of one model are here, and what they lose: from the ledger, else measured in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from isoflop.adapting.saved import task_name
from isoflop.errors import IsoflopError
from isoflop.improving.probing import probe
from isoflop.served import KIND, Served
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.throughput import machine
from isoflop.workers import pool

if TYPE_CHECKING:
    from isoflop.adapting.rates import AdaptedSpeed
    from isoflop.records import Corpus

WORDS = range(8, 40)  # of the texts that adapted models are timed on, one each
TOGETHER = 32  # texts of a batch, of `adapting.rates.SIZES`


class Measured(NamedTuple):
    """One artifact on this machine."""

    engine: str
    seconds: float  # a token of new text; of an adapted model, a text of a batch
    change: float  # of the held-out loss, as a share of the model's; adapted models have passed their gate


Found = Measured | IsoflopError  # why it could not be


def measured(
    project: Project, corpus: Corpus, model: Path, paths: Sequence[Path], threads: int
) -> list[Found]:
    """Artifacts of a model that writes text, one text at a time. What is measured is kept in the ledger."""
    bench = _Bench(project, corpus, model, threads)
    return [_caught(bench, path) for path in paths]


def _caught(bench: _Bench, path: Path) -> Found:
    try:
        return bench.of(path)
    except IsoflopError as error:
        return error


class _Bench:
    """The losses that artifacts are compared with are the model's own."""

    def __init__(self, project: Project, corpus: Corpus, model: Path, threads: int) -> None:
        self.project, self.corpus, self.model, self.threads = project, corpus, model, threads
        self.rows = project.all(KIND, Served)

    def of(self, path: Path) -> Measured:
        here = [s for s in self._served(path) if (s.machine, s.speed.threads) == (machine(), self.threads)]
        if here:
            return Measured(here[-1].engine, here[-1].seconds.value, self._change(path))
        found = probe(self.project, self.corpus, path, [self.threads])
        return Measured(found.engine, found.best, self._change(path))

    def _served(self, path: Path) -> list[Served]:
        hash = content_hash(path)[:HASH_DIGITS]
        return [s for s in self.rows if s.hash == hash]

    def _change(self, path: Path) -> float:
        """By the same held-out text: that of the ledger's rows of both, else a few windows."""
        if path == self.model:
            return 0.0
        own, base = (
            {(s.corpus_id, s.eval_tokens): s.loss for s in self._served(p)} for p in (path, self.model)
        )
        for text in [text for text in own if text in base]:
            return own[text] / base[text] - 1
        after, before = (
            np.mean(probe(self.project, self.corpus, p, [self.threads]).windows) for p in (path, self.model)
        )
        return float(after / before - 1)


def measured_adapted(paths: Sequence[Path], threads: int) -> list[Found]:
    """Artifacts of an adapted model, in turn, in batches."""
    with pool(1, fresh=True) as executor:
        found = executor.submit(_rates, paths, threads).result()
    return [Measured(s.engine, 1 / s.rates[TOGETHER].median, 0.0) for s in found]


def _rates(paths: Sequence[Path], threads: int) -> list[AdaptedSpeed]:
    import torch
    from datasets import Dataset

    from isoflop.adapting.quiet import quiet
    from isoflop.adapting.rates import speeds

    torch.set_num_threads(threads)
    texts = [["text"] * words for words in WORDS]
    tagging = task_name(paths[0]) == "tagging"
    rows = Dataset.from_dict({"tokens": texts} if tagging else {"text": [" ".join(t) for t in texts]})
    with quiet():
        return speeds(paths, rows)
