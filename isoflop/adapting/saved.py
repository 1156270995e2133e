"""An adapted model on disk: a plain folder of transformers with its tokenizer, and what the task has to know.

    config.json, *.safetensors, tokenizer or processor    which transformers opens without us
    isoflop_task.json                                     the task, its spec, how it was adapted
    adapted.safetensors                                   only of methods that cannot be merged: what learned
    model.onnx                                            only of an export: it is in the place of the weights
    peer/                                                 only where it answers with the model: `joined`

A folder of the latter kind has the base's own weights too, so that it needs no other folder; the method is
put on again when it is read, and all that learned, the head among it, is in `adapted.safetensors`.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from isoflop.adapting.joined import with_peer
from isoflop.adapting.methods import merged, method_of, prepared
from isoflop.adapting.records import AdaptConfig
from isoflop.engines import ONNX
from isoflop.errors import AdaptError, CorruptError, ProjectError
from isoflop.records import Record
from isoflop.store import disk_errors, keep_folder
from isoflop.tasks import load_base, task_of
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from torch import nn

TASK = "isoflop_task.json"
ADAPTED = "adapted.safetensors"
VERSION = 1


class Saved(Record):
    """What `isoflop_task.json` says."""

    version: int = VERSION
    task: str
    spec: Spec
    config: AdaptConfig
    max_length: int  # tokens of an input at most


def save_adapted(
    folder: Path, task: Task, base: Base, spec: Spec, config: AdaptConfig, model: nn.Module
) -> None:
    """Write the model; the folder appears whole or not at all.

    What can be merged is, in `model` itself; of other methods the base's weights are read anew.

    Raises ProjectError where there is such a folder.
    """
    from safetensors.torch import save_file

    if folder.exists():
        raise ProjectError(f"{folder} exists already", hint="name a new folder")
    says = Saved(task=task.name, spec=spec, config=config, max_length=base.max_length)
    temp = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    with disk_errors(f"the model {folder}"):
        try:
            temp.mkdir(parents=True)
            base.processor.save_pretrained(temp)
            (temp / TASK).write_text(says.model_dump_json(indent=2))
            plain: Any = merged(model) if method_of(config.method).merges else task.build(base, spec)
            plain.save_pretrained(temp)
            if not method_of(config.method).merges:
                learned = {
                    name: p.detach().cpu().contiguous()
                    for name, p in model.named_parameters()
                    if p.requires_grad
                }
                save_file(learned, temp / ADAPTED)
            keep_folder(temp, folder)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def load_adapted(folder: Path, *, alone: bool = False) -> tuple[Task, Base, Spec, nn.Module]:
    """What `save_adapted` wrote, or an export of it; the model is in evaluation mode.

    The task predicts by the folder's peer too, if it has one, or by the model `alone`. An export is called
    alike, and cannot be trained. Raises AdaptError for a folder that is no adapted model,
    CorruptError for one that was changed since, ProjectError for an export without its engine.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    says = _read(folder)
    task = task_of(says.task) if alone else with_peer(task_of(says.task), folder)
    base = load_base(folder, max_length=says.max_length or None)
    if (folder / ONNX).is_file():
        from isoflop.engines.adapted import Served

        return task, base, says.spec, Served(folder).eval()
    if method_of(says.config.method).merges:
        return task, base, says.spec, task.build(base, says.spec).eval()
    path = folder / ADAPTED
    try:
        learned = load_file(path)
        model = prepared(task.build(base, says.spec), says.config, base)
        _, unknown = model.load_state_dict(learned, strict=False)
        if unknown:
            raise RuntimeError(f"it has {unknown[0]}")
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CorruptError(
            f"{path} does not have the weights of {says.config.method}: {str(error).splitlines()[0]}",
            hint="restore the folder, or adapt the model anew",
        ) from None
    return task, base, says.spec, model.eval()


def is_adapted(folder: Path) -> bool:
    """Whether a folder says that it is an adapted model."""
    return (folder / TASK).is_file()


def task_name(folder: Path) -> str | None:
    """Of the task that a folder was adapted to; None: to none."""
    return _read(folder).task if is_adapted(folder) else None


def _read(folder: Path) -> Saved:
    path = folder / TASK
    if not path.is_file():
        raise AdaptError(
            f"{folder} has no {TASK}", hint="adapt a model first: isoflop adapt MODEL --task TASK"
        )
    try:
        says = Saved.model_validate_json(path.read_text())
    except (ValidationError, UnicodeDecodeError) as error:
        raise CorruptError(
            f"{path} is not what was written: {str(error).splitlines()[0]}", hint="restore it"
        ) from None
    if says.version != VERSION:
        raise AdaptError(
            f"{path} is of version {says.version}, and this isoflop reads {VERSION}", hint="update isoflop"
        )
    return says
