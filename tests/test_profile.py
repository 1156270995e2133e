"""Profile likelihood against t intervals, brute force, the bootstrap, and runs that set no bound."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from test_laws import epoch, ladder, mini, trunks
from test_resample import ladder as noisy_ladder

from isoflop.errors import FitError
from isoflop.laws import Fit, fit, intervals, likelihood
from isoflop.laws.profile import profile, profiles


def straight(n: int = 30) -> tuple[Fit, np.ndarray]:
    """A nearly linear law, y = E + beta / x, and its (n, 2) design in ln y."""
    x = np.geomspace(0.7, 1.4, n)
    noise = 2e-3 * np.random.default_rng(3).standard_normal(n)
    table = {"x": x, "loss": (2.0 + 1.0 / x) * np.exp(noise)}
    found = fit(table, law="power-floor", fixed={"c": 1.0}, estimator="least-squares", bootstrap=0)
    fitted = found.loss(x=x)
    return found, np.stack([1.0 / fitted, 1.0 / x / fitted], axis=1)


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_of_a_nearly_linear_law_it_is_the_t_interval(level: float) -> None:
    found, design = straight()
    variance = sum(r * r for r in found.residuals) / 28 * np.linalg.inv(design.T @ design)
    for i, name in enumerate(("E", "beta")):
        half = intervals.student_t(0.5 + level / 2, 28) * float(np.sqrt(variance[i, i]))
        part = profile(found, name, level, robust=False)
        assert part.interval.low == pytest.approx(found.params[name] - half, abs=0.01 * half), name
        assert part.interval.high == pytest.approx(found.params[name] + half, abs=0.01 * half), name
        assert part.closed == (True, True)


@pytest.mark.parametrize("name", ["E", "A", "B", "alpha", "beta"])
def test_each_value_is_the_best_fit_with_the_parameter_held(name: str) -> None:
    """`fit` with the parameter fixed is another road to the same deviance, A and B in natural units too."""
    table = ladder(sizes=8, ratios=4, noise=0.004)
    found = fit(table, bootstrap=0, delta=0.006)
    part = profile(found, name, robust=False)
    lowest = likelihood.deviance(np.array([found.objective]), found.n, found.delta)[0]
    for i in np.linspace(0, len(part.values) - 1, 5).astype(int):
        held = fit(table, bootstrap=0, delta=0.006, fixed={name: part.values[i]})
        deviance = likelihood.deviance(np.array([held.objective]), found.n, found.delta)[0] - lowest
        assert part.deviance[i] == pytest.approx(deviance, rel=1e-3, abs=1e-3)


def test_the_interval_is_where_the_deviance_is_under_the_cut() -> None:
    part = mini().profile("alpha")
    values, deviance = np.array(part.values), np.array(part.deviance)
    assert (np.diff(values) > 0).all()
    inside = (values >= part.interval.low) & (values <= part.interval.high)
    assert (deviance[inside] <= part.cut).all()
    assert (deviance[~inside] >= part.cut).all()
    assert deviance.min() == 0.0
    assert part.interval.low < mini().params["alpha"] < part.interval.high
    assert mini().profile("alpha", 0.5).interval.high < part.interval.high


@pytest.mark.parametrize(
    ("estimator", "narrowest"), [("huber-sum", 0.5), ("least-squares", 0.8), ("huber-likelihood", 0.4)]
)
def test_of_the_240_points_it_is_near_the_bootstrap(estimator: str, narrowest: float) -> None:
    """Resampled medians scatter more than the runs are dense at them says: that side is narrower."""
    found = fit(epoch(), estimator=estimator, bootstrap=400)
    ends = found.conf_int()
    for name in ("E", "alpha", "beta"):
        one, other = found.profile(name).interval, ends[name]
        assert narrowest < (one.high - one.low) / (other.high - other.low) < 1.25, name
    alone = profile(found, "E", robust=False).interval
    if estimator == "least-squares":  # their noise is uneven, which the likelihood alone does not know
        assert alone.high - alone.low < 0.6 * (ends["E"].high - ends["E"].low)


def test_shared_trunks_widen_it_and_lone_runs_hardly_do() -> None:
    table = noisy_ladder(12, 6)
    shared = fit(table, delta=0.006, bootstrap=0)
    lone = ladder(sizes=12, ratios=6, noise=0.006)
    assert shared.profile("alpha").adjustment > 2.0
    assert fit(lone, delta=0.006, bootstrap=0).profile("alpha").adjustment < 1.5
    assert profile(shared, "alpha", robust=False).adjustment == 1.0


def test_what_is_not_identified_is_open_and_said() -> None:
    """Two sizes and a lot of noise: neither E nor A can be bounded."""
    found = fit(trunks(ladder(sizes=2, ratios=4, noise=0.03)), estimator="least-squares", bootstrap=0)
    parts = profiles(found)
    assert parts["E"].interval.low == 0.0
    assert not parts["E"].closed[0]
    assert parts["A"].interval.high == np.inf
    assert parts["alpha"].interval.high == 2.0
    assert "alpha is not identified from" in str(parts["alpha"].sentence)
    assert mini().profile("beta").sentence is None


def test_the_prior_is_part_of_the_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ladder(sizes=3, ratios=3, noise=0.01)
    found = fit(table, delta=0.02, bootstrap=0)
    assert found.prior
    part = profile(found, "alpha", robust=False)
    n, p = found.n + 2, 5
    assert part.cut == pytest.approx(n * np.log1p(intervals.student_t(0.95, n - p) ** 2 / (n - p)))
    monkeypatch.setattr(sys.modules["isoflop.laws.fit"], "PRIOR_SD", 0.05)
    strong = profile(fit(table, delta=0.02, bootstrap=0), "alpha", robust=False).interval
    assert strong.high - strong.low < 0.7 * (part.interval.high - part.interval.low)


def test_other_laws_and_a_saved_fit_have_profiles() -> None:
    table = ladder(sizes=8, ratios=4, noise=0.004)
    for law in ("kaplan", "coupled", "multiplicative", "shifted-additive"):
        for name, part in profiles(fit(table, law=law, bootstrap=0)).items():
            assert part.interval.low <= part.interval.value <= part.interval.high, (law, name)
    again = Fit.from_json(mini().to_json())
    assert again.profile("E") == mini().profile("E")


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(FitError, match="no parameter 'gamma'"):
        mini().profile("gamma")
    with pytest.raises(FitError, match="makes no sense"):
        mini().profile("alpha", level=1.5)
    with pytest.raises(FitError, match="no runs to profile"):
        Fit.of_published("besiroglu-2024").profile("alpha")
    with pytest.raises(FitError, match="was fixed at"):
        fit(ladder(), bootstrap=0, fixed={"alpha": 0.35}).profile("alpha")


def test_a_parameter_at_its_bound_has_a_profile_from_there() -> None:
    """A law without a floor, fitted with one: E is zero."""
    N = np.repeat(np.geomspace(1e7, 1e9, 6), 6)
    D = N * np.tile(np.geomspace(5, 80, 6), 6)
    loss = (30.0 / N**0.12 + 40.0 / D**0.13) * np.exp(0.002 * np.random.default_rng(3).standard_normal(36))
    found = fit({"params": N, "tokens": D, "loss": loss}, delta=0.006, bootstrap=0)
    part = found.profile("E")
    assert found.params["E"] == part.interval.low == 0.0
    assert 0.0 < part.interval.high < 2.0
    assert part.closed == (False, True)
