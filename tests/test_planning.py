"""Plans by a law alone: against closed forms, published examples and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.errors import BudgetError, FitError
from isoflop.laws import Fit, fit
from isoflop.laws.planning import plan_law


def ladder_law() -> Fit:
    rng = np.random.default_rng(0)
    N = np.repeat(np.geomspace(1e7, 1e9, 6), 6)
    D = N * np.tile(np.geomspace(5, 80, 6), 6)
    L = (1.8 + 480.0 / N**0.35 + 2100.0 / D**0.37) * np.exp(0.003 * rng.standard_normal(36))
    return fit({"params": N, "tokens": D, "loss": L}, bootstrap=100)


def test_without_constraints_it_is_the_optimum() -> None:
    law = ladder_law()
    plan, best = plan_law(law, 1e21), law.optimum(1e21)
    assert plan.params == best.params
    assert plan.loss == best.loss
    assert plan.train_flops == pytest.approx(1e21)
    assert plan.params.low < plan.params.value < plan.params.high
    assert not plan.worth


def test_serving_makes_models_smaller_and_longer_trained() -> None:
    law = Fit.of_published("hoffmann-2022")
    plain = plan_law(law, 1e23)
    served = plan_law(law, 1e23, inference_tokens=1e13)
    assert served.params.value < plain.params.value
    N, D = served.params.value, served.tokens.value
    assert pytest.approx(1e23, rel=1e-6) == 6 * N * D + 2 * N * 1e13
    # First-order condition: e_N / e_D = 1 + D_inf / (3 D) for e_X = exponent times term.
    p = law.params
    e_n, e_d = p["alpha"] * p["A"] * N ** -p["alpha"], p["beta"] * p["B"] * D ** -p["beta"]
    assert e_n / e_d == pytest.approx(1 + 1e13 / (3 * D), rel=1e-3)
    assert served.worth[0].constraint == "inference_tokens"
    assert served.worth[0].doublings.value > 0


def test_unique_data_and_caps_cost_doublings() -> None:
    law = ladder_law()
    free = plan_law(law, 1e21)
    short = plan_law(law, 1e21, unique_tokens=2e9)
    assert short.loss.value > free.loss.value
    assert short.worth[0].doublings.value > 0.2
    assert "Twice the unique data would be worth" in short.worth[0].sentence
    capped = plan_law(law, 1e21, max_params=free.params.value / 10)
    assert capped.params.value == pytest.approx(free.params.value / 10)
    assert capped.tokens.value == pytest.approx(10 * free.tokens.value)
    assert capped.worth[0].doublings.value > 0
    loose = plan_law(law, 1e21, max_params=free.params.value * 10)
    assert loose.params.value == pytest.approx(free.params.value, rel=1e-3)
    assert loose.worth[0].doublings.value == pytest.approx(0.0, abs=1e-3)


def test_far_and_small_budgets_are_flagged() -> None:
    law = ladder_law()
    assert "times the largest fitted compute" in plan_law(law, 1e25).notes[0]
    assert "below the smallest fitted run" in plan_law(law, 1e12).notes[0]
    assert "no draws" in plan_law(Fit.of_published("besiroglu-2024"), 1e21).notes[0]


@pytest.mark.parametrize(
    ("flops", "limits"),
    [(-1.0, {}), (float("nan"), {}), (1e20, {"max_params": 0.0}), (1e20, {"inference_tokens": -1.0})],
)
def test_impossible_budgets(flops: float, limits: dict[str, float]) -> None:
    with pytest.raises(BudgetError):
        plan_law(Fit.of_published("besiroglu-2024"), flops, **limits)  # type: ignore[arg-type]


def test_laws_without_a_split() -> None:
    with pytest.raises(FitError, match="not one of a loss by size and data"):
        plan_law(Fit.of_published("kaplan-2020-compute"), 1e20)
    params = {"E": 1.0, "A": 1.0, "alpha": 0.1, "beta": 0.2}
    uneven = Fit(law="multiplicative", estimator="published", params=params)
    with pytest.raises(FitError, match="no best split"):
        plan_law(uneven, 1e20)
