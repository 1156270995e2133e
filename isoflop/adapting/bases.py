"""What an adaptation begins with: model folders, or names of image models whose weights are still random."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.adapting.methods import FULL
from isoflop.errors import AdaptError
from isoflop.store import Project
from isoflop.tasks.image_text import ImageText, with_image_base
from isoflop.tasks.protocol import VISION, Base, Spec, Task
from isoflop.tasks.scratch import SCRATCH, measured, scratch

if TYPE_CHECKING:
    from datasets import Dataset


def from_scratch(model: Path) -> bool:
    """Whether it is a name of SCRATCH; a folder of that name is a folder."""
    return str(model) in SCRATCH and not model.is_dir()


def check_scratch(model: Path, task: Task, method: str | None) -> None:
    """Raises AdaptError where a model from scratch does not fit the task or the method."""
    if not from_scratch(model):
        return
    if VISION not in task.kinds:
        raise AdaptError(
            f"{model} is an image model from scratch, and {task.name} takes {', '.join(task.kinds)}",
            hint="name a model folder, or --task image-classification",
        )
    if method not in (None, FULL):
        raise AdaptError(
            f"{model} has no weights yet, and {method} keeps those of its base", hint=f"--method {FULL}"
        )


def folder_of(project: Project, model: Path, rows: Dataset) -> Path:
    """The model's folder: of one from scratch an artifact, which the same rows find again."""
    if not from_scratch(model):
        return model
    asked = measured(rows)
    made = project.add_artifact(f"base-{model}", lambda folder: scratch(str(model), folder, **asked))
    return project.folder / made


def with_image(task: Task, spec: Spec, image_model: Path | None) -> Spec:
    """The spec with the image model of a task that reads both.

    Raises AdaptError where one is missing, or given and not read.
    """
    if image_model is None and task.name != ImageText.name:
        return spec
    if image_model is None:
        raise AdaptError(f"{task.name} reads images too", hint="name an image model: --image-model FOLDER")
    if task.name != ImageText.name:
        raise AdaptError(f"{task.name} takes no image model beside the base", hint="leave --image-model out")
    return with_image_base(spec, image_model)


def spec_like(spec: Spec, task: Task, base: Base, rows: Dataset) -> Spec:
    """Of another base for the same rows; the image model is that of the first."""
    image = spec.extra.get("image_base")
    return with_image(task, task.spec(rows, base), None if image is None else Path(image))
