"""The ways to resample clusters: their weights, their leverage, when each is chosen, and that they cover."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.laws import LAWS, Fit, fit, intervals
from isoflop.laws.linear import linearise, without_leverage
from isoflop.laws.solve import Array, Prior, Problem

TRUTH = np.array([[1.8, 480.0, 2100.0, 0.35, 0.37]])
NOISE = 0.0045


def ladder(sizes: int, counts: int, seed: int = 0) -> dict[str, Array]:
    """Runs whose trunks and branches deviate alike."""
    rng = np.random.default_rng(seed)
    N = np.repeat(np.geomspace(1e7, 3e8, sizes), counts)
    D = N * np.tile(np.geomspace(5, 160, counts), sizes)
    trunk = np.unique(N, return_inverse=True)[1]
    noise = NOISE * (rng.standard_normal(sizes)[trunk] + rng.standard_normal(len(N)))
    loss = LAWS["chinchilla"].loss(TRUTH, {"params": N, "tokens": D})[0] * np.exp(noise)
    return {"params": N, "tokens": D, "loss": loss, "cluster": trunk}


def line(n: int, seed: int = 0) -> tuple[Problem, Array, Array]:
    """A nearly linear problem at its optimum, with its (n, 2) design: y = E + beta / x, c held at 1."""
    law = LAWS["power-floor"]
    x = np.geomspace(0.8, 1.25, n)
    noise = 1e-3 * np.random.default_rng(seed).standard_normal(n)
    found = fit(
        {"x": x, "loss": (2.0 + 1.0 / x) * np.exp(noise)}, law="power-floor", fixed={"c": 1.0},
        estimator="least-squares", bootstrap=0,
    )  # fmt: skip
    features, _ = law.features({"x": x}, centred=False)
    log_loss = np.log(np.array(found.observations.loss))[None]
    free = np.array([True, True, False])
    problem = Problem(law, features, log_loss, np.ones_like(log_loss), np.inf, free)
    fitted = found.loss(x=x)
    return problem, found.theta, np.stack([1.0 / fitted, 1.0 / x / fitted], axis=1)


def test_webb_weights_have_six_values_mean_zero_and_variance_one() -> None:
    weights = intervals.webb_weights(5, 40_000, np.random.default_rng(0))
    assert weights.shape == (40_000, 5)
    size = np.sqrt([0.5, 1.0, 1.5])
    assert np.unique(weights) == pytest.approx([*-size[::-1], *size])
    assert weights.mean() == pytest.approx(0.0, abs=0.01)
    assert weights.var() == pytest.approx(1.0, abs=0.01)
    assert np.abs(np.corrcoef(weights.T) - np.eye(5)).max() < 0.03


def test_residuals_without_leverage_are_those_of_a_fit_without_the_cluster() -> None:
    problem, theta, design = line(12)
    cluster = np.arange(12) // 3
    residual = (np.log(problem.law.value(theta, problem.x)) - problem.log_loss)[0]
    corrected = without_leverage(problem, theta, cluster, residual, 1.0)
    for g in range(4):
        kept = cluster != g
        left, *_ = np.linalg.lstsq(design[kept], residual[kept], rcond=None)
        assert corrected[~kept] == pytest.approx((residual - design @ left)[~kept], rel=1e-3, abs=1e-8)


def test_half_the_leverage_correction_gives_even_noise_its_variance() -> None:
    problem, theta, design = line(10)
    hat = design @ np.linalg.solve(design.T @ design, design.T)
    linear = linearise(problem, theta)
    assert linear.information == pytest.approx(design.T @ design, rel=1e-3)
    residual = np.random.default_rng(1).standard_normal(10)
    corrected = without_leverage(problem, theta, np.arange(10), residual, 0.5)
    assert corrected == pytest.approx(residual / np.sqrt(1.0 - np.diag(hat)), rel=1e-3)


def test_the_weak_prior_counts_as_information() -> None:
    table = ladder(4, 3)
    law = LAWS["chinchilla"]
    x, centre = law.features({k: table[k] for k in ("params", "tokens")})
    log_loss = np.log(table["loss"])[None]
    problem = Problem(law, x, log_loss, np.ones_like(log_loss), np.inf, np.ones(5, bool))
    theta = law.recentre(TRUTH, centre)
    prior = Prior(noise=0.01, centre=np.full((1, 2), np.log(0.35)), sd=0.4, at=(3, 4))
    with_prior = Problem(law, x, log_loss, np.ones_like(log_loss), np.inf, np.ones(5, bool), prior)
    more = linearise(with_prior, theta).information - linearise(problem, theta).information
    assert np.diag(more) == pytest.approx([0, 0, 0, (0.01 / 0.4 / 0.35) ** 2, (0.01 / 0.4 / 0.37) ** 2])


@pytest.mark.parametrize(
    ("sizes", "one_step", "method"),
    [(5, 5000, "parametric"), (19, 5000, "parametric"), (19, 60, "one step, wild"), (20, 5000, "pairs")],
)
def test_auto_goes_by_clusters_and_runs(
    sizes: int, one_step: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoflop.laws.resample.ONE_STEP_RUNS", one_step)
    assert fit(ladder(sizes, 4), bootstrap=20).bootstrap == f"{method} by cluster"


@pytest.mark.parametrize("method", ["pairs", "wild", "parametric"])
def test_the_caller_can_choose_how_to_resample(method: str) -> None:
    found = fit(ladder(6, 4), delta=0.006, bootstrap=60, resample=method)
    assert found.bootstrap == f"{method} by cluster"
    assert len(found.draws) + found.draws_failed == 60
    assert np.ptp(found.draws_array, axis=0).min() > 0
    again = fit(ladder(6, 4), delta=0.006, bootstrap=60, resample=method)
    assert again.draws == found.draws


def test_wild_draws_of_many_runs_are_as_wide_in_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ladder(12, 20)
    refits = fit(table, estimator="least-squares", bootstrap=400, resample="wild")
    monkeypatch.setattr("isoflop.laws.resample.ONE_STEP_RUNS", 100)
    steps = fit(table, estimator="least-squares", bootstrap=400, resample="wild")
    assert steps.bootstrap == "one step, wild by cluster"
    for name in ("E", "alpha", "beta"):
        assert steps.se[name] == pytest.approx(refits.se[name], rel=0.3), name


def test_unknown_ways_and_a_single_cluster_are_refused() -> None:
    with pytest.raises(FitError, match="no way to resample named 'wylde'") as caught:
        fit(ladder(4, 3), resample="wylde")
    assert "wild" in caught.value.hint
    table = {**ladder(4, 3), "cluster": ["one"] * 12}
    with pytest.raises(FitError, match="cannot be resampled by wild"):
        fit(table, bootstrap=10, resample="wild")
    assert fit(table, bootstrap=10).bootstrap == "parametric by cluster"


def coverage(found: list[Fit], name: str) -> float:
    truth = dict(zip(LAWS["chinchilla"].names, TRUTH[0], strict=True))[name]
    ends = [fitted.conf_int(0.9)[name] for fitted in found]
    return float(np.mean([e.low <= truth <= e.high for e in ends]))


def test_wild_draws_cover_with_ten_clusters_and_are_narrower_than_pairs() -> None:
    """Of 90% intervals 80% or more in 40 ladders; the record has 150 of each kind."""
    wild, pairs = (
        [fit(ladder(10, 6, seed), delta=0.006, bootstrap=200, resample=way, seed=seed) for seed in range(40)]
        for way in ("wild", "pairs")
    )
    for name in ("E", "alpha", "beta"):
        assert coverage(wild, name) >= 0.8, name
    width = [
        np.median([e.high - e.low for e in (found.conf_int()["E"] for found in way)]) for way in (wild, pairs)
    ]
    assert width[0] < width[1]


def test_widening_is_students_and_vanishes_with_many_clusters() -> None:
    assert intervals.cluster_widening(20) == pytest.approx(1.7291 / 1.6449, rel=1e-4)
    assert intervals.cluster_widening(20, pairs=True) == pytest.approx(1.0512 * np.sqrt(20 / 19), rel=1e-4)
    assert intervals.cluster_widening(240, pairs=True) == pytest.approx(1.0, abs=0.007)
