"""What is served, judged in its engine: each question a file, each answer kept in the ledger.

    documents.py     perplexity of each held-out document
    completions.py   do continuations of Python parse
    robustness.py    what a disturbed context costs
    ensemble.py      several models beside one another, and the mean of their probabilities
    harness.py       tasks of lm-eval from local files

`evaluated` asks the ledger first: the same question about the same bytes, in the same version of the engine,
is answered once. Speeds (`timed`) are measured each time and all kept, with the machine and its load.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from isoflop.engines import package_of
from isoflop.engines.speed import EngineSpeed, measure
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record, digest
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.throughput import machine

KIND, SPEED = "evaluation", "speed"

R = TypeVar("R")


class Artifact(Record):
    """What was evaluated: a model folder or an exported file."""

    path: str  # as it was given
    hash: str  # of its content
    engine: str  # package and version


class Evaluation(Record):
    """One question about one artifact or several, and its answer."""

    id: str
    part: str  # "loss", "documents", "completions", "robustness", "ensemble", "tasks" or "speed"
    artifacts: tuple[Artifact, ...]
    corpus_id: str | None  # None: of a speed
    options: dict[str, Any]
    result: dict[str, Any]  # a record of the part's own
    seconds: float
    machine: str
    load_before: float  # processes that wanted a core, on average of the minute before
    load_after: float


def artifact(path: Path) -> Artifact:
    """An artifact with its content's hash. Raises ProjectError when there is none."""
    package = package_of(path)
    return Artifact(
        path=str(path), hash=content_hash(path)[:HASH_DIGITS], engine=f"{package} {version(package)}"
    )


def evaluated(
    project: Project, part: str, paths: Sequence[Path], corpus: Corpus, options: Mapping[str, Any],
    answer: type[R], measured: Callable[[], R], *, progress: Progress | None = None,
) -> R:  # fmt: skip
    """What `measured()` says, of type `answer`; from the ledger when it was asked before.

    Raises ProjectError for a path with no artifact, and what `measured` raises.
    """
    kind, artifacts = TypeAdapter(answer), tuple(artifact(path) for path in paths)
    id = digest([part, [(a.hash, a.engine) for a in artifacts], corpus.id, dict(options)])
    known = project.get(KIND, id, Evaluation)
    if known is not None:
        (progress or Silent()).log(f"{part}: measured before, read from the ledger")
        return kind.validate_python(known.result)
    load, start = os.getloadavg()[0], time.perf_counter()
    found = measured()
    project.put(KIND, Evaluation(
        id=id, part=part, artifacts=artifacts, corpus_id=corpus.id, options=dict(options),
        result=kind.dump_python(found, mode="json"), seconds=time.perf_counter() - start, machine=machine(),
        load_before=load, load_after=os.getloadavg()[0],
    ))  # fmt: skip
    return found


def timed(project: Project, path: Path, *, threads: int = 1) -> EngineSpeed:
    """How fast an artifact is, now. Raises as `measure` does."""
    made, start = artifact(path), time.perf_counter()
    found = measure(path, threads=threads)
    result, options = found.model_dump(mode="json"), {"threads": threads}
    project.put(KIND, Evaluation(
        id=digest([SPEED, made.hash, made.engine, options, result]), part=SPEED, artifacts=(made,),
        corpus_id=None, options=options, result=result, seconds=time.perf_counter() - start,
        machine=machine(), load_before=found.load_before, load_after=found.load_after,
    ))  # fmt: skip
    return found
