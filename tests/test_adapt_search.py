"""What is tried, in which order, and what ends early."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from datasets import Dataset

from isoflop.adapting.candidates import RULES, Facts, candidates, rule_for
from isoflop.adapting.inputs import some
from isoflop.adapting.methods import METHODS
from isoflop.adapting.pace import _each, length_for
from isoflop.adapting.records import AdaptConfig, Point, Trial
from isoflop.adapting.search import Report, Search, trial_seconds
from isoflop.errors import AdaptError
from isoflop.progress import Silent
from isoflop.tasks import Spec, Task

RATES = {name: METHODS[name].lr for name in ("full", "lora", "last-layers", "probe")}
MANY = Facts(examples=10_000, labels=2, params=100_000_000, scratch=False, text_out=False, passes=2.0)


def test_the_rules_look_at_data_base_and_time() -> None:
    found = {
        "many": MANY, "few": Facts(40, 2, 100_000_000, False, False, 9.0),
        "scratch": Facts(10_000, 10, 100_000, True, False, 9.0),
        "images": Facts(10_000, 10, 100_000, True, False, 9.0, "image", "bf16"),
        "speech": Facts(1_000, 0, 40_000_000, False, True, 3.0, "audio"),
        "slow speech": Facts(1_000, 0, 40_000_000, False, True, 0.3, "audio"),
        "texts": Facts(10_000, 0, 100_000_000, False, True, 2.0),
        "slow": Facts(10_000, 2, 100_000_000, False, False, 0.1),
        "small": Facts(10_000, 2, 20_000_000, False, False, 9.0),
        "tiny": Facts(10_000, 0, 1_000_000, False, True, 0.1),
    }  # fmt: skip
    rules = {name: rule_for(facts) for name, facts in found.items()}
    assert len({id(rule) for rule in rules.values()}) == len(RULES)
    assert rules["scratch"].methods == ("full",)
    assert "probe" in rules["few"].methods
    assert rules["tiny"].factors == rules["scratch"].factors
    assert rules["speech"].methods == ("full", "decoder")
    for name in ("slow", "slow speech"):
        assert (rules[name].methods, len(rules[name].factors)) == (("full",), 1)  # nothing to search
    assert set(rules["texts"].methods) == {"full", "lora"}
    assert all(method in METHODS for rule in RULES for method in rule.methods)


def test_candidates_are_methods_that_fit_at_several_rates() -> None:
    made = candidates("classification", MANY, {"full": 1e-4}, method=None, given={}, seed=3)
    assert [[c.lr for c in configs] for configs in made] == [pytest.approx([1e-4, 3e-4, 1e-4 / 3])]
    images = Facts(10_000, 10, 100_000, True, False, 9.0, "image", "bf16")
    (scratch,) = candidates("image-classification", images, RATES, method=None, given={}, seed=0)
    assert [c.lr for c in scratch] == pytest.approx([3e-3, 1e-3, 5e-3])
    assert {(c.batch, c.weight_decay, c.augment, c.precision, c.patience) for c in scratch} == {
        (128, 0.05, ("flip", "crop"), "bf16", 0)
    }
    speech = Facts(1_000, 0, 40_000_000, False, True, 3.0, "audio", "bf16")
    full, decoder = candidates(
        "speech", speech, {"full": 5e-5, "decoder": 5e-5}, method=None, given={}, seed=0
    )
    assert [(c.lr, c.augment) for c in full] == [
        (5e-5, ()), (5e-5, ("speed", "noise")), (pytest.approx(1e-4), ()), (pytest.approx(1e-5), ()),
    ]  # fmt: skip
    assert {c.precision for c in (*full, *decoder)} == {"bf16"}
    named = candidates(
        "classification", MANY, RATES, method="lora", seed=0,
        given={"lr": 0.01, "batch": 4, "method.r": 2, "augment": ["noise"]},
    )  # fmt: skip
    assert len(named) == len(named[0]) == 1
    only = named[0][0]
    assert (only.method, only.lr, only.batch, only.method_options) == ("lora", 0.01, 4, {"r": 2})
    assert only.augment == ("noise",)


@pytest.mark.parametrize(
    ("given", "says"), [({"rate": 1}, "'rate' is no value"), ({"lr": "high"}, "lr is 'high'")]
)
def test_values_that_no_configuration_has(given: dict[str, object], says: str) -> None:
    with pytest.raises(AdaptError, match=says):
        candidates("classification", MANY, RATES, method=None, given=given, seed=0)


def search(**more: object) -> Search:
    made = candidates("classification", MANY, RATES, method=None, given={}, seed=0)
    options: dict[str, object] = {"seconds": 100.0, "each": 20.0, "higher": True}
    return Search(made, {}, **{**options, **more})  # type: ignore[arg-type]


def simulated(score: Callable[[AdaptConfig], float]) -> Callable[[AdaptConfig, float, Report], Trial]:
    """Trainings whose score rises by quarters of their time to what their configuration reaches."""

    def attempt(config: AdaptConfig, seconds: float, report: Report) -> Trial:
        curve: list[Point] = []
        for quarter in (1, 2, 3, 4):
            value = score(config) * quarter / 4
            point = Point(
                step=quarter, examples=10 * quarter, seconds=5.0 * quarter, train_loss=1.0, score=value
            )
            curve.append(point)
            if report(point):
                break
        return Trial(
            config=config, curve=tuple(curve), score=curve[-1].score, seconds=curve[-1].seconds, flops=1.0,
            params_trained=1,
        )  # fmt: skip

    return attempt


def by_method(config: AdaptConfig) -> float:
    """LoRA is the best, at three times its rate."""
    best = {"full": 0.7, "lora": 0.8, "last-layers": 0.6}[config.method]
    return best + 0.1 * (config.method == "lora" and config.lr > 1e-3) + 0.01 * (config.batch == 32)


def test_each_method_comes_first_then_the_rates_of_the_best() -> None:
    found = search()
    kept: list[Trial] = []
    found.run(simulated(by_method), kept.append, Silent())
    tried = [(t.config.method, round(t.config.lr / RATES[t.config.method], 2)) for t in found.trials]
    assert tried[:5] == [("full", 1), ("lora", 1), ("last-layers", 1), ("lora", 3), ("lora", 0.33)]
    assert found.best.config.method == "lora"
    assert found.best.config.lr == pytest.approx(3 * RATES["lora"])
    assert kept == found.trials
    assert sum(t.seconds for t in found.trials) <= 100.0


def test_the_worse_half_ends_early() -> None:
    found = search()
    found.run(simulated(by_method), lambda trial: None, Silent())
    by_name = {(t.config.method, t.config.lr): t for t in found.trials}
    assert by_name["last-layers", RATES["last-layers"]].stopped == "pruned"
    assert len(by_name["last-layers", RATES["last-layers"]].curve) == 1
    assert found.trials[0].stopped == found.best.stopped == ""


def test_what_the_ledger_has_is_not_tried_again() -> None:
    whole = search()
    whole.run(simulated(by_method), lambda trial: None, Silent())
    asked: list[AdaptConfig] = []

    def score(config: AdaptConfig) -> float:
        if config not in asked:
            asked.append(config)
        return by_method(config)

    again = search(done=whole.trials[:3])
    again.run(simulated(score), lambda trial: None, Silent())
    assert again.trials == whole.trials
    assert asked == [t.config for t in whole.trials[3:]]


def test_a_trial_that_fails_is_kept_with_its_sentence() -> None:
    def attempt(config: AdaptConfig, seconds: float, report: Report) -> Trial:
        if config.method == "full":
            raise AdaptError("the loss is nan at step 3", hint="give a lower learning rate")
        if config.method == "last-layers":
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes")
        return simulated(by_method)(config, seconds, report)

    found = search()
    found.run(attempt, lambda trial: None, Silent())
    said = {t.config.method: t.stopped for t in found.trials if math.isnan(t.score)}
    assert said == {"full": "the loss is nan at step 3", "last-layers": "there is too little memory"}
    assert found.best.config.method == "lora"


def test_where_nothing_can_be_trained_the_first_reason_is_the_error() -> None:
    def attempt(config: AdaptConfig, seconds: float, report: Report) -> Trial:
        raise AdaptError(f"{config.method} does not fit", hint="choose another")

    with pytest.raises(AdaptError, match="full does not fit"):
        search().run(attempt, lambda trial: None, Silent())


def test_a_loss_is_searched_downwards() -> None:
    found = search(higher=False)
    found.run(simulated(lambda config: -by_method(config)), lambda trial: None, Silent())
    assert found.best.config.method == "lora"
    assert found.best.score == min(t.score for t in found.trials if not t.stopped)


def test_a_budget_has_as_many_trials_as_have_the_time_they_need() -> None:
    assert trial_seconds(70.0, 1.0) == pytest.approx(20.0)
    assert trial_seconds(70.0, 30.0) == 30.0


@pytest.mark.parametrize(
    ("told", "enough", "each"),
    [
        ([0.5, 0.2], 0.1, 0.2 / 4),  # the first time is not like the second
        ([0.5, 0.02, 0.9, 0.16], 0.1, 0.16 / 32),  # what takes no time says little
        ([2.0], 0.1, 2.0 / 4),  # and what takes long is not asked twice
        ([0.01, 0.01, 0.02, 0.02], 0.1, 0.02 / 32),
        ([0.5, 0.3, 0.9, 0.8], 1.0, 0.8 / 32),  # who writes takes as long for many as for few
    ],
)
def test_the_seconds_of_an_example(told: list[float], enough: float, each: float) -> None:
    left = iter(told)
    batches: Any = lambda count: {"size": count}  # noqa: E731
    assert _each(lambda batch: next(left), (4, 32), batches, enough) == pytest.approx(each)
    assert not list(left)


class Reading:
    """A task whose inputs have 400 tokens each."""

    def __init__(self, name: str) -> None:
        self.name = name

    def encode(self, base: object, spec: object, rows: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1] * 400 for _ in rows["text"]]}


@pytest.mark.parametrize(
    ("task", "passes", "length"),
    [
        ("classification", 2.0, 512),
        ("classification", 0.7, 256),
        ("classification", 0.1, 128),
        ("tagging", 0.1, 512),
    ],
)
def test_long_inputs_are_cut_where_a_trial_would_not_see_all_examples(
    task: str, passes: float, length: int
) -> None:
    base: Any = SimpleNamespace(max_length=512)
    reading, rows = cast("Task", Reading(task)), Dataset.from_dict({"text": ["a"] * 20})
    assert length_for(reading, base, Spec(task=task), rows, passes) == length


def test_subsets_are_nested_and_seeds_differ() -> None:
    rows = Dataset.from_dict({"text": [str(n) for n in range(100)]})
    small, large, other = some(rows, 10, 0)["text"], some(rows, 50, 0)["text"], some(rows, 10, 1)["text"]
    assert len(set(small)) == 10
    assert set(small) < set(large)
    assert set(other) != set(small)
    assert some(rows, 100, 0) is rows
