"""The labels that a running server gives, beside those of the artifact: `isoflop eval --live`, of adapted
models. Both read the test examples that the ledger's score is of.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.adapting.answer import ADAPTED
from isoflop.adapting.applied import inputs_of, worded
from isoflop.adapting.inputs import SPLITS, TEST, Sources, some
from isoflop.adapting.loop import predict_all, scores_of
from isoflop.adapting.records import Adapted
from isoflop.adapting.saved import load_adapted
from isoflop.errors import AdaptError, ProjectError
from isoflop.export import adapted as exported
from isoflop.export.adapted import AdaptedExport
from isoflop.metrics import METRICS, Comparison, Score, compared
from isoflop.progress import Progress, Silent
from isoflop.records import Interval, Record, digest
from isoflop.serve.engines.opening import LABELS
from isoflop.serve.live import KIND, LEVEL, STAGE, TOLERANCE, asked, hash_of, said_hash
from isoflop.served import now
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.tasks.protocol import Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset

TOGETHER = 32  # texts of a request
DIGEST = re.compile(r" ([0-9a-f]{16})(?:, |$)")  # of a file, in the ledger's row


class LiveLabels(Record):
    """A server's labels beside its artifact's."""

    id: str
    url: str  # without a password
    model: str  # the server's name of it
    engine: str
    served_hash: str
    row_hash: str  # of the artifact
    row_path: str
    score: Score  # live, by the task's chief metric
    row_score: Score  # of the ledger: of an export, that of the model it was made from
    apart: Comparison  # live above the artifact, of the same examples
    differing: Interval  # share of examples with other labels than the artifact gives
    tolerance: float  # of that share
    same: bool
    why: str
    measured_at: str


def live_labels(
    project: Project, data: Sequence[Path], url: str, *, hash: str | None = None,
    tolerance: float = TOLERANCE, progress: Progress | None = None,
) -> LiveLabels:  # fmt: skip
    """Labels of the test examples by the server and by the artifact, and keep the answer.

    `data` are the files of its adaptation, by which the examples are those of the ledger's score. They differ
    where their hashes do, or where the interval of the share of other labels lies above the tolerance.
    Raises ServeError for the server, ProjectError where the ledger has no such row, AdaptError for data.
    """
    return asyncio.run(_live(project, data, url, hash, tolerance, progress or Silent()))


async def _live(
    project: Project, data: Sequence[Path], url: str, hash: str | None, tolerance: float, progress: Progress
) -> LiveLabels:
    async with asked(url) as server:
        hash = hash_of(server, hash)
        row, path = _row(project, hash)
        task, base, spec, model = load_adapted(path)
        rows = _tested(row, task, data, progress)
        texts = rows["text"]
        progress.start(STAGE, float(len(texts)), "texts")
        said: list[Any] = []
        for start in range(0, len(texts), TOGETHER):
            part = await server.classify(texts[start : start + TOGETHER])
            said += [_shares(spec, labels) for labels in part]
            progress.update(STAGE, len(said))
        progress.finish(STAGE, f"{len(said):,} texts")
    own = predict_all(task, base, spec, model, rows, progress=progress)
    references, chief = task.references(spec, rows), METRICS[task.metrics[0]]
    other = [_label(task, spec, a) != _label(task, spec, b) for a, b in zip(said, own, strict=True)]
    differing = _share(other)
    same, why = _judged(said_hash(server), hash, differing, tolerance)
    found = LiveLabels(
        id=digest([server.shown, hash, now(), len(texts), differing.value]), url=server.shown,
        model=server.about["id"], engine=server.about.get("engine", server.name),
        served_hash=said_hash(server), row_hash=hash, row_path=str(path.relative_to(project.folder)),
        score=next(s for s in scores_of(task, said, references) if s.metric == chief.name),
        row_score=next(s for s in row.test if s.metric == chief.name),
        apart=compared(chief, own, said, references), differing=differing, tolerance=tolerance, same=same,
        why=why, measured_at=now(),
    )  # fmt: skip
    project.put(KIND, found)
    return found


def _row(project: Project, hash: str) -> tuple[Adapted, Path]:
    """The adaptation that made the artifact with this content, and where the artifact is."""
    made = {_hash(project.folder / row.model): row for row in project.all(ADAPTED, Adapted)}
    paths = {hash: project.folder / row.model for hash, row in made.items()}
    for done in project.all(exported.KIND, AdaptedExport):
        if done.source in made and (there := _hash(project.folder / done.path)):
            made[there], paths[there] = made[done.source], project.folder / done.path
    if hash not in made:
        raise ProjectError(
            f"the ledger of {project.folder} has no adapted model of the content {hash}",
            hint="name the project that it was adapted in: --project FOLDER",
        )
    row = made[hash]
    if row.task not in LABELS:
        raise ProjectError(
            f"{row.model} is adapted to {row.task}, and live only {' and '.join(LABELS)} are compared",
            hint="isoflop score compares others, without a server",
        )
    return row, paths[hash]


def _hash(path: Path) -> str:
    return content_hash(path)[:HASH_DIGITS] if path.exists() else ""


def _tested(row: Adapted, task: Task, data: Sequence[Path], progress: Progress) -> Dataset:
    """The test examples that the row's score is of. Raises AdaptError where the files are others."""
    if {role.name for role in inputs_of(task) if role.name in row.columns} != {"text"}:
        raise AdaptError(f"{row.model} reads more than one text", hint="isoflop score compares it, not live")
    wanted = {split: DIGEST.findall(row.data.get(split, "")) for split in SPLITS}
    given = {content_hash(path)[:HASH_DIGITS]: path for path in data if path.exists()}
    if not all(digest in given for digests in wanted.values() for digest in digests):
        were = "; ".join(f"{split}: {said}" for split, said in row.data.items())
        raise AdaptError(
            "these are not the examples that the ledger's score is of", hint=f"give its files: {were}"
        )
    sources = Sources(*([given[digest] for digest in wanted[split]] for split in SPLITS))
    rows, _ = sources.read(task, row.columns, row.config.seed, [], progress)
    return some(rows[TEST], row.examples[TEST], row.config.seed)


def _shares(spec: Spec, labels: Sequence[Mapping[str, Any]]) -> Any:
    """Probabilities in the order of the model's labels; of one that the server has not, none."""
    told = {label["label"]: label["probability"] for label in labels}
    return np.array([told.get(label, 0.0) for label in spec.labels])


def _label(task: Task, spec: Spec, shares: Any) -> Any:
    return worded(task, spec, shares)["prediction"]


def _share(other: Sequence[bool]) -> Interval:
    """With Wilson's interval, which holds near 0 as well."""
    from scipy.stats import binomtest

    found = binomtest(sum(other), len(other))
    interval = found.proportion_ci(LEVEL, method="wilson")
    return Interval(
        value=float(found.statistic), low=float(interval.low), high=float(interval.high), level=LEVEL,
        of="examples",
    )  # fmt: skip


def _judged(said: str, hash: str, differing: Interval, tolerance: float) -> tuple[bool, str]:
    if said not in ("", hash):
        return False, f"the server runs the model {said}, and the row is of {hash}"
    if differing.low > tolerance:
        return False, f"{differing.value:.1%} of its labels are not the artifact's"
    return True, "the same within the interval"
