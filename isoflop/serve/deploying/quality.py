"""Is an artifact worse than another, by what the ledger has measured of both?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from isoflop import scoring, served
from isoflop.adapting.answer import ADAPTED
from isoflop.adapting.inputs import TEST, TRAIN
from isoflop.adapting.records import Adapted
from isoflop.errors import ServeError
from isoflop.export import adapted
from isoflop.export.adapted import AdaptedExport
from isoflop.metrics import METRICS
from isoflop.records import Run
from isoflop.serve.deploying.records import Placed
from isoflop.served import Served
from isoflop.store import Project

BITS, LOSS = "bits per byte", "loss"
LOSSES = "loss"  # part of an evaluation


class Quality(NamedTuple):
    """One measurement of an artifact."""

    what: str  # is measured
    value: float
    on: str  # which text or examples
    higher: bool = False  # is better


class Compared(NamedTuple):
    new: Quality
    old: Quality

    @property
    def worse(self) -> float:
        """By which share of the old one's value; negative: it is better."""
        change = self.old.value - self.new.value if self.new.higher else self.new.value - self.old.value
        return change / max(abs(self.old.value), 1e-12)

    @property
    def words(self) -> str:
        other = "" if self.new.on == self.old.on else ", of other held-out text"
        new, old = self.new, self.old
        return f"{new.what} {new.value:.4f}, and of what serves {old.value:.4f} ({self.worse:+.2%}{other})"


def compare(project: Project, new: Placed, old: Placed) -> Compared:
    """By the same measure of the same text or examples; bits per byte also across texts, for tokenizers that
    differ. Raises ServeError where that was not measured."""
    news, olds = list(measured(project, new)), list(measured(project, old))
    for artifact, found in ((new, news), (old, olds)):
        if not found:
            raise ServeError(
                f"how good {artifact.path} is was not measured, so it cannot be compared",
                hint="measure it: isoflop verdict ARTIFACT, or isoflop eval; or deploy it with --force",
            )
    pairs = [Compared(n, o) for n in news for o in olds if n.what == o.what]
    alike = [pair for pair in pairs if pair.new.on == pair.old.on]
    fitting = alike or [pair for pair in pairs if pair.new.what == BITS]
    if not fitting:
        raise ServeError(
            f"{new.path} cannot be compared with {old.path}: of it {_words(news)} was measured, of that "
            f"{_words(olds)}",
            hint="measure both on the same examples or text, or deploy it with --force",
        )
    return fitting[-1]


def check(project: Project, new: Placed, old: Placed, tolerance: float) -> Compared:
    """Raises ServeError where it is worse by more than this share, or nobody knows."""
    found = compare(project, new, old)
    if found.worse > tolerance:
        raise ServeError(
            f"{new.path} is worse than what serves: {found.words}, and {tolerance:.2%} is allowed",
            hint="raise --tolerance, or deploy it with --force",
        )
    return found


def measured(project: Project, artifact: Placed) -> Iterator[Quality]:
    """Every measurement of it in the ledger, the latest of a kind last."""
    for run in project.all("run", Run):
        if run.model == artifact.path:
            yield _of_text(run.bpb, run.loss, run.corpus_id, run.config.eval_tokens)
    for asked in project.all(scoring.KIND, scoring.Evaluation):
        if asked.part == LOSSES and [one.hash for one in asked.artifacts] == [artifact.hash]:
            result, tokens = asked.result, asked.options["eval_tokens"]
            yield _of_text(result["bpb"], result["loss"], str(asked.corpus_id), tokens)
    for row in project.all(served.KIND, Served):
        if row.hash == artifact.hash:
            yield _of_text(row.bpb, row.loss, row.corpus_id, row.eval_tokens)
    yield from _of_task(project, artifact)


def _of_text(bpb: float | None, loss: float, corpus_id: str, tokens: int) -> Quality:
    on = f"{tokens:,} tokens of corpus {corpus_id}"
    return Quality(LOSS, loss, on) if bpb is None else Quality(BITS, bpb, on)


def _of_task(project: Project, artifact: Placed) -> Iterator[Quality]:
    """The chief metric on test examples; of an export the model's, less what it labels otherwise."""
    hash, differing = artifact.hash, 0.0
    for export in project.all(adapted.KIND, AdaptedExport):
        if export.path == artifact.path:
            hash, differing = export.source, 1 - (1.0 if export.alike is None else export.alike)
    for made in project.all(ADAPTED, Adapted):
        if made.test and Path(made.model).name.endswith(f"-{hash}"):
            chief = made.test[0]
            higher = METRICS[chief.metric].higher_is_better
            value = chief.value - differing if higher else chief.value + differing
            examples = made.data.get(TEST) or made.data[TRAIN]  # of which a part was kept for the test
            yield Quality(chief.metric, value, f"{made.task}: {examples}", higher)


def _words(found: list[Quality]) -> str:
    return ", ".join(dict.fromkeys(f"{one.what} on {one.on}" for one in found))
