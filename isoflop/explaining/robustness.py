"""How a task's scores bear text as people really type it: `isoflop.perturb` on the inputs alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.explaining.records import Disturbed
from isoflop.metrics import METRICS, compared
from isoflop.perturb import PERTURBATIONS
from isoflop.progress import Progress, Silent
from isoflop.tasks.protocol import Task

if TYPE_CHECKING:
    from datasets import Dataset

RATES = (0.1, 0.3)


def robustness(
    task: Task, rows: Dataset, predictions: Sequence[Any], references: Sequence[Any],
    predict: Callable[[Dataset], list[Any]], *, rates: Sequence[float] = RATES, seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Disturbed, ...]:  # fmt: skip
    """The chief metric under each perturbation and rate, paired with that of the undisturbed rows.

    Empty for a task that does not read a text, or whose text is all that it has: then what is to be found
    would be disturbed as well. `predict` gives one prediction a row.
    """
    role, *targets = task.roles
    if role.holds != "text" or not targets:
        return ()
    progress = progress or Silent()
    metric = METRICS[task.metrics[0]]
    asked = [(name, rate) for name in PERTURBATIONS for rate in rates]
    progress.start("robustness", len(asked))
    found = []
    for done, (name, rate) in enumerate(asked):
        progress.update("robustness", done, f"{name} {rate:g}")
        disturbed = predict(_changed(rows, role.name, name, rate, seed))
        comparison = compared(metric, predictions, disturbed, references, seed=seed)
        found.append(Disturbed(perturbation=name, rate=rate, comparison=comparison))
    progress.finish("robustness")
    return tuple(found)


def _changed(rows: Dataset, column: str, name: str, rate: float, seed: int) -> Dataset:
    """The randomness of a text depends on the seed, the perturbation and the text's number alone."""
    number = list(PERTURBATIONS).index(name)
    texts = [
        PERTURBATIONS[name](str(text), rate, np.random.default_rng((seed, number, i)))
        for i, text in enumerate(rows[column])
    ]
    return rows.remove_columns(column).add_column(column, texts)
