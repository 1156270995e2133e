"""What a finished model is where it serves: its loss in its engine, its bytes, its speed on this machine.

An artifact's loss does not depend on the machine, nor its speed on the held-out text: each is measured once
and kept in the ledger, by the artifact's content.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.engines import opened
from isoflop.engines.speed import EngineSpeed, measure
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Interval, Record, digest
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.transforms import EVAL_TOKENS

if TYPE_CHECKING:  # they take torch to import, which reading records does not need
    from isoflop.evaluate import HeldOut

KIND = "served"
FLOATS = "f32"  # kind of a model folder's weights


class Served(Record):
    """A measured artifact: how good it is in its engine, and what it costs there."""

    id: str
    path: str  # of what the engine opens, from the project's folder
    hash: str  # of its content
    kind: str  # of its weights: "f32", "q8_0", "int8"; "mixed" where matrices differ; "" where nobody knows
    corpus_id: str
    eval_tokens: int  # held-out tokens at most
    machine: str
    loss: float  # nats a predicted token, by the engine's own logits
    loss_se: float  # standard error over windows
    bpb: float | None
    bpb_se: float | None
    windows: tuple[float, ...]  # loss of each, by which artifacts of one context are paired
    speed: EngineSpeed  # with the engine's name, threads, memory and the load of the machine
    measured_at: str  # UTC, ISO 8601, of the speed

    @property
    def engine(self) -> str:
        return self.speed.engine

    @property
    def bytes(self) -> int:
        """On disk, tokenizer included."""
        return self.speed.disk_bytes

    @property
    def seconds(self) -> Interval:
        """A token of new text, one text at a time: median, fastest and slowest of the repetitions."""
        rate = self.speed.decode
        return Interval(value=1 / rate.median, low=1 / rate.high, high=1 / rate.low, level=1.0, of="runs")

    @property
    def quiet(self) -> bool:
        """Whether the machine had little else to do while it was timed."""
        return self.speed.quiet


def serve(
    project: Project, corpus: Corpus, artifact: Path, *, threads: int = 1, eval_tokens: int = EVAL_TOKENS,
    again: bool = False, progress: Progress | None = None,
) -> Served:  # fmt: skip
    """Score and time a model folder or an export of one in its engine; what is known is not measured again.

    `again` times it again. The held-out sample is by default that of the ladder's runs, so that the loss
    compares with their law. Raises ProjectError when there is no such artifact or its engine is not
    installed, CorruptError when the engine refuses it or its tokenizer is not the corpus's.
    """
    from isoflop.throughput import machine
    from isoflop.using import evaluate_model

    progress, path = progress or Silent(), opened(artifact)
    found, here = content_hash(path)[:HASH_DIGITS], machine()
    known = [s for s in project.all(KIND, Served) if s.hash == found]
    timed = [s for s in known if (s.machine, s.speed.threads) == (here, threads)]
    scored = [s for s in known if (s.corpus_id, s.eval_tokens) == (corpus.id, eval_tokens)]
    if not again and (both := [s for s in timed if s in scored]):
        return both[-1]
    if timed and not again:
        speed, measured_at = timed[-1].speed, timed[-1].measured_at
    else:
        progress.log(f"timing {path.name} with {threads} thread(s)")
        speed, measured_at = measure(path, threads=threads), now()
    scores: HeldOut | Served
    if scored:
        scores = scored[-1]
    else:
        progress.log(f"scoring {path.name} in {speed.engine}")
        scores = evaluate_model(path, corpus, eval_tokens=eval_tokens, threads=threads)
    made = Served(
        id=digest([found, speed.engine, threads, here, corpus.id, eval_tokens]),
        path=Path(os.path.relpath(path.absolute(), project.folder.absolute())).as_posix(), hash=found,
        kind=_kind(project, path), corpus_id=corpus.id, eval_tokens=eval_tokens, machine=here,
        loss=scores.loss, loss_se=scores.loss_se, bpb=scores.bpb, bpb_se=scores.bpb_se,
        windows=scores.windows, speed=speed, measured_at=measured_at,
    )  # fmt: skip
    project.put(KIND, made)
    return made


def _kind(project: Project, path: Path) -> str:
    """Of an artifact's weights, as its export says."""
    from isoflop.export.gated import Export

    for done in reversed(project.all("export", Export)):
        if (project.folder / done.path).absolute() == path.absolute():
            return done.kind
    return FLOATS if (path / "model.safetensors").is_file() else ""


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
