"""Growth models: known parameters are found again, sums of squares and draws are those of theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from isoflop.errors import TrendError
from isoflop.trend.growth import Growth, curves, fit, fit_all, solve
from isoflop.trend.points import Floats
from isoflop.trend.shapes import EDGE, SHAPES, Span, break_grid, edge

YEARS = np.sort(np.random.default_rng(1).uniform(2010, 2025, 120))
T = YEARS - 2010


def truth(model: str) -> tuple[Floats, dict[str, float]]:
    """(n,) noiseless ln values of a model, and parameters that a fit has to find."""
    if model == "exponential":
        return 3 + 1.4 * T, {"rate": 1.4}
    if model == "quadratic":
        return 3 + 1.4 * T - 0.03 * T**2, {"curvature": -0.03}
    if model == "kinked":
        return 3 + 0.7 * T + 0.8 * np.maximum(T - 7.3, 0), {"rate": 0.7, "change": 0.8, "break": 2017.3}
    if model == "kinked-2":
        two = 3 + 0.5 * T + 1.5 * np.maximum(T - 5.1, 0) - 1.2 * np.maximum(T - 10.2, 0)
        return two, {"rate": 0.5, "change 1": 1.5, "change 2": -1.2}
    if model == "discontinuous":
        jumped = 3 + 0.7 * T + (T >= 6.0) * (2.5 + 0.4 * (T - 6.0))
        return jumped, {"rate": 0.7, "change": 0.4}
    if model == "hyperbolic":
        return 20 - 6.0 * np.log(2032.0 - YEARS), {"t0": 2032.0, "power": 6.0}
    if model == "logistic":
        return 30 - np.logaddexp(0, -1.1 * (YEARS - 2019.5)), {
            "middle": 2019.5,
            "steepness": 1.1,
            "ceiling": 30,
        }
    x = np.log(YEARS - YEARS[0] + 1)
    bent = 2 + 4.0 * x + 5.0 * 0.1 * np.logaddexp(0, (x - np.log(8.0)) / 0.1)
    return bent, {"power": 4.0, "change": 5.0, "bend": YEARS[0] + 7.0}


@pytest.mark.parametrize("model", SHAPES)
def test_known_parameters_are_found_again(model: str) -> None:
    logs, known = truth(model)
    found = fit(YEARS, logs, model)
    assert found.n == 120
    for name, value in known.items():
        assert found.params[name] == pytest.approx(value, rel=2e-3), name
    assert np.abs(found.predict(YEARS) - logs).max() < 0.01


@pytest.mark.parametrize("model", SHAPES)
def test_the_true_model_wins_among_noisy_ones(model: str) -> None:
    logs, _ = truth(model)
    noisy = logs + 0.05 * np.random.default_rng(2).standard_normal(120)
    found, missing = fit_all(YEARS, noisy)
    assert found.keys() == SHAPES.keys()
    assert not missing
    best = min(found.values(), key=lambda g: g.bic)
    assert best.model == model


def test_criteria_are_those_of_a_normal_likelihood() -> None:
    logs = truth("exponential")[0] + np.random.default_rng(3).standard_normal(120)
    for model, k in (("exponential", 3), ("kinked", 5), ("quadratic", 4), ("logistic", 4), ("kinked-2", 7)):
        found = fit(YEARS, logs, model)
        residual = logs - found.predict(YEARS)
        assert found.k == k
        assert found.rss == pytest.approx((residual**2).sum())
        deviance = -2 * stats.norm.logpdf(residual, scale=np.sqrt(found.rss / 120)).sum()
        assert found.bic == pytest.approx(deviance + k * np.log(120))
        assert found.aicc == pytest.approx(deviance + 2 * k + 2 * k * (k + 1) / (120 - k - 1))


def test_the_line_is_that_of_numpy_in_any_units_of_time() -> None:
    logs = truth("exponential")[0] + np.random.default_rng(3).standard_normal(120)
    slope, level = np.polyfit(YEARS, logs, 1)
    found = fit(YEARS, logs)
    assert found.params["rate"] == pytest.approx(slope)
    assert found.predict(np.array([2030.0]))[0] == pytest.approx(slope * 2030 + level)
    assert found.rates == {"rate": pytest.approx(slope)}


@pytest.mark.parametrize("model", SHAPES)
def test_weighted_grid_fits_are_those_of_numpy(model: str) -> None:
    rng = np.random.default_rng(4)
    logs = truth("kinked")[0] + 0.3 * rng.standard_normal((3, 120))
    weights = rng.multinomial(120, np.full(120, 1 / 120), size=3).astype(float)
    shape, span = SHAPES[model], Span.of(YEARS)
    u = YEARS - span.centre
    s = shape.grid(u, logs[0], span)
    found = solve(shape, u, logs, weights, s, span)
    for d in range(3):
        root = np.sqrt(weights[d])
        best = np.inf
        for row in s:
            X, o = shape.basis(u, row[None], span)[0], shape.offset(u, row[None], span)[0]
            c = np.linalg.lstsq(root[:, None] * X, root * (logs[d] - o), rcond=None)[0]
            best = min(best, float((weights[d] * (logs[d] - o - X @ c) ** 2).sum()))
        assert found.rss[d] == pytest.approx(best, rel=1e-5)
        curve = curves(shape, found.c[d : d + 1], s[found.at[d : d + 1]], span, YEARS)[0]
        assert (weights[d] * (logs[d] - curve) ** 2).sum() == pytest.approx(best, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(-50, 50), st.floats(0.1, 10), st.integers(-30, 30))
def test_fits_follow_shifts_of_value_and_date(level: float, scale: float, years: int) -> None:
    logs = truth("kinked")[0] + 0.3 * np.random.default_rng(5).standard_normal(120)
    one, other = fit(YEARS, logs, "kinked"), fit(YEARS + years, level + scale * logs, "kinked")
    assert other.params["break"] == pytest.approx(one.params["break"] + years, abs=1e-2)
    assert other.params["change"] == pytest.approx(scale * one.params["change"], rel=1e-2)


def test_draws_of_a_line_have_the_spread_of_theory() -> None:
    rng = np.random.default_rng(6)
    found = fit(YEARS, 3 + 1.4 * T + rng.standard_normal(120))
    at = np.array([2020.0, 2030.0])
    drawn = found.draws(at, 3000, rng)
    assert drawn.shape == (3000, 2)
    u = YEARS - YEARS.mean()
    sd = found.sd * np.sqrt(1 / 120 + (at - YEARS.mean()) ** 2 / (u @ u))
    assert drawn.std(axis=0) == pytest.approx(sd, rel=0.15)
    assert drawn.mean(axis=0) == pytest.approx(found.predict(at), abs=0.05)


@pytest.mark.parametrize("model", SHAPES)
def test_draws_of_every_model_lie_about_its_curve(model: str) -> None:
    rng = np.random.default_rng(7)
    found = fit(YEARS, truth(model)[0] + 0.05 * rng.standard_normal(120), model)
    drawn = found.draws(YEARS[::10], 100, rng)
    assert drawn.shape == (100, 12)
    assert np.median(drawn, axis=0) == pytest.approx(found.predict(YEARS[::10]), abs=0.3)


def test_beyond_a_singularity_there_is_no_value() -> None:
    found = fit(YEARS, truth("hyperbolic")[0], "hyperbolic")
    assert np.isposinf(found.predict(np.array([2033.0])))[0]
    assert np.isfinite(found.predict(np.array([2031.0])))[0]


def test_a_growth_satisfies_what_limits_ask_for() -> None:
    found: Growth = fit(YEARS, truth("kinked")[0], "kinked")
    assert found.rates == {"rate 1": pytest.approx(0.7, abs=1e-3), "rate 2": pytest.approx(1.5, abs=1e-3)}


@pytest.mark.parametrize("model", SHAPES)
def test_too_few_points_leave_a_model_out(model: str) -> None:
    least = SHAPES[model].least
    with pytest.raises(TrendError, match="too few") as refused:
        fit(YEARS[: least - 1], T[: least - 1], model)
    assert "needs" in refused.value.hint
    _, missing = fit_all(YEARS[:5], T[:5])
    assert {sentence.split()[0] for sentence in missing} == SHAPES.keys() - {"exponential"}


def test_points_of_one_date_have_no_rate() -> None:
    with pytest.raises(TrendError, match="of 1 dates"):
        fit(np.full(9, 2020.0), np.arange(9.0))
    with pytest.raises(TrendError, match="no growth model 'linear'"):
        fit(YEARS, T, "linear")


def test_breaks_leave_points_on_either_side() -> None:
    for n, most in ((7, 60), (8, 60), (9, 60), (500, 10)):
        u = np.arange(n, dtype=np.float64)
        at = break_grid(u, most)
        assert len(at) == min(max(n - 2 * edge(n) + 1, 0), most)
        assert all(edge(n) <= (u < v).sum() <= n - edge(n) for v in at)
    assert edge(20) == EDGE
    same = np.repeat([1.0, 2.0], 10)
    assert break_grid(same, 60).tolist() == [1.5]
