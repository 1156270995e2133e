"""Where a model is worst: slices of the test examples by label, length, columns and words.

Labels, lengths and columns are known before anyone looks, and all examples test them. Words are chosen for
going with errors, on half of the examples, and tested on the other half: otherwise chance alone would find
some. How many slices were looked at is reckoned in (Benjamini and Hochberg, 1995).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from isoflop.explaining.attributions import is_number
from isoflop.explaining.records import Slice, Slices
from isoflop.explaining.words import words_of
from isoflop.metrics import METRICS
from isoflop.metrics.mean import mean_score
from isoflop.metrics.protocol import Array, Metric
from isoflop.tasks.protocol import Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset

LEVEL = 0.1  # share of false findings among those called worse, at most
FEWEST = 20  # examples of a slice, and outside it
WORDS = 20  # that go with errors most
VALUES = 20  # of a column that slices are made by, at most

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """A slice before it is tested."""

    name: str
    kind: str
    inside: Mask  # (n,)
    tested: Mask  # (n,): the examples that test it


def metric_of(task: Task, predictions: Sequence[Any], references: Sequence[Any]) -> Metric | None:
    """Of the task's metrics accuracy, a mean over examples, or the first that says something of one example.

    None where none does, as a correlation does not.
    """
    for name in sorted(task.metrics, key=lambda name: name != "accuracy"):
        if np.isfinite(each_alone(METRICS[name], predictions, references)).mean() > 0.5:
            return METRICS[name]
    return None


def each_alone(metric: Metric, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
    """(n,): the metric of each example by itself; nan where it says nothing of one."""
    with np.errstate(all="ignore"):
        return np.asarray(metric.value(metric.statistics(predictions, references)))


def slices(
    task: Task, spec: Spec, rows: Dataset, predictions: Sequence[Any], references: Sequence[Any], *,
    seed: int = 0,
) -> Slices | None:  # fmt: skip
    """Slices of rows that have the task's columns and maybe others; None where no example has a score."""
    metric = metric_of(task, predictions, references)
    if metric is None:
        return None
    values = each_alone(metric, predictions, references)
    harm = -values if metric.higher_is_better else values
    half = np.random.default_rng(seed).permutation(len(values)) < len(values) // 2
    found = [
        c for c in _candidates(task, spec, rows, references, harm, half) if _large(c, np.isfinite(values))
    ]
    p = np.array([_p_worse(harm[c.inside & c.tested], harm[~c.inside & c.tested]) for c in found])
    q = stats.false_discovery_control(p) if len(p) else p
    made = [
        _slice(c, metric, values, float(p_c), float(q_c), seed)
        for c, p_c, q_c in zip(found, p, q, strict=True)
    ]
    return Slices(
        metric=metric.name, level=LEVEL, looks=len(made), slices=tuple(sorted(made, key=lambda s: s.p)),
        notes=_notes(values),
    )  # fmt: skip


def _candidates(
    task: Task, spec: Spec, rows: Dataset, references: Sequence[Any], harm: Array, half: Mask
) -> Iterator[Candidate]:
    everything = np.ones(len(harm), bool)
    for name, kind, inside in [
        *_labels(task, spec, references),
        *_lengths(task, rows),
        *_columns(task, rows),
    ]:
        yield Candidate(name, kind, inside, everything)
    role = task.roles[0]
    if role.holds == "text":
        bags = [words_of(str(text)) for text in rows[role.name]]
        for word in _worst_words(bags, harm, half):
            yield Candidate(f"with “{word}”", "word", np.array([word in bag for bag in bags]), ~half)


def _labels(task: Task, spec: Spec, references: Sequence[Any]) -> Iterator[tuple[str, str, Mask]]:
    """Of references that are numbers of labels, or say of each label whether it holds."""
    first = references[0]
    if is_number(task):
        return
    for number, label in enumerate(spec.labels):
        if np.ndim(first) == 0:
            yield f"label {label}", "label", np.array([r == number for r in references])
        elif np.shape(first) == (len(spec.labels),):
            yield f"label {label}", "label", np.array([bool(r[number]) for r in references])


def _lengths(task: Task, rows: Dataset) -> Iterator[tuple[str, str, Mask]]:
    """Quarters of the examples by the length of what is read."""
    role = task.roles[0]
    if role.holds not in ("text", "tokens"):
        return
    unit = "characters" if role.holds == "text" else "words"
    lengths = np.array([len(given) for given in rows[role.name]])
    edges = np.unique(np.quantile(lengths, [0, 0.25, 0.5, 0.75, 1]).round().astype(int))
    for i, (low, high) in enumerate(pairwise(edges)):
        inside = (lengths > low if i else lengths >= low) & (lengths <= high)
        yield f"{low + (i > 0)} to {high} {unit}", "length", inside


def _columns(task: Task, rows: Dataset) -> Iterator[tuple[str, str, Mask]]:
    """Values of columns that no role is."""
    roles = {role.name for role in task.roles}
    for column in rows.column_names:
        if column in roles:
            continue
        values = rows[column]
        counts = Counter(str(value) for value in values)
        if 2 <= len(counts) <= VALUES:
            for value in sorted(counts):
                yield f"{column} {value}", "column", np.array([str(v) == value for v in values])


def _worst_words(bags: Sequence[set[str]], harm: Array, half: Mask) -> list[str]:
    """The words whose examples of that half are worse than its others by most, in standard errors.

    For right and wrong the square of that is Pearson's chi-squared of word and error.
    """
    known = half & np.isfinite(harm)
    mine = [bag for bag, k in zip(bags, known, strict=True) if k]
    harm = harm[known]
    counts = Counter(word for bag in mine for word in bag)
    most = len(mine) - FEWEST
    frequent = sorted(word for word, count in counts.items() if FEWEST <= count <= most)
    if not frequent or harm.std() == 0:
        return []
    has = np.array([[word in bag for word in frequent] for bag in mine], np.float64)  # (n, words)
    n, inside = len(mine), has.sum(0)
    excess = has.T @ harm / inside - harm.mean()
    z = excess / (harm.std() * np.sqrt((n - inside) / (n * inside)))
    return [frequent[i] for i in np.argsort(-z, kind="stable")[:WORDS] if z[i] > 0]


def _large(c: Candidate, known: Mask) -> bool:
    inside, outside = (int((side & c.tested & known).sum()) for side in (c.inside, ~c.inside))
    return min(inside, outside) >= FEWEST


def _p_worse(inside: Array, outside: Array) -> float:
    """That harm inside is no larger: Fisher's exact test of right and wrong, else Mann and Whitney's."""
    inside, outside = inside[np.isfinite(inside)], outside[np.isfinite(outside)]
    found = np.unique(np.concatenate([inside, outside]))
    if len(found) == 1:
        return 1.0
    if len(found) == 2:
        table = [[int((side == found[1]).sum()), int((side == found[0]).sum())] for side in (inside, outside)]
        return float(stats.fisher_exact(table, alternative="greater").pvalue)
    return float(stats.mannwhitneyu(inside, outside, alternative="greater").pvalue)


def _slice(c: Candidate, metric: Metric, values: Array, p: float, q: float, seed: int) -> Slice:
    mine, others = values[c.inside & c.tested], values[~c.inside & c.tested]
    score = mean_score(mine, seed=seed)
    return Slice(
        name=c.name, kind=c.kind, p=p, q=q, worse=q < LEVEL, others=float(np.nanmean(others)),
        score=score.model_copy(update={
            "metric": metric.name, "unit": metric.unit, "says": f"mean over examples: {metric.says}",
            "examples": int(np.isfinite(mine).sum()),
        }),
    )  # fmt: skip


def _notes(values: Array) -> tuple[str, ...]:
    silent = int((~np.isfinite(values)).sum())
    if not silent:
        return ()
    return (f"{silent} of {len(values)} examples have no score of their own and are left out of slices",)
