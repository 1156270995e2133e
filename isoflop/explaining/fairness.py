"""Whether a model serves the groups of a column alike.

Equal opportunity asks that those who have a label are given it at one rate in each group (Hardt et al., arXiv
1610.02413, definition 2.2), demographic parity that everyone is. Which of them is wanted is not for a
program to say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from isoflop.errors import AdaptError
from isoflop.explaining.attributions import is_number
from isoflop.explaining.records import Fairness, Gap
from isoflop.metrics import METRICS, Metric, scored
from isoflop.metrics.bootstrap import LEVEL, central, resampled
from isoflop.metrics.mean import Mean
from isoflop.metrics.protocol import Array
from isoflop.records import Interval
from isoflop.tasks.protocol import Spec, Task

FEWEST = 30  # examples of a group
LABELS = 10  # whose rates are compared, at most


class Part(NamedTuple):
    """The examples of a group."""

    predictions: list[Any]
    references: list[Any]


class Measure(NamedTuple):
    """A metric of what a function makes of a group's examples."""

    name: str
    metric: Metric
    read: Callable[[Part], Part]


def fairness(
    task: Task, spec: Spec, column: str, groups: Sequence[Any], predictions: Sequence[Any],
    references: Sequence[Any], *, seed: int = 0,
) -> Fairness:  # fmt: skip
    """The task's metrics by group, and gaps of the chief one, of accuracy and of each label's rates.

    A gap is of the two groups that are furthest apart, and its interval is as wide as holds for every pair at
    once (Bonferroni). Raises AdaptError where fewer than two groups have enough examples.
    """
    counts = Counter(str(group) for group in groups)
    large = sorted(name for name, count in counts.items() if count >= FEWEST)
    if len(large) < 2:
        found = ", ".join(f"{name} {count}" for name, count in counts.most_common(5))
        raise AdaptError(
            f"of the groups of the column {column!r}, {len(large)} have {FEWEST} examples or more: {found}",
            hint="give more examples, or name another column with --group",
        )
    parts = {name: _of(name, groups, predictions, references) for name in large}
    chief = tuple(dict.fromkeys([task.metrics[0], *(m for m in task.metrics if m == "accuracy")]))
    measures = [Measure(name, METRICS[name], lambda part: part) for name in chief]
    measures += [] if is_number(task) else _rates(spec, references[0])
    return Fairness(
        column=column, groups={name: counts[name] for name in large},
        too_small={name: count for name, count in counts.items() if name not in large},
        scores={
            name: tuple(scored(METRICS[m], *part, seed=seed) for m in chief) for name, part in parts.items()
        },
        gaps=tuple(gap for measure in measures if (gap := _gap(measure, parts, seed)) is not None),
    )  # fmt: skip


def _of(name: str, groups: Sequence[Any], predictions: Sequence[Any], references: Sequence[Any]) -> Part:
    mine = [i for i, group in enumerate(groups) if str(group) == name]
    return Part([predictions[i] for i in mine], [references[i] for i in mine])


def _rates(spec: Spec, reference: Any) -> list[Measure]:
    """Of each label: of references that are numbers of labels, or say of each label whether it holds."""
    if not spec.labels or np.shape(reference) not in ((), (len(spec.labels),)):
        return []
    found = []
    for number, label in list(enumerate(spec.labels))[:LABELS]:
        found.append(Measure(f"true-positive rate of {label}", Mean(), partial(_given_of_its_own, number)))
        found.append(Measure(f"rate of predicting {label}", Mean(), partial(_given, number)))
    return found


def _given(label: int, part: Part) -> Part:
    """Whether each example is given the label, which of many labels is one that is likelier than not."""

    def given(prediction: Any, reference: Any) -> bool:
        if np.ndim(reference):
            return bool(prediction[label] >= 0.5)
        return int(np.argmax(prediction) if np.ndim(prediction) else prediction) == label

    found = [float(given(p, r)) for p, r in zip(*part, strict=True)]
    return Part(found, found)


def _given_of_its_own(label: int, part: Part) -> Part:
    """The same of the examples that have it; nan of the others."""
    true = [bool(r[label]) if np.ndim(r) else r == label for r in part.references]
    given = _given(label, part).predictions
    found = [g if t else math.nan for g, t in zip(given, true, strict=True)]
    return Part(found, found)


def _gap(measure: Measure, parts: Mapping[str, Part], seed: int) -> Gap | None:
    """None where a measure is not defined in two groups, e.g. as a label does not occur."""
    read = {name: measure.read(part) for name, part in parts.items()}
    values = {
        name: float(measure.metric.value(measure.metric.statistics(*part).sum(0, keepdims=True))[0])
        for name, part in read.items()
    }
    known = sorted((name for name in values if math.isfinite(values[name])), key=values.__getitem__)
    if len(known) < 2:
        return None
    lowest, highest = known[0], known[-1]
    level = 1 - (1 - LEVEL) / math.comb(len(known), 2)
    drawn: list[Array] = [
        resampled(measure.metric, *read[name], seed=seed + i) for i, name in enumerate((highest, lowest))
    ]
    low, high = central(drawn[0] - drawn[1], level)
    gap = Interval(value=values[highest] - values[lowest], low=low, high=high, level=LEVEL, of="difference")
    return Gap(
        measure=measure.name, highest=highest, lowest=lowest, gap=gap,
        values={name: values[name] for name in known},
    )  # fmt: skip
