"""What a budget buys."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isoflop import flops
from isoflop import plan as planner
from isoflop.budget import Budget
from isoflop.errors import BudgetError
from isoflop.families import shapes
from isoflop.laws import Fit, Observations, fit
from isoflop.places import here
from isoflop.recipe import recipe
from isoflop.records import Corpus, RunConfig, Throughput
from isoflop.throughput import SpeedModel


@pytest.fixture(scope="module")
def law() -> Fit:
    """Chinchilla's form exactly, on sizes like those of a ladder."""
    n, d = (g.ravel() for g in np.meshgrid([1e5, 2e5, 4e5], [5e5, 1e6, 2e6]))
    loss = 1.0 + 30 / n**0.3 + 200 / d**0.4
    return fit(Observations.of({"params": n, "tokens": d, "loss": loss}), bootstrap=20)


@pytest.fixture
def family(corpus: Corpus) -> list[RunConfig]:
    return [recipe(m, 0, eval_tokens=8192) for m in shapes(corpus.vocab_size, largest=2_000_000)]


@pytest.fixture
def rater(corpus: Corpus, law: Fit, family: list[RunConfig]) -> planner._Rater:
    """Every size computes 50 GFLOP/s in one packed run, and evaluates three times as fast."""
    rates = [
        Throughput(
            model=c.model, batch_tokens=c.batch_tokens, threads=1, packed=2, compile=False,
            params=flops.params_matmul(c.model), tokens_per_second=5e10 / flops.flops_per_token(c.model),
            eval_tokens_per_second=15e10 / flops.flops_per_token(c.model), compile_seconds=0.0,
            memory_bytes=0, machine="none",
        )
        for c in family
    ]  # fmt: skip
    return planner._Rater(corpus, law, SpeedModel(rates), {}, 1.8, here())


def test_a_larger_budget_buys_a_larger_model_and_a_lower_loss(
    rater: planner._Rater, family: list[RunConfig]
) -> None:
    found = [rater.rate(family, Budget(seconds=s))[rater.best(family, Budget(seconds=s))] for s in (60, 3600)]
    assert found[0].params < found[1].params
    assert found[0].loss > found[1].loss
    for candidate, seconds in zip(found, (60, 3600), strict=True):
        assert candidate.seconds <= planner.MARGIN * seconds
        assert candidate.seconds > 0.9 * planner.MARGIN * seconds


def test_compiling_is_planned_with_its_speed_and_its_cost(
    rater: planner._Rater, family: list[RunConfig]
) -> None:
    plain = rater.rate(family, Budget(seconds=1000))[0]
    fast = replace(rater, compiled=(1.5, 100.0))
    compiled = fast.rate([family[0].model_copy(update={"compile": True})], Budget(seconds=1000))[0]
    assert compiled.tokens_per_second == pytest.approx(1.5 * plain.tokens_per_second)
    expected = 1.5 * (1000 * planner.MARGIN - 100) / (1000 * planner.MARGIN)
    assert compiled.config.tokens == pytest.approx(expected * plain.config.tokens, rel=0.01)
    assert fast.rate(family, Budget(seconds=1000))[0] == plain


def test_a_layout_has_its_own_factor(rater: planner._Rater, family: list[RunConfig]) -> None:
    four = [c.model_copy(update={"ranks": 4}) for c in family]
    mixed = replace(rater, factors={(4, 1): 3.6})
    budget = Budget(seconds=100)
    plain, joined = mixed.rate(family, budget)[0], mixed.rate(four, budget)[0]
    assert joined.tokens_per_second == pytest.approx(2 * plain.tokens_per_second)


def test_too_little_for_any_size_is_refused(rater: planner._Rater, family: list[RunConfig]) -> None:
    with pytest.raises(BudgetError, match="too few for 50 steps"):
        rater.best(family, Budget(seconds=0.5))
