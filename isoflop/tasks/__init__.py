"""Jobs that a model is adapted to. To add one, write its file and a line in TASKS."""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.errors import AdaptError
from isoflop.tasks.base import load_base
from isoflop.tasks.classification import Classification
from isoflop.tasks.image_classification import ImageClassification
from isoflop.tasks.image_text import ImageText
from isoflop.tasks.protocol import Base, LossOptions, Role, Spec, Task
from isoflop.tasks.speech import Speech

__all__ = ["TASKS", "Base", "LossOptions", "Role", "Spec", "Task", "load_base", "task_of"]

TASKS: Mapping[str, Task] = {
    task.name: task for task in (Classification(), ImageClassification(), Speech(), ImageText())
}


def task_of(name: str) -> Task:
    """The task of that name. Raises AdaptError for another."""
    if name not in TASKS:
        raise AdaptError(f"{name!r} is no task", hint=f"one of: {', '.join(TASKS)}")
    return TASKS[name]
