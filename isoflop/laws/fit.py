"""Fit a law to a table of runs: projected starts, one optimum, bootstrap, hold-outs and diagnostics.

Variable projection: from each start the linear parameters are solved first (bounded, with the others
fixed); from there all parameters move together by Newton steps whose linear block is eliminated exactly,
so every start reaches the same optimum (see `solve`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from isoflop.errors import FitError
from isoflop.laws import intervals, likelihood, solve
from isoflop.laws.diagnose import sentences
from isoflop.laws.linear import linearise
from isoflop.laws.observations import Observations, check, falling
from isoflop.laws.registry import law_named
from isoflop.laws.resample import RESAMPLES, bootstrap_draws, leave_one_out, ordered_holdout
from isoflop.laws.result import Fit, FlopsModel
from isoflop.laws.solve import Array, Prior, Problem
from isoflop.laws.split import splits

DELTA = 1e-3  # width of the Huber loss on the log of the loss: Hoffmann et al. 2203.15556
ESTIMATORS: dict[str, str] = {
    "huber-sum": "sum of Huber losses on ln L, of width 1e-3 if not given, as Hoffmann et al. 2203.15556",
    "least-squares": "sum of squares on ln L",
    "huber-likelihood": "Huber density with a free scale, as Besiroglu et al. 2404.10102",
}
SMALL_RUNS, FEW_CLUSTERS = 30, 8  # below either, the weak prior on the exponents is used
PRIOR_EXPONENT, PRIOR_SD = 0.35, 0.4  # published alpha, beta: 0.28-0.48 on text; sd of the logarithm
PRIOR_NOISE, PRIOR_NOISE_DF = 0.01, 4  # run-to-run sd assumed by the prior's strength, with its weight
MANY_RUNS = 4000  # above it, starts and hold-outs use that many of the runs


@dataclass(frozen=True)
class Setting:
    """What one fit needs: the centred problem (m = 1) and how to start it."""

    problem: Problem
    centre: Array
    fixed: Mapping[str, float]
    cluster: npt.NDArray[np.intp]
    compute: Array
    sizes: Array  # (2, n) N and D; (0, n) in laws without them


def fit(
    table: Observations | Any,
    *,
    law: str = "chinchilla",
    estimator: str = "huber-sum",
    delta: float = DELTA,
    bootstrap: int = 1000,
    resample: str = "auto",
    fixed: Mapping[str, float | None] | None = None,
    ceiling: float | None = None,
    seed: int = 0,
    keep_draws: int = 400,
    holdout_least: int = 0,
    model_error: float | None = None,
) -> Fit:
    """Fit `law` to a table: its covariates (params, tokens, ...), `loss`; optional flops, cluster, loss_se.

    `delta` is the Huber width of "huber-sum", on the log of the loss: the published 1e-3 is far below the
    noise of runs and fits nearly their medians; 1.345 times the noise is 95% as efficient as least squares.
    `fixed` holds parameters at given values (None frees one that the law holds by itself). `bootstrap`
    refits resample whole clusters (runs of one trunk are not independent) by `resample`, one of
    `resample.RESAMPLES`; at most `keep_draws` of them stay in the result. With fewer than 30 runs or 8
    clusters a weak log-normal prior (centre 0.35, sd of the logarithm 0.4) on the exponents keeps the
    extrapolation sane. `loss_se`, the standard error of each evaluation, weights the runs by their inverse
    variance. A target y that rises to a `ceiling` (accuracy: 1) is fitted as ceiling - y, and predicted as y.
    The ordered hold-outs fit `holdout_least` runs at least. `model_error` is the relative sd of the law's own
    error among the runs (it grows outside them): None calibrates it by the hold-outs, 0 holds the law to be
    exact.
    Raises FitError on a table or an option that cannot be used.
    """
    chosen = law_named(law)
    observations = Observations.of(table, chosen.columns)
    if ceiling is not None:
        observations = falling(observations, ceiling)
    check_options(estimator, delta, bootstrap, resample, model_error)
    held = _held(chosen, fixed or {})
    check(observations, chosen.columns, len(chosen.names) - len(held))

    setting, evaluation_sd = ready(observations, chosen, held, estimator, delta)
    problem, cluster = setting.problem, setting.cluster
    best = best_of_starts(setting)
    theta = best[0]
    if not np.isfinite(best[1]):
        raise FitError(
            f"No start gave the law {law} a finite fit.", hint="Fix fewer parameters, or try another law."
        )
    residual = np.log(chosen.value(theta, problem.x)[0]) - problem.log_loss[0]
    noise = intervals.run_noise(residual, linearise(problem, theta).slopes.T, cluster, evaluation_sd)
    draws, method, failed = bootstrap_draws(
        problem, theta, noise, cluster, draws=bootstrap, resample=resample, seed=seed
    )
    some = _some_rows(setting)
    holdout, experiment = ordered_holdout(some.problem, theta, some.compute, some.sizes, holdout_least)
    result = _described(setting, observations, best, residual, held, estimator)
    result = _with_draws(result, chosen, chosen.uncentre(draws, setting.centre), keep_draws).model_copy(
        update={
            "bootstrap": method, "draws_failed": failed, "seed": seed, "ceiling": ceiling, "holdout": holdout,
            "noise_sd": noise.total, "noise_df": noise.df, "trunk_sd": noise.trunk,
            "evaluation_sd": evaluation_sd,
            "model_sigma": model_error if model_error is not None else intervals.calibrate_model(
                np.array([row.reach for row in holdout]), np.array([row.error for row in holdout]),
                experiment, noise.total,
            ),
        }
    )  # fmt: skip
    without = chosen.uncentre(leave_one_out(problem, theta, cluster, SMALL_RUNS), setting.centre)
    return result.model_copy(update={"diagnostics": sentences(result, without)})


def ready(
    observations: Observations, law: solve.Law, held: Mapping[str, float], estimator: str, delta: float
) -> tuple[Setting, float]:
    """The problem with its weights, Huber width and prior; and the relative error of an evaluation."""
    setting = _setting(observations, law, held, np.inf if estimator == "least-squares" else delta)
    setting, evaluation_sd = _weighted(setting, observations)
    if estimator == "huber-likelihood":
        setting = _free_scale(setting)
    return replace(setting, problem=replace(setting.problem, prior=_prior(setting))), evaluation_sd


def _described(
    setting: Setting, observations: Observations, best: tuple[Array, float, int, int], residual: Array,
    held: Mapping[str, float], estimator: str,
) -> Fit:  # fmt: skip
    """The fit without draws, noise and hold-outs."""
    problem, (theta, objective, at_optimum, starts) = setting.problem, best
    aicc, bic = likelihood.criteria(residual, problem.delta, int(problem.free.sum()))
    return Fit(
        law=problem.law.name,
        estimator=estimator,
        delta=problem.delta,
        params=_named(problem.law, problem.law.uncentre(theta, setting.centre)[0]),
        fixed=tuple(held),
        n=len(residual),
        n_clusters=int(setting.cluster.max()) + 1,
        objective=objective,
        aicc=aicc,
        bic=bic,
        starts=starts,
        starts_at_optimum=at_optimum,
        residuals=tuple(float(r) for r in residual),
        prior=problem.prior is not None,
        flops_model=flops_model(observations),
        max_flops=float(observations.compute().max()),
        observations=observations,
    )


def _with_draws(result: Fit, law: solve.Law, draws: Array, keep: int) -> Fit:
    """The fit with (k, p) natural draws, of which at most `keep` stay."""
    update = {
        "se": _named(law, draws.std(axis=0, ddof=1)) if len(draws) > 1 else {},
        "draws": tuple(tuple(float(v) for v in row) for row in _thin(draws, keep)),
        "draws_at_bound": int(_at_bound(law, draws).sum()),
    }
    return result.model_copy(update=update)


def check_options(
    estimator: str, delta: float, bootstrap: int, resample: str, model_error: float | None
) -> None:
    """Raises FitError when an option of `fit` makes no sense."""
    for word, name, known in (
        ("estimator", estimator, ESTIMATORS),
        ("way to resample", resample, RESAMPLES),
    ):
        if name not in known:
            raise FitError(f"There is no {word} named {name!r}.", hint=f"Use one of: {', '.join(known)}.")
    if not 0 < delta < np.inf:
        raise FitError(f"A Huber width of {delta} makes no sense.", hint="Give e.g. 0.001.")
    if bootstrap < 0:
        raise FitError(f"bootstrap is {bootstrap}.", hint="Give the number of refits, or 0 for none.")
    if model_error is not None and not 0 <= model_error < 1:
        raise FitError(
            f"A model error of {model_error:g} makes no sense.", hint="Give a share of the loss, e.g. 0.004."
        )


def flops_model(observations: Observations) -> FlopsModel:
    """F(N) = kappa N^gamma by a log-linear fit of FLOPs a token; exactly 6 N when none are given."""
    columns = observations.arrays()
    if not {"params", "tokens", "flops"} <= columns.keys():
        return FlopsModel()
    x, y = np.log(columns["params"]), np.log(columns["flops"] / columns["tokens"])
    spread = float(((x - x.mean()) ** 2).sum())
    gamma = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 1.0
    return FlopsModel(kappa=float(np.exp(y.mean() - gamma * x.mean())), gamma=gamma)


def best_of_starts(setting: Setting) -> tuple[Array, float, int, int]:
    """Best parameters (1, p), their objective, starts within 0.1% of it, and starts made."""
    problem, few = setting.problem, _some_rows(setting).problem
    start = _starts(setting)
    linear = np.arange(start.shape[1]) < problem.law.linear
    wide = replace(few, delta=max(problem.delta, DELTA))
    projected, _, _ = solve.minimise(wide, start, free=linear, limits=solve.ROUGH)
    theta, objective, _ = solve.minimise(wide, projected, limits=solve.FAIR)
    best = int(objective.argmin())
    polished, lowest, _ = solve.minimise(wide, theta[best : best + 1])
    near = int((objective <= lowest[0] * 1.001 + 1e-15).sum())
    if few is not problem or problem.delta < DELTA:
        polished, lowest, _ = solve.minimise(problem, polished)
    return polished, float(lowest[0]), near, len(start)


def _starts(setting: Setting) -> Array:
    """(starts, p) in the solver's coordinates: the law's own, and its published constants, fixed ones set."""
    law = setting.problem.law
    own = law.uncentre(law.start_grid(float(np.exp(setting.problem.log_loss.mean()))), setting.centre)
    known = [[p.values[name] for name in law.names] for p in law.published]
    natural = np.concatenate([own, np.array(known).reshape(len(known), own.shape[1])])
    for name, value in setting.fixed.items():
        natural[:, law.names.index(name)] = value
    with np.errstate(all="ignore"):
        start = law.recentre(natural, setting.centre)
    start = start[np.isfinite(start).all(axis=1)]
    if len(start) == 0:
        raise FitError(
            f"The law {law.name} cannot hold {', '.join(f'{k} = {v:g}' for k, v in setting.fixed.items())}.",
            hint="Fix other values.",
        )
    return start


def _held(law: solve.Law, fixed: Mapping[str, float | None]) -> dict[str, float]:
    """Parameters that stay as they are, and their values."""
    for name in fixed:
        if name not in law.names:
            raise FitError(
                f"The law {law.name} has no parameter {name!r}.", hint=f"It has {', '.join(law.names)}."
            )
    held = {name: value for name, value in {**law.held, **fixed}.items() if value is not None}
    for name, value in held.items():
        i = law.names.index(name)
        if not (np.isfinite(value) and law.lower[i] <= value <= law.upper[i]):
            raise FitError(
                f"The law {law.name} cannot hold {name} = {value:g}.",
                hint=f"It lies in [{law.lower[i]:g}, {law.upper[i]:g}].",
            )
    if len(held) == len(law.names):
        raise FitError("Every parameter is fixed: there is nothing to fit.", hint="Free at least one.")
    return held


def _setting(observations: Observations, law: solve.Law, fixed: Mapping[str, float], delta: float) -> Setting:
    # A fixed amplitude is fixed in the units of the columns, which centring would change.
    x, centre = law.features(observations.arrays(), centred=not fixed)
    log_loss = np.log(np.array(observations.loss))[None]
    free = np.array([name not in fixed for name in law.names])
    return Setting(
        problem=Problem(law, x, log_loss, np.ones_like(log_loss), delta, free),
        centre=centre,
        fixed=fixed,
        cluster=intervals.clusters_of(observations.cluster, log_loss.shape[1]),
        compute=observations.compute(),
        sizes=observations.sizes() if splits(law) else np.empty((0, log_loss.shape[1])),
    )


def _some_rows(setting: Setting) -> Setting:
    """At most `MANY_RUNS` of the runs, evenly spaced in compute."""
    n = len(setting.compute)
    if n <= MANY_RUNS:
        return setting
    order = np.argsort(setting.compute, kind="stable")
    at = np.sort(order[np.linspace(0, n - 1, MANY_RUNS).astype(int)])
    return replace(
        setting, problem=setting.problem.rows(at), compute=setting.compute[at], sizes=setting.sizes[:, at]
    )


def _weighted(setting: Setting, observations: Observations) -> tuple[Setting, float]:
    """Weights by inverse variance where evaluations have standard errors, and their typical relative size.

    The variance of a run is that between runs, from the residuals of an unweighted fit, and its own
    evaluation's; weights have mean 1.
    """
    if observations.loss_se is None:
        return setting, 0.0
    evaluation = np.array(observations.loss_se) / np.array(observations.loss)
    typical = float(np.sqrt(np.mean(evaluation**2)))
    problem = setting.problem
    theta, _, _, _ = best_of_starts(setting)
    residual = np.log(problem.law.value(theta, problem.x)[0]) - problem.log_loss[0]
    noise = intervals.run_noise(residual, linearise(problem, theta).slopes.T, setting.cluster, typical)
    weight = 1.0 / (noise.run**2 + evaluation**2)
    return replace(setting, problem=replace(problem, weight=(weight / weight.mean())[None])), typical


def _free_scale(setting: Setting) -> Setting:
    """The setting whose Huber width is `DELTA` times the maximum-likelihood scale of the residuals.

    The likelihood n ln(scale) + sum huber(r / scale) has its best scale at DELTA mean |r| (to order
    DELTA^2), so the width is about 1e-6 mean |r|: least absolute deviations in all but name.
    """
    problem = setting.problem
    theta, _, _, _ = best_of_starts(setting)
    residual = np.log(problem.law.value(theta, problem.x)) - problem.log_loss
    width = max(DELTA**2 * float(np.abs(residual).mean()), 1e-12)
    return replace(setting, problem=replace(problem, delta=width))


def _prior(setting: Setting) -> Prior | None:
    """The weak prior for small tables; None when the data can stand alone, or the law has no such exponents.

    Its noise is the residual sd of a fit without it, shrunk to `PRIOR_NOISE`.
    """
    problem = setting.problem
    n, clusters = problem.x.shape[1], int(setting.cluster.max()) + 1
    at = tuple(i for i in problem.law.exponents_at if problem.free[i])
    if (n >= SMALL_RUNS and clusters >= FEW_CLUSTERS) or not at:
        return None
    theta, _, _, _ = best_of_starts(setting)
    residual = np.log(problem.law.value(theta, problem.x)[0]) - problem.log_loss[0]
    df = max(0, n - int(problem.free.sum()))
    variance = (PRIOR_NOISE_DF * PRIOR_NOISE**2 + (residual**2).sum()) / (PRIOR_NOISE_DF + df)
    centre = np.full((1, len(at)), np.log(PRIOR_EXPONENT))
    return Prior(noise=float(np.sqrt(variance)), centre=centre, sd=PRIOR_SD, at=at)


def _thin(draws: Array, keep: int) -> Array:
    """At most `keep` rows, evenly spaced."""
    if len(draws) <= keep:
        return draws
    return np.asarray(draws[np.linspace(0, len(draws) - 1, keep).astype(int)])


def _at_bound(law: solve.Law, draws: Array) -> npt.NDArray[np.bool_]:
    """(k,) draws with a shape parameter at its bound."""
    shape = draws[:, law.linear :]
    return np.asarray(((shape <= law.lower[law.linear :]) | (shape >= law.upper[law.linear :])).any(axis=1))


def _named(law: solve.Law, row: Array) -> dict[str, float]:
    return {name: float(v) for name, v in zip(law.names, row, strict=True)}
