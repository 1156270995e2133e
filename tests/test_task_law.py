"""The law of a task: its interval covers new runs, its parameters are found again, its sentences say it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest

from isoflop.adapting.curve import fit_curves
from isoflop.adapting.law import CHOSEN, DEFAULT, Measure, Price, Wanted, epochs_of, law_of, task_law
from isoflop.adapting.records import LawPoint
from isoflop.laws.solve import Array
from isoflop.metrics import METRICS, Score

ALL = 1000  # training examples
ACCURACY = METRICS["accuracy"]
X = ALL * np.array([1 / 8, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 1 / 2, 1 / 2, 1.0])


class Truth(NamedTuple):
    """A law, and a test set on which half of an error's variance is the same for all runs."""

    floor: float
    beta: float
    c: float
    test: int

    def error(self, x: Array) -> Array:
        return np.asarray(self.floor + self.beta * x**-self.c)

    def runs(self, x: Array, shared: Array, rng: np.random.Generator) -> Array:
        """(s, n) errors of runs that also differ by 5% between seeds."""
        error = self.error(x)
        size = shared.shape[0], len(x)
        part = math.sqrt(0.5) * (shared + rng.standard_normal(size))
        seeds = np.exp(0.05 * rng.standard_normal(size))
        made = error * seeds + np.sqrt(error * (1 - error) / self.test) * part
        return np.asarray(np.maximum(made, 0.5 / self.test))

    def sd(self, error: Array) -> Array:
        """Relative, by the test set."""
        return np.asarray(np.sqrt((1 - error) / (error * self.test)))


@pytest.mark.parametrize("truth", [Truth(0.03, 1.5, 0.5, 500), Truth(0.1, 3.0, 0.8, 2000)])
def test_the_interval_covers_new_runs_with_twice_the_examples(truth: Truth) -> None:
    rng = np.random.default_rng(0)
    tables = 300
    error = truth.runs(X, rng.standard_normal((tables, 1)), rng)
    curves = fit_curves(X, error, truth.sd(error), draws=200)
    low, high = np.quantile(curves.new_runs(2.0 * ALL), [0.05, 0.95], axis=1)
    new = truth.runs(np.array([2.0 * ALL]), rng.standard_normal((tables, 1)), rng)[:, 0]
    assert 0.8 < np.mean((low <= new) & (new <= high)) < 0.97


def test_a_known_law_is_found_again() -> None:
    truth = Truth(0.05, 2.0, 0.6, 10_000_000)
    x = np.geomspace(100, 100_000, 12)
    curves = fit_curves(x, truth.error(x)[None], np.full((1, 12), 1e-4))
    floor, beta, c = curves.law.uncentre(curves.theta, curves.centre)[0]
    assert (floor, beta, c) == pytest.approx((0.05, 2.0, 0.6), rel=0.05)
    assert curves.value(1e6)[0] == pytest.approx(truth.error(np.array([1e6])), rel=0.01)
    own, drawn = curves.needed(np.full(len(curves.draws[0]) + 1, float(truth.error(np.array([500.0]))[0])))
    assert own[0] == pytest.approx(500, rel=0.02)
    assert np.median(drawn) == pytest.approx(500, rel=0.1)
    assert np.isnan(curves.needed(np.array([0.04, 0.04]))[0][0])


def point(who: str, examples: int, error: float, *, seed: int = 0, params: int = 1000) -> LawPoint:
    se = math.sqrt(error * (1 - error) / 20_000)
    score = Score(
        metric="accuracy", value=1 - error, low=1 - error - 1.645 * se, high=1 - error + 1.645 * se,
        examples=20_000, unit="share",
    )  # fmt: skip
    return LawPoint(who=who, params=params, examples=examples, seed=seed, score=score, seconds=1.0)


def curve(who: str, beta: float, c: float) -> list[LawPoint]:
    return [point(who, n, beta * n**-c) for n in (125, 250, 500, 1000)]


def test_what_twice_the_labels_would_buy_is_said() -> None:
    law = law_of(curve(CHOSEN, 2.0, 0.5), ACCURACY, passes=3.0)
    assert law.twice_labels is not None
    assert law.now == pytest.approx(1 - 2.0 * 1000**-0.5, abs=0.005)
    assert law.twice_labels.low < 1 - 2.0 * 2000**-0.5 < law.twice_labels.high
    assert law.now is not None
    assert law.twice_labels.value > law.now
    assert "twice the training examples (2,000)" in law.sentences[0]
    flat = law_of([point(CHOSEN, n, 0.2) for n in (125, 250, 500, 1000)], ACCURACY, passes=3.0)
    assert "cannot tell that from no gain" in flat.sentences[0]


def test_label_doublings_count_what_the_default_would_need() -> None:
    """Half the error at an exponent of 1/2 is what four times the labels buy."""
    law = law_of([*curve(CHOSEN, 1.0, 0.5), *curve(DEFAULT, 2.0, 0.5)], ACCURACY, passes=3.0)
    assert law.doublings is not None
    assert law.doublings.low < 2.0 < law.doublings.high
    assert law.doublings.value == pytest.approx(2.0, abs=0.7)
    assert "times the labels for this score" in law.sentences[-1]
    stuck = [point(DEFAULT, n, 0.3 + 0.1 * (n == 125)) for n in (125, 250, 500, 1000)]
    never = law_of([*curve(CHOSEN, 1.0, 0.5), *stuck], ACCURACY, passes=3.0)
    assert never.undefined_share > 0.3


def test_labels_or_parameters() -> None:
    bases = [*curve(CHOSEN, 100.0, 1.0), point("large", 1000, 0.099, params=4000)]
    law = law_of(bases, ACCURACY, passes=3.0)
    assert law.twice_model is not None
    assert law.sentences[1].startswith("Labels are worth more than parameters")
    better = [
        *[point(CHOSEN, n, 0.2) for n in (125, 250, 500, 1000)],
        point("large", 1000, 0.02, params=2000),
    ]
    assert law_of(better, ACCURACY, passes=3.0).sentences[1].startswith("Parameters are worth more")


def measured(asked: list[Wanted], seconds: float) -> Measure:
    """Runs that take as long as their examples."""

    def measure(wanted: Wanted, passes: float) -> LawPoint:
        asked.append(wanted)
        made = point(
            wanted.who, round(wanted.share * ALL), 2.0 * (wanted.share * ALL) ** -0.5, seed=wanted.seed
        )
        return made.model_copy(update={"seconds": seconds * wanted.share * passes})

    return measure


@pytest.mark.parametrize(("seconds", "default"), [(1000.0, 4), (17.0, 0)])
def test_what_the_seconds_pay_for_is_run(seconds: float, default: int) -> None:
    asked: list[Wanted] = []
    price = Price(per_example=5.0 / ALL, fixed=0.0, relative={})
    law = task_law(measured(asked, 5.0), ACCURACY, ALL, seconds, price, passes=3.0, default=True)
    assert len(law.points) == len(asked)
    assert sum(w.who == DEFAULT for w in asked) == default
    assert [w.share for w in asked[:4]] == [1 / 8, 1 / 4, 1 / 2, 1.0]
    assert sum(p.seconds for p in law.points) <= seconds
    assert 1.0 <= law.passes <= 3.0


def test_few_examples_are_seen_until_something_is_learned() -> None:
    assert epochs_of(3.0, 10_000, 16) == 3.0
    assert epochs_of(3.0, 160, 16) == 10.0
    asked = [Wanted(CHOSEN, share, 0) for share in (1 / 8, 1.0)]
    price = Price(per_example=0.01, fixed=1.0, relative={}, least=1600.0)
    assert price.of(asked[0], 1000, 3.0) == pytest.approx(17.0)
    passes = price.passes(asked, 1000, 38.0, 3.0)
    assert passes == pytest.approx(2.0)
    assert sum(price.of(w, 1000, passes) for w in asked) == pytest.approx(38.0)
    assert price.passes(asked, 1000, 1e6, 3.0) == 3.0
    assert price.passes(asked, 1000, 30.0, 3.0) == 0.0


def test_too_little_time_for_a_law_is_said() -> None:
    price = Price(per_example=1.0, fixed=0.0, relative={})
    law = task_law(measured([], 1.0), ACCURACY, ALL, 100.0, price, passes=3.0, default=False)
    assert not law.points
    assert law.sentences[0].startswith("No law of the task: its runs need about 3125 s")
    needed = price.least_seconds(ALL)
    for seconds, paid in ((0.99 * needed, False), (1.01 * needed, True)):
        law = task_law(measured([], 1.0), ACCURACY, ALL, seconds, price, passes=3.0, default=False)
        assert bool(law.points) == paid


@pytest.mark.parametrize(
    ("errors", "says"),
    [
        ((0.9, 0.9, 0.9, 0.9), "learned nothing"),
        ((0.9, 0.9, 0.9, 0.5), "from 500 examples on"),  # an interval around .9 would be a lie
        ((0.9, 0.9, 0.3, 0.2), "from 250 examples on"),
        ((0.6, 0.5, 0.42, 0.36), ""),
    ],
)
def test_runs_between_which_learning_sets_in_foretell_nothing(errors: tuple[float, ...], says: str) -> None:
    of = dict(zip((1 / 8, 1 / 4, 1 / 2, 1.0), errors, strict=True))

    def measure(wanted: Wanted, passes: float) -> LawPoint:
        return point(wanted.who, round(wanted.share * ALL), of[wanted.share], seed=wanted.seed)

    price = Price(per_example=0.001, fixed=0.0, relative={})
    law = task_law(measure, ACCURACY, ALL, 1e6, price, passes=3.0, default=False, unlearned=0.1)
    assert (law.twice_labels is None) == bool(says)
    assert says in law.sentences[0]
    assert law.points
