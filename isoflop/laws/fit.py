"""Fit a law to a table of runs: projected starts, one optimum, bootstrap, hold-outs and diagnostics.

Variable projection: on a grid of exponents the linear parameters are solved first (bounded, with the
exponents fixed); from there all parameters move together by Newton steps whose linear block is eliminated
exactly, so every start reaches the same optimum (see `solve`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.errors import FitError
from isoflop.laws import intervals, solve
from isoflop.laws.diagnose import sentences
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit, FlopsModel, Holdout, Observations
from isoflop.laws.solve import Array, Prior, Problem

DELTA = 1e-3  # width of the Huber loss on the log of the loss: Hoffmann et al. 2203.15556
ESTIMATORS: dict[str, str] = {
    "huber-sum": "sum of Huber losses on ln L, of width 1e-3 if not given, as Hoffmann et al. 2203.15556",
    "least-squares": "sum of squares on ln L",
    "huber-likelihood": "Huber density with a free scale, as Besiroglu et al. 2404.10102",
}
SMALL_RUNS, FEW_CLUSTERS = 30, 8  # below either, the weak prior on the exponents is used
PRIOR_EXPONENT, PRIOR_SD = 0.35, 0.4  # published alpha, beta: 0.28-0.48 on text; sd of the logarithm
PRIOR_NOISE, PRIOR_NOISE_DF = 0.01, 4  # run-to-run sd assumed by the prior's strength, with its weight
HOLDOUTS = 6  # ordered hold-out experiments at most
HOLDOUT_TARGETS = 12  # dearer runs predicted in each, at most


@dataclass(frozen=True)
class Setting:
    """What one fit needs: the centred problem (m = 1) and how to start it."""

    problem: Problem
    centre: Array
    cluster: npt.NDArray[np.intp]
    compute: Array


def fit(
    table: Observations | Any,
    *,
    law: str = "chinchilla",
    estimator: str = "huber-sum",
    delta: float = DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    keep_draws: int = 400,
) -> Fit:
    """Fit `law` to a table with columns params, tokens, loss (nats a token) and optional flops, cluster.

    `delta` is the Huber width of "huber-sum", on the log of the loss: the published 1e-3 is far below the
    noise of runs and fits nearly their medians; 1.345 times the noise is 95% as efficient as least squares.
    `bootstrap` refits resample whole clusters (runs of one trunk are not independent); at most
    `keep_draws` of them stay in the result. With fewer than 30 runs or 8 clusters a weak log-normal prior
    (centre 0.35, sd of the logarithm 0.4) on the exponents keeps the extrapolation sane.
    Raises FitError on a table or an option that cannot be used.
    """
    observations = Observations.of(table)
    chosen = law_named(law)
    check_options(estimator, delta, bootstrap)
    check(observations, len(chosen.names))

    setting = _setting(observations, chosen, np.inf if estimator == "least-squares" else delta)
    if estimator == "huber-likelihood":
        setting = _free_scale(setting)
    prior = _prior(setting)
    if prior is not None:
        setting = replace(setting, problem=replace(setting.problem, prior=prior))
    theta, objective, at_optimum, starts = best_of_starts(setting.problem)
    fitted = np.log(chosen.value(theta, setting.problem.x)[0])
    residual = fitted - setting.problem.log_loss[0]
    noise = intervals.run_noise(residual, len(chosen.names), setting.cluster)
    draws, method, failed = _bootstrap(setting, theta, fitted, noise, bootstrap, seed)
    holdout, experiment = _holdout(setting, theta)
    result = Fit(
        law=law,
        estimator=estimator,
        delta=setting.problem.delta,
        params=_named(chosen, chosen.uncentre(theta, setting.centre)[0]),
        se=_named(chosen, draws.std(axis=0, ddof=1)) if len(draws) > 1 else {},
        n=len(residual),
        n_clusters=int(setting.cluster.max()) + 1,
        objective=objective,
        starts=starts,
        starts_at_optimum=at_optimum,
        bootstrap=method,
        seed=seed,
        draws=tuple(tuple(float(v) for v in row) for row in _thin(draws, keep_draws)),
        draws_failed=failed,
        draws_at_bound=int(_at_bound(chosen, draws).sum()),
        residuals=tuple(float(r) for r in residual),
        noise_sd=noise.total,
        noise_df=noise.df,
        model_sigma=intervals.calibrate_model(
            np.array([row.ratio for row in holdout]),
            np.array([row.error for row in holdout]),
            experiment,
            noise.total,
        ),
        prior=prior is not None,
        flops_model=flops_model(observations),
        observations=observations,
        holdout=holdout,
    )
    without = _leave_one_out(setting, theta)
    return result.model_copy(update={"diagnostics": sentences(result, without)})


def check_options(estimator: str, delta: float, bootstrap: int) -> None:
    """Raises FitError when an option of `fit` makes no sense."""
    if estimator not in ESTIMATORS:
        raise FitError(
            f"There is no estimator named {estimator!r}.", hint=f"Use one of: {', '.join(ESTIMATORS)}."
        )
    if not 0 < delta < np.inf:
        raise FitError(f"A Huber width of {delta} makes no sense.", hint="Give e.g. 0.001.")
    if bootstrap < 0:
        raise FitError(f"bootstrap is {bootstrap}.", hint="Give the number of refits, or 0 for none.")


def check(observations: Observations, parameters: int) -> None:
    """Raises FitError, naming the row, when the table cannot be fitted."""
    n = len(observations.loss)
    for name in ("params", "tokens", "loss", "flops", "cluster"):
        column = getattr(observations, name)
        if column is None:
            continue
        if len(column) != n:
            raise FitError(
                f"Column {name!r} has {len(column)} rows and 'loss' has {n}.", hint="Give equal lengths."
            )
        if name == "cluster":
            continue
        bad = [i for i, v in enumerate(column) if not (np.isfinite(v) and v > 0)]
        if bad:
            raise FitError(
                f"Row {bad[0]} (the first is 0) has {name} = {column[bad[0]]}.",
                hint="Every value must be a positive number; drop failed runs.",
            )
    if n <= parameters:
        raise FitError(
            f"The table has {n} runs and the law has {parameters} parameters.",
            hint=f"Measure at least {parameters + 1} runs: 4 sizes x 3 token counts is a good start.",
        )
    for name, word in (("params", "size N"), ("tokens", "token count D")):
        if len(set(getattr(observations, name))) == 1:
            raise FitError(f"All runs have the same {word}.", hint="A law needs runs that vary both N and D.")


def flops_model(observations: Observations) -> FlopsModel:
    """F(N) = kappa N^gamma by a log-linear fit of FLOPs a token; exactly 6 N when none are given."""
    if observations.flops is None:
        return FlopsModel()
    x = np.log(np.array(observations.params))
    y = np.log(np.array(observations.flops) / np.array(observations.tokens))
    gamma = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return FlopsModel(kappa=float(np.exp(y.mean() - gamma * x.mean())), gamma=gamma)


def best_of_starts(problem: Problem) -> tuple[Array, float, int, int]:
    """Best parameters (1, p), their objective, starts within 0.1% of it, and starts made."""
    law = problem.law
    grid = law.start_grid()
    start = np.concatenate([np.full((len(grid), law.linear), _third(problem)), grid], axis=1)
    linear = np.arange(start.shape[1]) < law.linear
    wide = replace(problem, delta=max(problem.delta, DELTA))
    projected, _, _ = solve.minimise(wide, start, free=linear, limits=solve.ROUGH)
    theta, objective, _ = solve.minimise(wide, projected, limits=solve.FAIR)
    best = int(objective.argmin())
    polished, lowest, _ = solve.minimise(wide, theta[best : best + 1])
    near = int((objective <= lowest[0] * 1.001 + 1e-15).sum())
    if problem.delta < DELTA:
        polished, lowest, _ = solve.minimise(problem, polished)
    return polished, float(lowest[0]), near, len(grid)


def _third(problem: Problem) -> float:
    """An equal share of the geometric mean loss for each linear parameter."""
    return float(np.exp(problem.log_loss.mean())) / problem.law.linear


def _setting(observations: Observations, law: solve.Law, delta: float) -> Setting:
    x, centre = law.features(np.array(observations.params), np.array(observations.tokens))
    log_loss = np.log(np.array(observations.loss))[None]
    return Setting(
        problem=Problem(law, x, log_loss, np.ones_like(log_loss), delta),
        centre=centre,
        cluster=intervals.clusters_of(observations.cluster, log_loss.shape[1]),
        compute=observations.compute(),
    )


def _free_scale(setting: Setting) -> Setting:
    """The setting whose Huber width is `DELTA` times the maximum-likelihood scale of the residuals.

    The likelihood n ln(scale) + sum huber(r / scale) has its best scale at DELTA mean |r| (to order
    DELTA^2), so the width is about 1e-6 mean |r|: least absolute deviations in all but name.
    """
    problem = setting.problem
    theta, _, _, _ = best_of_starts(problem)
    residual = np.log(problem.law.value(theta, problem.x)) - problem.log_loss
    width = max(DELTA**2 * float(np.abs(residual).mean()), 1e-12)
    return replace(setting, problem=replace(problem, delta=width))


def _prior(setting: Setting) -> Prior | None:
    """The weak prior for small tables; None when the data can stand alone.

    Its noise is the residual sd of a fit without it, shrunk to `PRIOR_NOISE`.
    """
    problem = setting.problem
    n, clusters = problem.x.shape[1], int(setting.cluster.max()) + 1
    if n >= SMALL_RUNS and clusters >= FEW_CLUSTERS:
        return None
    theta, _, _, _ = best_of_starts(problem)
    residual = np.log(problem.law.value(theta, problem.x)[0]) - problem.log_loss[0]
    df = max(0, n - theta.shape[1])
    variance = (PRIOR_NOISE_DF * PRIOR_NOISE**2 + (residual**2).sum()) / (PRIOR_NOISE_DF + df)
    centre = np.full((1, theta.shape[1] - problem.law.linear), np.log(PRIOR_EXPONENT))
    return Prior(noise=float(np.sqrt(variance)), centre=centre, sd=PRIOR_SD)


def _bootstrap(
    setting: Setting, theta: Array, fitted: Array, noise: intervals.Noise, draws: int, seed: int
) -> tuple[Array, str, int]:
    """(k, p) parameters of the draws that converged, the method's name, and how many did not."""
    if draws == 0:
        return np.empty((0, theta.shape[1])), "none", 0
    rng = np.random.default_rng(seed)
    problem, law = setting.problem, setting.problem.law
    if setting.cluster.max() + 1 >= FEW_CLUSTERS:
        method = "pairs by cluster"
        problem = replace(problem, weight=intervals.pairs_weights(setting.cluster, draws, rng))
    else:
        method = "parametric by cluster"
        noisy = intervals.noisy_log_losses(fitted, noise, setting.cluster, draws, rng)
        problem = replace(problem, log_loss=noisy)
    if problem.prior is not None:
        centre = problem.prior.centre + PRIOR_SD * rng.standard_normal((draws, problem.prior.centre.shape[1]))
        problem = replace(problem, prior=replace(problem.prior, centre=centre))
    found, _, done = solve.minimise(problem, np.repeat(theta, draws, axis=0))
    kept = law.uncentre(found[done], setting.centre)
    return kept, method, int(draws - len(kept))


def _holdout(setting: Setting, theta: Array) -> tuple[tuple[Holdout, ...], npt.NDArray[np.intp]]:
    """Ordered hold-outs: fit the cheaper runs, predict the dearer ones; and each row's experiment.

    A cheaper part needs twice as many runs as parameters and at least two N and two D.
    """
    problem, compute = setting.problem, setting.compute
    n, p = len(compute), theta.shape[1]
    sizes = np.unique(np.linspace(2 * p, n - 1, HOLDOUTS).astype(int)) if n > 2 * p else np.empty(0, int)
    limits = np.unique(np.sort(compute)[sizes - 1])
    inside = compute <= limits[:, None]
    usable = np.array([_varied(problem.x[:, row]) and not row.all() for row in inside], dtype=bool)
    limits, inside = limits[usable], inside[usable]
    if len(limits) == 0:
        return (), np.empty(0, np.intp)
    found, _, _ = solve.minimise(
        replace(problem, weight=inside.astype(np.float64)),
        np.repeat(theta, len(limits), axis=0),
        limits=solve.FAIR,
    )
    error = problem.law.value(found, problem.x) / np.exp(problem.log_loss) - 1.0
    rows, experiment = [], []
    for k, limit in enumerate(limits):
        targets = np.flatnonzero(~inside[k])
        targets = targets[np.argsort(compute[targets], kind="stable")]
        for i in targets[np.unique(np.linspace(0, len(targets) - 1, HOLDOUT_TARGETS).astype(int))]:
            rows.append(
                Holdout(
                    fitted_runs=int(inside[k].sum()),
                    fitted_max_flops=float(limit),
                    flops=float(compute[i]),
                    ratio=float(compute[i] / limit),
                    error=float(error[k, i]),
                )
            )
            experiment.append(k)
    return tuple(rows), np.array(experiment, np.intp)


def _varied(x: Array) -> bool:
    return bool(x.size and (np.ptp(x, axis=1) > 0).all())


def _leave_one_out(setting: Setting, theta: Array) -> Array:
    """(clusters, p) parameters without each cluster; empty when clusters are many or one is the rest."""
    clusters = int(setting.cluster.max()) + 1
    problem = setting.problem
    kept = setting.cluster != np.arange(clusters)[:, None]
    if clusters <= SMALL_RUNS:
        kept = kept[[_varied(problem.x[:, row]) for row in kept]]
    if clusters > SMALL_RUNS or len(kept) == 0:
        return np.empty((0, theta.shape[1]))
    found, _, _ = solve.minimise(
        replace(problem, weight=kept.astype(np.float64)),
        np.repeat(theta, len(kept), axis=0),
        limits=solve.FAIR,
    )
    return problem.law.uncentre(found, setting.centre)


def _thin(draws: Array, keep: int) -> Array:
    """At most `keep` rows, evenly spaced."""
    if len(draws) <= keep:
        return draws
    return np.asarray(draws[np.linspace(0, len(draws) - 1, keep).astype(int)])


def _at_bound(law: solve.Law, draws: Array) -> npt.NDArray[np.bool_]:
    """(k,) draws with an exponent at its bound."""
    shape = draws[:, law.linear :]
    return np.asarray(((shape <= law.lower[law.linear :]) | (shape >= law.upper[law.linear :])).any(axis=1))


def _named(law: solve.Law, row: Array) -> dict[str, float]:
    return {name: float(v) for name, v in zip(law.names, row, strict=True)}
