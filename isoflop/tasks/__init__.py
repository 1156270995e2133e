"""Jobs that a model is adapted to. To add one, write its file and a line in TASKS."""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.errors import AdaptError
from isoflop.tasks.base import load_base
from isoflop.tasks.classification import Classification
from isoflop.tasks.code import Code
from isoflop.tasks.generation import Generation
from isoflop.tasks.image_classification import ImageClassification
from isoflop.tasks.image_text import ImageText
from isoflop.tasks.masked import Masked
from isoflop.tasks.multi_label import MultiLabel
from isoflop.tasks.protocol import Base, LossOptions, Role, Spec, Task
from isoflop.tasks.question_answering import QuestionAnswering
from isoflop.tasks.regression import Regression
from isoflop.tasks.similarity import Embedding, Similarity
from isoflop.tasks.speech import Speech
from isoflop.tasks.summarisation import Summarisation
from isoflop.tasks.tagging import Tagging
from isoflop.tasks.translation import Translation

__all__ = ["TASKS", "Base", "LossOptions", "Role", "Spec", "Task", "fits", "load_base", "task_of"]

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Classification(),
        MultiLabel(),
        Regression(),
        Tagging(),
        QuestionAnswering(),
        Masked(),
        Similarity(),
        Embedding(),
        Translation(),
        Summarisation(),
        Generation(),
        Code(),
        ImageClassification(),
        Speech(),
        ImageText(),
    )
}


def fits(base: Base) -> list[str]:
    """Names of the tasks that a base of its kind can be adapted to."""
    return [name for name, task in TASKS.items() if base.kind in task.kinds]


def task_of(name: str) -> Task:
    """The task of that name. Raises AdaptError for another."""
    if name not in TASKS:
        raise AdaptError(f"{name!r} is no task", hint=f"one of: {', '.join(TASKS)}")
    return TASKS[name]
