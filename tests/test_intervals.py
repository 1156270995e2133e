"""Noise of runs and trunks, and how far outside the data a query is."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.laws import intervals


def test_noise_is_shrunk_to_its_prior_when_runs_are_few() -> None:
    rng = np.random.default_rng(0)
    own = np.arange(8)
    few, many = 0.02 * rng.standard_normal(8), 0.02 * rng.standard_normal(400)
    alone = float(np.sqrt((few**2).sum() / 3))
    slopes = rng.standard_normal((len(few), 5))
    shrunk = intervals.run_noise(few, slopes, own)
    assert intervals.NOISE_PRIOR < shrunk.run < alone
    assert shrunk.df == 3 + intervals.NOISE_PRIOR_DF
    assert shrunk.total == shrunk.run
    assert intervals.run_noise(many, rng.standard_normal((400, 5)), np.arange(400)).run == pytest.approx(
        0.02, rel=0.1
    )


@pytest.mark.parametrize(("trunk", "run"), [(0.02, 0.01), (0.0, 0.02), (0.03, 0.03)])
def test_noise_of_trunks_and_runs_is_told_apart(trunk: float, run: float) -> None:
    """Residuals of a regression with five parameters, which absorb part of either; sizes are unequal."""
    rng = np.random.default_rng(1)
    cluster = np.repeat(np.arange(40), np.tile([2, 5, 8, 3], 10))
    slopes = rng.standard_normal((180, 5)) + rng.standard_normal((40, 5))[cluster]
    left = np.eye(180) - slopes @ np.linalg.pinv(slopes)
    found = [
        intervals.run_noise(
            left @ (trunk * rng.standard_normal(40)[cluster] + run * rng.standard_normal(180)),
            slopes,
            cluster,
        )
        for _ in range(60)
    ]
    assert np.mean([n.run for n in found]) == pytest.approx(run, rel=0.05)
    assert np.mean([n.total for n in found]) == pytest.approx(np.hypot(trunk, run), rel=0.08)
    scaled = intervals.run_noise(slopes[:, 0], slopes * 1e9, cluster)
    assert scaled == pytest.approx(intervals.run_noise(slopes[:, 0], slopes, cluster))


def test_parametric_draws_deviate_by_trunk_and_by_run() -> None:
    noise = intervals.Noise(run=0.003, total=0.005, df=1000)
    cluster = np.array([0, 0, 0, 1, 1, 2])
    fitted = np.linspace(0.5, 1.0, 6)
    draws = intervals.noisy_log_losses(fitted, noise, cluster, 20_000, np.random.default_rng(0)) - fitted
    covariance = draws.T @ draws / len(draws)
    expected = 0.004**2 * (cluster[:, None] == cluster) + 0.003**2 * np.eye(6)
    assert np.abs(covariance - expected).max() < 1e-6


def test_reach_is_one_inside_and_a_ratio_of_compute_along_the_best_split() -> None:
    runs = np.array([[1e6, 1e6, 1e8], [1e7, 1e9, 1e9]])

    def reach(N: float, D: float) -> float:
        return float(intervals.reach(np.array([[N], [D]]), runs)[0])

    assert reach(3e7, 2e7) == 1.0
    assert reach(4e8, 4e9) == pytest.approx(16.0)
    assert reach(4e8, 2.5e8) == pytest.approx(8.0)  # 4x in N alone
    assert reach(2.5e5, 5e6) == pytest.approx(8**0.5 * 4.0)  # below the smallest
    two = np.array([[4e8, 3e7], [4e9, 2e7]])
    assert intervals.reach(two, runs) == pytest.approx([16.0, 1.0])
    extreme = np.column_stack([runs, [1e6, 1e12]])  # 10x the compute of any, at a hundredth of the size
    assert intervals.reach(two, extreme) == pytest.approx([16.0, 1.0])
