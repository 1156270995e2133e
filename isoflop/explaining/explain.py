"""All that can be said of an adapted model by examples that it has not learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, Sources, some, tell_unseen
from isoflop.adapting.loop import predict_all, scores_of
from isoflop.adapting.records import Adapted
from isoflop.adapting.saved import load_adapted
from isoflop.errors import AdaptError
from isoflop.examples import read_examples, with_roles
from isoflop.explaining.attributions import Heat, attribute, attribute_image
from isoflop.explaining.calibration import reliability
from isoflop.explaining.fairness import fairness
from isoflop.explaining.faithfulness import faithfulness
from isoflop.explaining.records import Attribution, Explained
from isoflop.explaining.robustness import robustness
from isoflop.explaining.slices import slices
from isoflop.plots.explaining import save_attributions, save_heats, save_reliability
from isoflop.progress import Progress, Silent
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn

KIND = "adapted"  # of a project's records
WORDS, HEAT, RELIABILITY = "attributions.png", "heat.png", "reliability.png"


class Model(NamedTuple):
    """An adapted model as `load_adapted` opens it."""

    task: Task
    base: Base
    spec: Spec
    net: nn.Module


def explain(
    folder: Path, data: Sequence[Path], out: Path, *, columns: Mapping[str, str] | None = None,
    group: str | None = None, examples: int = 8, seed: int = 0, progress: Progress | None = None,
) -> Explained:  # fmt: skip
    """Explain an adapted model by the test examples of `data`, with pictures in the folder `out`.

    The test examples are a split of that name; the part that the model was tested on, where a project says
    that it learned from the rest of the same data; else all. `group` is the column that fairness is asked
    about, and `examples` says how many of them have their attributions drawn.

    Raises AdaptError for a folder that is no adapted model and for data or a column that do not fit.
    """
    progress, notes = progress or Silent(), list[str]()
    model = Model(*load_adapted(folder))
    task, base, spec, net = model
    rows = _rows(model, data, columns or {}, group, record_of(folder), notes, progress)
    predict = partial(predict_all, task, base, spec, net)
    predictions, references = predict(rows, progress=progress), task.references(spec, rows)
    found = _shown(model, rows, examples, seed, out, notes)
    calibrated = reliability(task, spec, predictions, references)
    if calibrated is not None:
        save_reliability(out / RELIABILITY, calibrated)
    return found.model_copy(update={
        "data": ", ".join(map(str, data)), "examples": len(rows),
        "scores": scores_of(task, predictions, references),
        "slices": slices(task, spec, rows, predictions, references, seed=seed),
        "robustness": robustness(task, rows, predictions, references, predict, seed=seed, progress=progress),
        "fairness": None if group is None else fairness(
            task, spec, group, rows[group], predictions, references, seed=seed
        ),
        "reliability": calibrated, "notes": tuple(notes),
        "pictures": (*found.pictures, *([RELIABILITY] if calibrated is not None else [])),
    })  # fmt: skip


def explain_text(folder: Path, text: str) -> Attribution:
    """What an adapted model goes by in one text. Raises AdaptError for a model of another task."""
    model = Model(*load_adapted(folder))
    return attribute(model.task, model.base, model.spec, model.net, text)


def record_of(folder: Path) -> Adapted | None:
    """How the model came to be, where its folder is an artifact of a project that says so."""
    home = folder.resolve().parent.parent
    if folder.resolve().parent.name != "artifacts" or not any(home.glob("ledger.*")):
        return None
    rel = folder.resolve().relative_to(home).as_posix()
    return next((r for r in Project(home, create=False).all(KIND, Adapted) if r.model == rel), None)


def _rows(
    model: Model, data: Sequence[Path], columns: Mapping[str, str], group: str | None,
    record: Adapted | None, notes: list[str], progress: Progress,
) -> Dataset:  # fmt: skip
    """Test examples, with columns named by roles, and whatever other columns there are."""
    task, given = model.task, {**(record.columns if record is not None else {}), **columns}
    if record is not None and _learned_from(record, data):
        if TEST in record.data:
            raise AdaptError(
                "the model learned from this data, and was tested on other",
                hint=f"give examples that it has not learned from, such as {record.data[TEST]}",
            )
        if group is not None:
            raise AdaptError(
                "the model learned from a part of this data, and its test part has no further columns",
                hint="give test examples of their own with --data",
            )
        notes.append("the model learned from the rest of this data: these are its test examples")
        rows = Sources(data).read(task, given, record.config.seed, notes, progress)[0][TEST]
    else:
        found = read_examples(data, progress=progress, notes=notes)
        rows = found.get(TEST, found[TRAIN])
        if group is not None and group not in rows.column_names:
            raise AdaptError(
                f"there is no column {group!r} in {', '.join(map(str, data))}; there are "
                f"{', '.join(rows.column_names)}",
                hint="name one of these with --group",
            )
        roles = {role.name for role in task.roles}
        keep = [name for name in rows.column_names if name not in roles or name == group]
        rows, chosen = with_roles(rows, task.roles, given, keep=keep, notes=notes)
        role = next((role for role, column in chosen.items() if column == group != role), None)
        if group is not None and role is not None:
            rows = rows.add_column(group, rows[role])
    tell_unseen({VALIDATION: rows.select([]), TEST: rows}, model.spec, notes)
    if "label" in rows.column_names:
        absent = sorted(set(model.spec.labels) - {str(label) for label in rows["label"]})
        if absent:
            notes.append(
                f"no example has the label {', '.join(absent)}: one that is called so makes its F1 0, "
                "which weighs on a mean over labels"
            )
    return rows


def _learned_from(record: Adapted, data: Sequence[Path]) -> bool:
    return any(content_hash(path)[:HASH_DIGITS] in record.data.get(TRAIN, "") for path in data)


def _shown(model: Model, rows: Dataset, examples: int, seed: int, out: Path, notes: list[str]) -> Explained:
    """Attributions of some examples, drawn, and whether they are faithful."""
    task = model.task
    empty = Explained(task=task.name, data="", examples=0)
    if not examples:
        return empty
    chosen = some(rows, examples, seed)
    if any(role.holds == "image" for role in task.roles) and len(task.roles) == 2:
        heats: list[Heat] = [attribute_image(*model, row) for row in chosen]
        notes += filter(None, [save_heats(out / HEAT, heats)])
        return empty.model_copy(update={"pictures": (HEAT,)})
    try:
        found = [attribute(*model, text) for text in chosen[task.roles[0].name]]
        faithful = faithfulness(*model, found, seed=seed)
    except AdaptError as error:
        notes.append(f"no attributions: {error.message}")
        return empty
    notes += filter(None, [save_attributions(out / WORDS, found)])
    return empty.model_copy(update={
        "attributions": tuple(found), "faithfulness": faithful, "pictures": (WORDS,),
    })  # fmt: skip
