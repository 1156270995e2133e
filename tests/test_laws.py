"""Fits against published optima, known truths and invariances; intervals against simulated ladders."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import FitError
from isoflop.laws import ESTIMATORS, LAWS, Fit, Observations, fit, intervals, solve
from isoflop.laws.fit import Setting, best_of_starts
from isoflop.laws.solve import Array, Problem
from isoflop.laws.split import Split

EPOCH = Path(__file__).parents[2] / "shared/data/scaling/chinchilla_epoch_245.csv"
TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}
Columns = dict[str, Array]


@cache
def epoch() -> Observations:
    """The 240 points of Besiroglu et al. 2404.10102: the 5 highest losses dropped, D = C / 6N."""
    if not EPOCH.exists():
        pytest.skip(f"{EPOCH.name} is not beside the project (shared/data/scaling)")
    with EPOCH.open() as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["loss"]))[:-5]
    N, C, L = (np.array([float(row[k]) for row in rows]) for k in ("Model Size", "Training FLOP", "loss"))
    return Observations.of({"params": N, "tokens": C / 6 / N, "loss": L})


def curve(N: Array, D: Array, truth: dict[str, float] = TRUTH) -> Array:
    law = np.array([[truth[name] for name in LAWS["chinchilla"].names]])
    return np.asarray(LAWS["chinchilla"].loss(law, {"params": N, "tokens": D})[0])


def setting(table: Columns, delta: float = 1e-3, weight: Array | None = None) -> Setting:
    """The centred problem of a table."""
    law = LAWS["chinchilla"]
    x, centre = law.features(table)
    log_loss = np.log(table["loss"])[None]
    weight = np.ones_like(log_loss) if weight is None else weight
    problem = Problem(law, x, log_loss, weight, delta, np.ones(5, bool))
    sizes = np.array([table["params"], table["tokens"]])
    return Setting(problem, centre, {}, np.arange(x.shape[1]), sizes[0] * sizes[1], sizes)


def ladder(sizes: int = 4, ratios: int = 3, noise: float = 0.0, seed: int = 0) -> Columns:
    """`sizes` x `ratios` runs from 0.1M parameters up, 5, 10, 20, ... tokens a parameter."""
    N = np.repeat(1e5 * 3.0 ** np.arange(sizes), ratios)
    D = N * 5.0 * np.tile(2.0 ** np.arange(ratios), sizes)
    rng = np.random.default_rng(seed)
    return {"params": N, "tokens": D, "loss": curve(N, D) * np.exp(noise * rng.standard_normal(len(N)))}


def trunks(table: Columns) -> dict[str, object]:
    return {**table, "cluster": table["params"]}


# --- published optima -------------------------------------------------------------------------------


def test_huber_sum_reproduces_the_optimum_of_the_240_points() -> None:
    found = fit(epoch(), bootstrap=0)
    assert found.n == 240
    assert found.starts_at_optimum == found.starts
    assert found.objective == pytest.approx(0.001018274, abs=5e-10)
    for name, value, half_digit in (
        ("E", 1.81722, 5e-6),
        ("A", 477.83, 0.005),
        ("B", 2143.4, 0.05),
        ("alpha", 0.34731, 5e-6),
        ("beta", 0.36717, 5e-6),
    ):
        assert found.params[name] == pytest.approx(value, abs=1.05 * half_digit), name


def test_huber_likelihood_reproduces_the_published_optimum() -> None:
    found = fit(epoch(), estimator="huber-likelihood", bootstrap=0)
    for name, value, half_digit in (
        ("E", 1.81686, 5e-6),
        ("A", 482.006, 5e-4),
        ("B", 2085.43, 0.005),
        ("alpha", 0.34781, 5e-6),
        ("beta", 0.36585, 5e-6),
    ):
        assert found.params[name] == pytest.approx(value, abs=1.05 * half_digit), name


def test_one_step_draws_are_as_wide_as_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ladder(sizes=40, ratios=20, noise=0.01)
    refits = fit(table, estimator="least-squares", bootstrap=200)
    monkeypatch.setattr("isoflop.laws.resample.ONE_STEP_RUNS", 500)
    steps = fit(table, estimator="least-squares", bootstrap=200)
    assert refits.bootstrap == "pairs by cluster"
    assert steps.bootstrap == "one step, pairs by cluster"
    for name, error in refits.se.items():
        assert steps.se[name] == pytest.approx(error, rel=0.3), name


def test_published_errors_are_those_of_the_huber_sum_with_their_resamples() -> None:
    """Their 4,000 resamples (numpy's seed 42), fully converged; their BFGS stopped earlier on some."""
    rows = 245
    old = np.random.RandomState(42)
    kept = np.argsort(np.argsort(file_losses(), kind="stable"), kind="stable") < rows - 5
    index = np.flatnonzero(kept)
    weight = np.array(
        [np.bincount(old.choice(index, size=240, replace=True), minlength=rows) for _ in range(4000)]
    )
    order = np.argsort(file_losses(), kind="stable")[:-5]  # `epoch` is sorted by loss
    drawn = setting(
        {**epoch().arrays(), "loss": np.array(epoch().loss)}, weight=weight[:, order].astype(float)
    )
    law = LAWS["chinchilla"]
    start = np.repeat(law.recentre(fit(epoch(), bootstrap=0).theta, drawn.centre), 4000, axis=0)
    found, _, done = solve.minimise(drawn.problem, start)
    assert done.all()
    errors = dict(zip(law.names, law.uncentre(found, drawn.centre).std(axis=0, ddof=1), strict=True))
    published = {"E": 0.02566, "A": 124.52, "B": 1293.28, "alpha": 0.01540, "beta": 0.02060}
    for name, error in published.items():
        assert errors[name] == pytest.approx(error, rel=0.02 if name == "B" else 2e-3), name


def file_losses() -> Array:
    """The 245 losses in the order of the file."""
    epoch()
    with EPOCH.open() as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


def test_draws_are_optima_of_their_own_problems() -> None:
    found = fit(epoch(), bootstrap=0)
    law = LAWS["chinchilla"]
    weight = intervals.pairs_weights(np.arange(240), 12, np.random.default_rng(3))
    table = {**epoch().arrays(), "loss": np.array(epoch().loss)}
    drawn = setting(table, weight=weight)
    start = np.repeat(law.recentre(found.theta, drawn.centre), 12, axis=0)
    _, warm, done = solve.minimise(drawn.problem, start)
    assert done.all()
    for i in range(12):
        _, best, _, _ = best_of_starts(setting(table, weight=weight[i : i + 1]))
        assert warm[i] <= best * (1 + 1e-6)


def test_least_squares_agrees_with_scipy() -> None:
    from scipy.optimize import least_squares

    table = epoch()
    found = fit(table, estimator="least-squares", bootstrap=0)
    N, D, L = (np.array(v) for v in (table.params, table.tokens, table.loss))

    def residual(z: Array) -> Array:
        E, a, b, alpha, beta = z
        return np.asarray(
            np.log(E + np.exp(a - alpha * np.log(N)) + np.exp(b - beta * np.log(D))) - np.log(L)
        )

    start = [found.params["E"], np.log(400.0), np.log(2000.0), 0.34, 0.36]
    reference = least_squares(
        residual, start, x_scale=[1, 1, 1, 0.1, 0.1], xtol=1e-14, ftol=1e-14, gtol=1e-14
    )
    assert found.objective <= reference.cost * (1 + 1e-8)
    assert found.params["alpha"] == pytest.approx(reference.x[3], rel=1e-3)


def test_curvature_and_gradient_agree_with_differences() -> None:
    problem = setting(ladder(noise=0.02), np.inf).problem
    theta = np.array([[2.0, 3.0, 4.0, 0.3, 0.4]])
    gradient, hessian, _ = problem.newton(theta, np.zeros(1))
    moves = 1e-6 * np.eye(5)
    up, down = theta + moves, theta - moves
    numeric = (problem.objective(up) - problem.objective(down)) / 2e-6
    assert gradient[0] == pytest.approx(numeric, rel=1e-5)
    slope = (problem.newton(up, np.zeros(5))[0] - problem.newton(down, np.zeros(5))[0]) / 2e-6
    assert hessian[0] == pytest.approx(slope, rel=1e-4, abs=1e-6)


# --- properties -------------------------------------------------------------------------------------

truths = st.fixed_dictionaries(
    {
        "E": st.floats(0.5, 2.5),
        "A": st.floats(50.0, 800.0),
        "B": st.floats(200.0, 4000.0),
        "alpha": st.floats(0.25, 0.5),
        "beta": st.floats(0.25, 0.5),
    }
)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(truths)
def test_noiseless_ladder_gives_its_own_parameters_back(truth: dict[str, float]) -> None:
    table = ladder(sizes=8, ratios=4)
    table["loss"] = curve(table["params"], table["tokens"], truth)
    found = fit(table, bootstrap=0)
    assert not found.prior
    for name, value in truth.items():
        assert found.params[name] == pytest.approx(value, rel=1e-3), name


@settings(max_examples=10, deadline=None, derandomize=True)
@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
def test_units_and_row_order_do_not_matter(n_unit: float, d_unit: float, random: object) -> None:
    table = ladder(sizes=8, ratios=4, noise=0.005)
    order = np.random.default_rng(random.getrandbits(32)).permutation(32)  # type: ignore[attr-defined]
    other = {k: v[order] for k, v in table.items()}
    other["params"], other["tokens"] = other["params"] * n_unit, other["tokens"] * d_unit
    one, two = fit(table, bootstrap=0), fit(other, bootstrap=0)
    assert two.objective == pytest.approx(one.objective, rel=1e-8)
    for name in ("E", "alpha", "beta"):
        assert two.params[name] == pytest.approx(one.params[name], rel=1e-4), name
    assert two.loss(1e9 * n_unit, 1e10 * d_unit) == pytest.approx(one.loss(1e9, 1e10), rel=1e-5)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.floats(0.0, 0.1), st.sampled_from([1e-3, np.inf]))
def test_never_worse_than_the_best_of_its_starts(seed: int, noise: float, delta: float) -> None:
    law = LAWS["chinchilla"]
    whole = setting(ladder(noise=noise, seed=seed), delta)
    problem = whole.problem
    starts = law.start_grid(6.0)
    projected, _, _ = solve.minimise(problem, starts, free=np.arange(5) < 3)
    theta, objective, _, _ = best_of_starts(whole)
    assert objective <= problem.objective(projected).min() * (1 + 1e-9) + 1e-15
    assert (theta >= law.lower).all()
    assert (theta <= law.upper).all()


# --- small ladders ----------------------------------------------------------------------------------


def test_every_estimator_fits_a_small_ladder() -> None:
    N, D = np.array([1e7]), np.array([2e8])
    for estimator in ESTIMATORS:
        found = fit(trunks(ladder(noise=0.003)), estimator=estimator, bootstrap=20)
        assert found.loss(N, D) == pytest.approx(curve(N, D), rel=0.03), estimator


@pytest.mark.parametrize("clustered", [True, False])
def test_mini_ladder_predicts_eight_times_its_compute(clustered: bool) -> None:
    """4 sizes x 3 token counts with 0.5% noise: truth and new runs lie inside in most seeds."""
    N, D = 2.7e6 * 8**0.5, 2.7e6 * 20 * 8**0.5
    truth = float(curve(np.array([N]), np.array([D]))[0])
    inside, run_inside, errors, split_inside = 0, 0, [], 0
    best = Split(LAWS["chinchilla"]).optimum(np.array([list(TRUTH.values())]), 6 * N * D)[0][0]
    for seed in range(20):
        table = ladder(noise=0.005, seed=seed)
        found = fit(trunks(table) if clustered else table, bootstrap=200, seed=seed)
        assert found.prior
        one = found.predict(N, D)
        assert one.extrapolation == pytest.approx(8.0)
        run = truth * np.exp(0.005 * np.random.default_rng(1000 + seed).standard_normal())
        inside += one.low <= truth <= one.high
        run_inside += one.low <= run <= one.high
        errors.append(one.value / truth - 1)
        split = found.optimum(6 * N * D).params
        split_inside += split.low <= best <= split.high
        assert (one.high - one.low) / truth < 0.18
    assert min(inside, run_inside) >= 18
    assert split_inside >= 16
    assert float(np.sqrt(np.mean(np.square(errors)))) < 0.02


def test_hopeless_ladders_do_not_crash() -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        table = ladder(sizes=2, ratios=3)
        table["loss"] = 4.0 + rng.standard_normal(6) * rng.choice([0.0, 0.3])
        found = fit(trunks(table), bootstrap=50)
        one = found.predict(1e7, 1e8)
        assert 0 < one.low <= one.value <= one.high < 20
        assert json.loads(found.to_json())
        assert found.summary()


def test_words_about_what_the_data_cannot_answer() -> None:
    words = " ".join(fit(trunks(ladder(noise=0.01, seed=1)), bootstrap=100).diagnostics)
    assert "Weak prior on alpha and beta" in words
    assert "Only 4 independent clusters" in words
    spoiled = trunks(ladder(noise=0.001))
    spoiled["loss"] = np.where(np.arange(12) >= 9, 1.25, 1.0) * ladder()["loss"]
    assert "One cluster of runs drives the fit" in " ".join(fit(spoiled, bootstrap=50).diagnostics)
    (outliers,) = fit(epoch(), bootstrap=200).diagnostics
    assert outliers.startswith("Rows far from the law (kept; the first row is 0): 237 (+5.0%)")


# --- the result -------------------------------------------------------------------------------------


@cache
def mini() -> Fit:
    return fit(trunks(ladder(sizes=5, ratios=4, noise=0.003)), bootstrap=300, seed=4)


def test_json_both_ways_and_same_answers() -> None:
    again = Fit.from_json(mini().to_json())
    assert again == mini()
    assert again.digest() == mini().digest()
    assert again.predict(1e8, 1e9) == mini().predict(1e8, 1e9)
    assert fit(trunks(ladder(sizes=5, ratios=4, noise=0.003)), bootstrap=300, seed=4) == mini()


def test_prediction_widens_with_distance_and_level() -> None:
    widths = []
    for far in (1.0, 4.0, 16.0, 64.0):
        one = mini().predict(8.1e6 * far**0.5, 3.24e8 * far**0.5)
        widths.append(one.high / one.low)
    assert widths == sorted(widths)
    at = (1e8, 1e9)
    assert mini().predict(*at, interval=0.5).high < mini().predict(*at).high
    assert mini().mean(*at).high <= mini().predict(*at).high
    assert mini().predict_draws([1e8, 2e8], 1e9).shape == (300, 2)
    assert mini().predict(*at).plain().of == "new run"


def test_optimum_is_the_best_split_and_compute_for_inverts_it() -> None:
    table = dict(ladder(sizes=8, ratios=4))
    table["flops"] = 8.5 * table["params"] ** 0.98 * table["tokens"]
    found = fit(table, bootstrap=0)
    assert found.flops_model.kappa == pytest.approx(8.5)
    assert found.flops_model.gamma == pytest.approx(0.98)
    best = found.optimum(1e17)
    N = best.params.value * np.geomspace(0.5, 2, 101)
    D = 1e17 / found.flops_model.per_token(N)
    assert best.loss.value <= found.loss(N, D).min() * (1 + 1e-12)
    assert found.flops(best.params.value, best.tokens.value) == pytest.approx(1e17)
    assert found.compute_for(best.loss.value)[0] == pytest.approx(1e17, rel=1e-6)
    assert np.isnan(found.compute_for(0.9 * found.params["E"])[0])


def test_flops_are_six_n_d_when_not_given() -> None:
    assert mini().flops(1e6, 1e7) == 6e13


def test_ordered_holdouts_predict_dearer_runs() -> None:
    rows = fit(epoch(), bootstrap=0).holdout
    assert rows
    assert all(row.ratio >= 1 and row.flops > row.fitted_max_flops for row in rows)
    assert np.median([abs(row.error) for row in rows]) < 0.05


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0])
def test_impossible_levels(level: float) -> None:
    with pytest.raises(FitError, match="makes no sense"):
        mini().predict(1e6, 1e7, interval=level)


# --- bad tables -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": [4.0, 3.9, float("nan"), 3.7, 3.6, 3.5, 3.4]}, r"Row 2 .* loss = nan"),
        ({"loss": [4.0, 3.9, 3.8, 3.7, 0.0, 3.5, 3.4]}, r"Row 4 .* loss = 0"),
        ({"tokens": [1e6, -2e6, 3e6, 4e6, 5e6, 6e6, 7e6]}, r"Row 1 .* tokens"),
        ({"params": [1e6] * 7}, "same size N"),
        ({"tokens": [1e6] * 7}, "same token count D"),
        ({"loss": [4.0] * 6}, "Column 'params' has 7 rows"),
        ({"loss": ["4", "x", "3", "3", "3", "3", "3"]}, "not a number"),
        ({"flops": [1e12, 0.0, 1e12, 1e12, 1e12, 1e12, 1e12]}, r"Row 1 .* flops"),
        ({"loss": None}, "no column 'loss'"),
    ],
)
def test_bad_tables_are_named(change: dict[str, object], message: str) -> None:
    table: dict[str, object] = {
        "params": [1e6, 2e6, 3e6, 4e6, 5e6, 6e6, 7e6],
        "tokens": [1e7, 1e7, 3e7, 2e7, 5e7, 4e7, 7e7],
        "loss": [4.0, 3.9, 3.8, 3.7, 3.6, 3.5, 3.4],
    }
    with pytest.raises(FitError, match=message) as caught:
        fit({**table, **change})
    assert caught.value.hint


def test_bad_options_are_named() -> None:
    table = ladder()
    with pytest.raises(FitError, match="5 runs and the law has 5"):
        fit({k: v[:5] for k, v in table.items()})
    with pytest.raises(FitError, match="bootstrap is -1"):
        fit(table, bootstrap=-1)
    with pytest.raises(FitError, match="no law named"):
        fit(table, law="chinchila")
    with pytest.raises(FitError, match="no estimator named"):
        fit(table, estimator="mean")


def test_import_is_light() -> None:
    heavy = ("torch", "scipy", "sympy", "pyarrow", "arviz", "xarray", "pandas")
    code = f"import sys, isoflop.laws, isoflop.gain; print(*(m in sys.modules for m in {heavy}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False"] * len(heavy)


def test_a_wide_huber_is_least_squares_until_a_run_is_far_off() -> None:
    table = ladder(sizes=5, ratios=4, noise=0.003)
    wide = fit(table, delta=1.0, bootstrap=0)
    squares = fit(table, estimator="least-squares", bootstrap=0)
    assert (wide.delta, squares.delta) == (1.0, np.inf)
    assert wide.params == pytest.approx(squares.params, rel=1e-4)
    table["loss"][5] *= 1.2
    truth = squares.loss(2e7, 4e8)[0]
    robust = fit(table, delta=0.006, bootstrap=0).loss(2e7, 4e8)[0]
    misled = fit(table, estimator="least-squares", bootstrap=0).loss(2e7, 4e8)[0]
    assert abs(robust - truth) < 0.5 * abs(misled - truth)
    with pytest.raises(FitError, match="Huber width"):
        fit(table, delta=0.0)


def test_a_law_held_exact_has_no_model_error() -> None:
    table = ladder(noise=0.005)
    exact, calibrated = fit(table, model_error=0.0, bootstrap=100), fit(table, bootstrap=100)
    at = {"params": 1e8, "tokens": 1e9}
    assert (exact.model_sd(**at), exact.params) == (0.0, calibrated.params)
    narrow, wide = exact.predict(**at), calibrated.predict(**at)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    far_in_size = calibrated.model_sd(params=1e8, tokens=1e6)
    assert far_in_size > calibrated.model_sd(params=1e6, tokens=1e7)
    with pytest.raises(FitError, match="model error"):
        fit(table, model_error=-0.1)


def test_tables_of_one_or_two_compute_slices_are_fitted() -> None:
    N = np.geomspace(1e6, 1e8, 12)
    for budgets in ([1e17], [1e16, 1e17], [1e16, 1e16 * 1.0001, 1e17]):
        C = np.repeat(budgets, 12)
        D = C / 6 / np.tile(N, len(budgets))
        table = {"params": np.tile(N, len(budgets)), "tokens": D, "loss": curve(np.tile(N, len(budgets)), D)}
        assert np.isfinite(fit(table, bootstrap=50).loss(1e7, 1e9)).all()
