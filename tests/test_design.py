"""The next run: information against brute force, and what a change of recipe is worth."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.errors import BudgetError, FitError
from isoflop.gain import compare
from isoflop.laws import Fit, fit
from isoflop.laws.design import next_run

TRUTH = (1.8, 480.0, 2100.0, 0.35, 0.37)


def curve(N: np.ndarray, D: np.ndarray, speed: float = 1.0, floor: float = 0.0) -> np.ndarray:
    """The law of a recipe that turns D tokens into `speed` times as many."""
    E, A, B, alpha, beta = TRUTH
    return E - floor + A / N**alpha + B / (speed * D) ** beta


def runs(
    noise: float = 0.003, seed: int = 0, speed: float = 1.0, floor: float = 0.0
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    N = np.repeat(np.geomspace(1e7, 3e8, 6), 6)
    D = N * np.tile(np.geomspace(5, 80, 6), 6)
    return {
        "params": N,
        "tokens": D,
        "loss": curve(N, D, speed, floor) * np.exp(noise * rng.standard_normal(36)),
    }


def law_of(**options: float) -> Fit:
    return fit(runs(**options), estimator="least-squares", bootstrap=200)  # type: ignore[arg-type]


def test_the_chosen_run_narrows_the_target_more_than_others() -> None:
    """By refits: repeat each candidate's run in the table and look at the spread of the target over draws."""
    table, target = runs(), 1e21
    law = fit(table, estimator="least-squares", bootstrap=400)
    found = next_run(law, target, share=0.02)
    best = law.optimum(target)
    at = best.params.value, best.tokens.value

    def spread(N: float, D: float) -> float:
        more = {"params": np.append(table["params"], N), "tokens": np.append(table["tokens"], D),
                "loss": np.append(table["loss"], curve(np.array([N]), np.array([D])))}  # fmt: skip
        draws = fit(more, estimator="least-squares", bootstrap=400).predict_draws(*at)[:, 0]
        return float(np.log(draws).std())

    chosen = spread(found.runs[0].params, found.runs[0].tokens)
    assert chosen < spread(1e7, 5e7)
    assert chosen < float(np.log(law.predict_draws(*at)[:, 0]).std())


def test_information_agrees_with_the_bootstrap() -> None:
    law = law_of()
    found = next_run(law, 1e20)
    split = np.log(law.split().optimum(law.draws_array, 1e20)[0])
    assert np.log(found.split_factor) / 1.645 == pytest.approx(split.std(), rel=0.5)


def test_widths_fall_and_prices_are_positive() -> None:
    found = next_run(law_of(), 1e21)
    assert all(r.loss_half_width < found.loss_half_width for r in found.runs)
    assert all(r.split_factor <= found.split_factor for r in found.runs)
    assert all(r.price > 0 and r.flops <= 1e20 for r in found.runs)
    assert found.sentence.startswith("Next: ")
    by_split = next_run(law_of(), 1e21, aim="split")
    assert (
        by_split.runs[0].regret_saved - by_split.runs[0].price
        >= found.runs[0].regret_saved - found.runs[0].price
    )


def test_a_well_known_law_needs_no_further_run() -> None:
    assert not next_run(law_of(noise=1e-4), 1e20).worth_it


def test_impossible_designs() -> None:
    with pytest.raises(BudgetError, match="makes no sense"):
        next_run(law_of(), -1.0)
    with pytest.raises(BudgetError, match="no run costs as little"):
        next_run(law_of(), 1e15)
    with pytest.raises(FitError, match="no aim"):
        next_run(law_of(), 1e20, aim="luck")
    with pytest.raises(FitError, match="no runs to add to"):
        next_run(Fit.of_published("besiroglu-2024"), 1e20)


def test_a_recipe_twice_as_fast_in_data_gains_what_it_should() -> None:
    base, other = law_of(), law_of(seed=1, speed=2.0)
    found = compare(base, other, [1e18, 1e20])
    for scale in found.scales:
        # Twice the tokens for the same compute: less than one doubling of C, more than none.
        truth = _doublings(scale.flops, speed=2.0)
        assert scale.doublings.low <= truth <= scale.doublings.high
    assert "tenfold" in found.sentence
    back = compare(other, base, [1e18, 1e20])
    assert back.scales[0].doublings.value < 0


def _doublings(flops: float, speed: float) -> float:
    """By brute force on the truth."""
    N = np.geomspace(1e5, 1e12, 20_001)
    best = curve(N, flops / 6 / N, speed).min()
    budgets = np.geomspace(flops, 16 * flops, 400)
    reached = np.array([curve(N, c / 6 / N).min() for c in budgets])
    return float(np.log2(np.interp(-best, -reached, budgets) / flops))


def test_the_same_recipe_is_worth_nothing() -> None:
    found = compare(law_of(), law_of(seed=1))
    assert all(s.doublings.low <= 0 <= s.doublings.high for s in found.scales)
    assert "not told apart from nothing" in found.sentence
    assert not any(s.extrapolated for s in found.scales)
    assert compare(law_of(), law_of(seed=1), [1e25]).scales[0].extrapolated


def test_nats_against_bits_is_asked_about() -> None:
    base, table = law_of(), runs(seed=1)
    other = fit({**table, "loss": table["loss"] / np.log(2)}, estimator="least-squares", bootstrap=100)
    assert "nats and the other in bits" in compare(base, other).sentence
    assert "bits" not in compare(base, law_of(seed=1)).sentence


def test_recipes_that_cannot_be_compared() -> None:
    published = Fit.of_published("besiroglu-2024")
    with pytest.raises(FitError, match="not measured at any common compute"):
        compare(published, Fit.of_published("hoffmann-2022"))
    with pytest.raises(FitError, match="makes no sense"):
        compare(published, published, [-1.0])
    assert compare(published, published, [1e20]).scales[0].doublings.value == pytest.approx(0.0, abs=1e-9)
