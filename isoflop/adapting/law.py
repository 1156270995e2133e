"""The law of a task: what twice the labels, or twice the model, would buy.

The chosen configuration is trained on nested subsets of the examples, each for as many passes (few examples
for more, until steps enough to learn at all are taken), and scored on the test examples; so is full
fine-tuning with default values, which is what label doublings count in, and the chosen configuration on
further base models where any are given. What the budget cannot pay is left out, the dearest question first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from isoflop.adapting.curve import PRIOR_EXPONENT, Curves, fit_curves
from isoflop.adapting.records import LawPoint, TaskLaw
from isoflop.gain.compute import bounded, drawn
from isoflop.laws import intervals
from isoflop.laws.solve import Array
from isoflop.metrics.protocol import Metric, Score
from isoflop.records import Interval

SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)  # of the training examples
CHOSEN, DEFAULT = "chosen", "default"
SEEDS = ((1 / 8, 1), (1 / 4, 1), (1 / 2, 1), (1 / 8, 2), (1 / 4, 2), (1.0, 1))  # further runs, as far as paid
FIRST = 0.6  # of the law's seconds may be needed by what cannot be left out; more passes cost more
LEAST_PASSES = 1.0
LEAST_STEPS = 100  # of any run: after 37 MiniLM told spam as well as chance, after 75 at .95 (docs/LOG.md)
LEAST_SIZES = (
    3  # that have learned: where learning sets in between two of them no curve is seen (docs/LOG.md)
)
LEVEL = 0.9
Z = 1.6449  # of a normal's central 90%
SURE = 0.95  # share of draws from which on one thing is said to be better than another
SIZE_EXPONENT = 0.2  # taken of error against parameters before any are seen: an assumption


class Wanted(NamedTuple):
    """A run that the law asks for."""

    who: str
    share: float
    seed: int


Measure = Callable[[Wanted, float], LawPoint | None]  # a run of so many passes; None where it cannot be


@dataclass(frozen=True)
class Price:
    """Expected seconds of a run; `relative` are those of other base models, in units of the chosen's."""

    per_example: float  # of training
    fixed: float  # of opening the model and scoring it on the test examples
    relative: Mapping[str, float]  # by their names
    least: float = 0.0  # examples that a run sees at least

    def of(self, wanted: Wanted, examples: int, passes: float) -> float:
        trained = self.per_example * max(self.least, wanted.share * examples * passes)
        return (trained + self.fixed) * self.relative.get(wanted.who, 1.0)

    def first(self) -> list[Wanted]:
        """The runs that cannot be left out."""
        return [Wanted(CHOSEN, share, 0) for share in SHARES] + [Wanted(who, 1.0, 0) for who in self.relative]

    def least_seconds(self, examples: int) -> float:
        """Without which there is no law."""
        return sum(self.of(wanted, examples, LEAST_PASSES) for wanted in self.first()) / FIRST

    def passes(self, asked: Sequence[Wanted], examples: int, seconds: float, most: float) -> float:
        """With which the runs take that time together."""

        def over(passes: float) -> float:
            return sum(self.of(w, examples, passes) for w in asked) - seconds

        if over(most) <= 0:
            return most
        return float(brentq(over, 0.0, most)) if over(0.0) < 0 else 0.0


def epochs_of(passes: float, examples: int, batch: int) -> float:
    """Passes of a run over its examples: so many, or those that LEAST_STEPS take."""
    return max(passes, LEAST_STEPS * batch / examples)


def task_law(
    measure: Measure, metric: Metric, examples: int, seconds: float, price: Price, *, passes: float,
    known: float | None = None, default: bool, unlearned: float | None = None, seed: int = 0,
) -> TaskLaw:  # fmt: skip
    """Run what the seconds pay for, fit the law, and say what it says.

    `passes` is what the chosen configuration had at most, and `known` what the runs had that an ended process
    has made; `default` says that it is not full fine-tuning with default values, which is then run as well.
    `unlearned` is the score of what has learned nothing: from there no run tells when others will.
    """
    first = price.first()
    found = known or price.passes(first, examples, FIRST * seconds, passes)
    if found < min(LEAST_PASSES, passes):
        needed, left = price.least_seconds(examples), max(0.0, seconds)
        sentence = (
            f"No law of the task: its runs need about {needed:.0f} s, and {left:.0f} s were left for them."
        )
        return TaskLaw(metric=metric.name, passes=0.0, sentences=(sentence,))
    groups = [first, [Wanted(DEFAULT, share, 0) for share in SHARES] if default else []]
    groups += [[Wanted(CHOSEN, share, number)] for share, number in SEEDS]
    points: list[LawPoint] = []
    for number, group in enumerate(groups):
        left = seconds - sum(p.seconds for p in points)
        if number and sum(price.of(w, examples, found) for w in group) > left:
            continue
        points += [made for wanted in group if (made := measure(wanted, found)) is not None]
    if len({p.examples for p in points if p.who == CHOSEN}) < len(SHARES):
        sentence = "No law of the task: too few of its runs could be made."
        return TaskLaw(metric=metric.name, passes=found, points=tuple(points), sentences=(sentence,))
    why = _no_curve([p for p in points if p.who == CHOSEN], metric, unlearned)
    if why:
        return TaskLaw(metric=metric.name, passes=found, points=tuple(points), sentences=(why,))
    return law_of(points, metric, passes=found, seed=seed)


def _no_curve(chosen: Sequence[LawPoint], metric: Metric, unlearned: float | None) -> str:
    """Why no power law goes through these runs; "": one may.

    Its gains shrink from doubling to doubling. Where one is surely greater than that before it, by the test
    examples alone, learning sets in between two runs, and what comes after is in none of them.
    """
    best = min(_error(p.score, metric)[0] for p in chosen)
    if unlearned is not None and best >= _missing(unlearned, metric):
        return (
            f"No law of the task: its runs have {metric.name} {_score(best, metric):.4g} at best, and what "
            f"is usual has {unlearned:.4g}. They have learned nothing that a law could go on from."
        )
    sizes = sorted({p.examples for p in chosen})
    errors = [[_error(p.score, metric) for p in chosen if p.examples == n] for n in sizes]
    error, sd = (np.array([np.mean(column) for column in columns])
                 for columns in zip(*(zip(*each, strict=True) for each in errors), strict=True))  # fmt: skip
    more = (error[1:-1] - error[2:]) - (error[:-2] - error[1:-1])
    noise = np.sqrt(sd[:-2] ** 2 + 4 * sd[1:-1] ** 2 + sd[2:] ** 2)
    if not (more > Z * noise).any():
        return ""
    at = sizes[1 + int(np.argmax(more / noise))]
    return (
        f"No law of the task: from {at:,} examples on its runs gain more by a doubling than before. They "
        "have just begun to learn, and no power law says how that goes on."
    )


def law_of(points: Sequence[LawPoint], metric: Metric, *, passes: float, seed: int = 0) -> TaskLaw:
    """The law that the runs say, with its sentences."""
    chosen = [p for p in points if p.who == CHOSEN]
    examples, params = max(p.examples for p in chosen), chosen[0].params
    curve = _curve(chosen, metric, [p.examples for p in chosen], seed)
    now, twice = float(curve.value(examples)[0, 0]), curve.new_runs(2.0 * examples, seed)[0]
    labels = _scored(float(curve.value(2.0 * examples)[0, 0]), twice, metric)
    said = [_of_labels(labels, metric, now, twice, examples, passes)]
    others = [p for p in points if p.examples == examples and p.who != DEFAULT]
    model, larger = None, None
    if len({p.params for p in others}) > 1:
        sizes = _curve(others, metric, [p.params for p in others], seed, SIZE_EXPONENT)
        larger = sizes.new_runs(2.0 * params, seed + 1)[0]
        model = _scored(float(sizes.value(2.0 * params)[0, 0]), larger, metric)
        said.append(_labels_or_parameters(labels, model, twice, larger))
    doublings, undefined = _doublings([p for p in points if p.who == DEFAULT], curve, metric, examples, seed)
    if doublings is not None:
        said.append(_of_doublings(doublings, undefined))
    natural = curve.law.uncentre(curve.theta, curve.centre)[0]
    return TaskLaw(
        metric=metric.name, passes=passes, points=tuple(points), now=_score(now, metric),
        law={name: float(v) for name, v in zip(curve.law.names, natural, strict=True)}, twice_labels=labels,
        twice_model=model, doublings=doublings, undefined_share=undefined, sentences=tuple(said),
    )  # fmt: skip


def _curve(
    points: Sequence[LawPoint],
    metric: Metric,
    x: Sequence[float],
    seed: int,
    exponent: float = PRIOR_EXPONENT,
) -> Curves:
    """Error against x."""
    pairs = [_error(p.score, metric) for p in points]
    error, sd = (np.array([column]) for column in zip(*pairs, strict=True))
    return fit_curves(np.array(x, dtype=np.float64), error, sd / error, exponent=exponent, seed=seed)


def ceiling(metric: Metric) -> float:
    """Of a metric that rises: what it cannot be above."""
    return 100.0 if metric.unit.startswith("points") else 1.0


def _error(score: Score, metric: Metric) -> tuple[float, float]:
    """What is missing to the best score, above zero, and its standard error by the test examples.

    Half an example's worth stands for nothing missing; the error has at least that standard error.
    """
    half = 0.5 * ceiling(metric) / score.examples
    return max(_missing(score.value, metric), half), max((score.high - score.low) / (2 * Z), half)


def _missing(score: float, metric: Metric) -> float:
    return ceiling(metric) - score if metric.higher_is_better else score


def _score(error: float, metric: Metric) -> float:
    return ceiling(metric) - error if metric.higher_is_better else error


def _scored(value: float, draws: Array, metric: Metric) -> Interval:
    """The interval of a score, from errors."""
    low, high = intervals.quantiles(draws, LEVEL)
    if metric.higher_is_better:
        low, high = min(high, ceiling(metric)), low
    ends = sorted((_score(low, metric), _score(high, metric)))
    return Interval(value=_score(value, metric), low=ends[0], high=ends[1], level=LEVEL, of="new run")


def _doublings(
    default: Sequence[LawPoint], chosen: Curves, metric: Metric, examples: int, seed: int
) -> tuple[Interval | None, float]:
    """log2 of the examples that the default needs for the chosen one's score, over those there are; and the
    share of draws in which no number of them is enough."""
    if len({p.examples for p in default}) < len(SHARES):
        return None, 0.0
    base = _curve(default, metric, [p.examples for p in default], seed)
    draws = chosen.law.value(chosen.draws[0], np.log([[examples]]) - chosen.centre[:, None])[:, 0]
    reached = np.concatenate([chosen.value(examples)[0], draws])
    needed = np.concatenate(base.needed(reached))
    row = np.log2(np.maximum(1.0, bounded(needed)) / examples)  # one of them is the least
    return drawn(row, LEVEL), float(np.isnan(needed[1:]).mean())


# -- sentences --------------------------------------------------------------------------------------------


def _of_labels(
    labels: Interval, metric: Metric, now: float, twice: Array, examples: int, passes: float
) -> str:
    better = float((twice < now).mean())
    unsure = "" if better >= SURE else " The runs cannot tell that from no gain."
    seen = "once" if passes == 1 else f"{passes:.2g} times"
    return (
        f"With twice the training examples ({2 * examples:,}), {metric.name} is expected at "
        f"{_range(labels)}; the law has {_score(now, metric):.4g} for those that there are, each seen "
        f"{seen}.{unsure}"
    )


def _labels_or_parameters(labels: Interval, model: Interval, twice: Array, larger: Array) -> str:
    """Draws of the two are independent: pairs of them say which is better."""
    better = float((twice < larger).mean())
    said = "The runs cannot tell which is worth more"
    if better >= SURE:
        said = "Labels are worth more than parameters"
    elif better <= 1 - SURE:
        said = "Parameters are worth more than labels"
    return (
        f"{said}: twice the labels give {_range(labels)}, and twice the model gives {_range(model)}; labels "
        f"are ahead in {better:.0%} of the draws."
    )


def _of_doublings(found: Interval, undefined: float) -> str:
    never = f" In {undefined:.0%} of the draws it never does." if undefined else ""
    times = f"{2**found.value:.2g} times" if found.value < math.log2(1e6) else "more than a million times"
    high = f"{found.high:+.2f}" if found.high < math.log2(1e6) else "without limit"
    return (
        f"Full fine-tuning with default values would need {times} the labels for this score: "
        f"{found.value:+.2f} doublings (90%: {found.low:+.2f} to {high}).{never}"
    )


def _range(found: Interval) -> str:
    return f"{found.value:.4g} (90%: {found.low:.4g} to {found.high:.4g})"
