"""An adapted folder at work: predictions of rows, scores on them, two models compared on the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from isoflop.adapting.inputs import MEDIA, TEST, TRAIN, tell_unseen
from isoflop.adapting.loop import predict_all, scores_of
from isoflop.adapting.rates import AdaptedSpeed, speeds
from isoflop.adapting.saved import load_adapted
from isoflop.errors import AdaptError
from isoflop.examples import read_examples, with_roles
from isoflop.metrics import METRICS, Comparison, Score, compared
from isoflop.progress import Progress, Silent
from isoflop.tasks.protocol import Role, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset

# Roles that a prediction is of, and that nobody has to know beforehand.
TARGETS = (
    "label", "labels", "number", "tags", "answers", "target", "summary", "response", "completion", "score",
)  # fmt: skip
LIKELY = 0.5  # probability from which one of several labels is given


def predictions(
    folder: Path, data: Sequence[Path], *, texts: Sequence[str] = (),
    columns: Mapping[str, str] | None = None, progress: Progress | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """What an adapted model says of each row of files, or of texts: plain JSON values.

    Of an image or a sound that is a file of its own, with the file's name. Raises AdaptError for a folder
    that is no adapted model, and rows that have not what it reads.
    """
    progress = progress or Silent()
    task, base, spec, model = load_adapted(folder)
    rows = _of_texts(task, texts) if texts else _read(data, inputs_of(task), columns or {}, progress)
    made = predict_all(task, base, spec, model, rows, progress=progress)
    return [
        {**named, **worded(task, spec, prediction)}
        for named, prediction in zip(_files(task, rows), made, strict=True)
    ]


def inputs_of(task: Task) -> list[Role]:
    """Roles of what a model reads; beside sounds a text is what is said in them."""
    heard = any(role.holds == "audio" for role in task.roles)
    return [r for r in task.roles if r.name not in TARGETS and not (heard and r.name == "text")]


def _read(
    data: Sequence[Path], roles: Sequence[Role], columns: Mapping[str, str], progress: Progress
) -> Dataset:
    """The test rows of files, or all that they have; what was left out of them is said."""
    notes: list[str] = []
    found = read_examples(data, progress=progress, notes=notes)
    rows, _ = with_roles(found.get(TEST, found[TRAIN]), roles, columns, notes=notes)
    for note in notes:
        progress.log(note)
    return rows


def _files(task: Task, rows: Dataset) -> Iterator[dict[str, str]]:
    """Of each row the name of its image's or sound's file, where it has one."""
    role = next((role.name for role in task.roles if role.holds in MEDIA), None)
    for value in [None] * len(rows) if role is None else rows[role]:
        path = value["path"] if isinstance(value, Mapping) else value
        yield {"file": path} if path else {}


def _of_texts(task: Task, texts: Sequence[str]) -> Dataset:
    from datasets import Dataset

    roles = [role for role in inputs_of(task) if not role.optional]
    if len(roles) != 1 or roles[0].holds != "text":
        needed = ", ".join(role.name for role in inputs_of(task))
        raise AdaptError(f"{task.name} does not read one text, but {needed}", hint="give --data FILE")
    return Dataset.from_dict({roles[0].name: list(texts)})


def worded(task: Task, spec: Spec, prediction: Any) -> dict[str, Any]:
    """A prediction in words: labels with their probabilities, tags, numbers or text."""
    if spec.labels and isinstance(prediction, np.ndarray):
        shares = {label: float(p) for label, p in zip(spec.labels, prediction, strict=True)}
        if task.name == "multi-label":
            said: Any = [label for label, share in shares.items() if share >= LIKELY]
        else:
            said = max(shares, key=lambda label: shares[label])
        return {"prediction": said, "probabilities": shares}
    plain = prediction.tolist() if isinstance(prediction, np.ndarray | np.generic) else prediction
    return {"prediction": plain}


class Scored(NamedTuple):
    """What a model reached on examples."""

    scores: tuple[Score, ...]
    apart: tuple[Comparison, ...]  # from the other model
    speeds: tuple[AdaptedSpeed, ...]  # of the other model and this one, or of this one


def scores(
    folder: Path, data: Sequence[Path], *, against: Path | None = None,
    columns: Mapping[str, str] | None = None, timed: bool = False, progress: Progress | None = None,
) -> Scored:  # fmt: skip
    """Every metric of an adapted model, or of an export, on the test rows of files, or all that they have;
    how much it is above another one on the same rows, by the paired bootstrap; and, `timed`, their speeds.

    Raises AdaptError for rows or models that do not fit.
    """
    progress = progress or Silent()
    task, base, spec, model = load_adapted(folder)
    rows, notes = _read(data, task.roles, columns or {}, progress), list[str]()
    tell_unseen({TEST: rows}, spec, notes)
    for note in notes:
        progress.log(note)
    references = task.references(spec, rows)
    own = predict_all(task, base, spec, model, rows, progress=progress)
    apart: tuple[Comparison, ...] = ()
    if against is not None:
        other_task, other_base, other_spec, other_model = load_adapted(against)
        if (other_task.name, other_spec.labels) != (task.name, spec.labels):
            raise AdaptError(
                f"{against} is adapted to {_job(other_spec)}, and {folder} to {_job(spec)}",
                hint="compare models of one task with the same labels",
            )
        other = predict_all(task, other_base, other_spec, other_model, rows, progress=progress)
        apart = tuple(compared(METRICS[name], other, own, references) for name in task.metrics)
    raced = [folder] if against is None else [against, folder]
    return Scored(scores_of(task, own, references), apart, tuple(speeds(raced, rows)) if timed else ())


def _job(spec: Spec) -> str:
    return f"{spec.task} of {', '.join(spec.labels)}" if spec.labels else spec.task
