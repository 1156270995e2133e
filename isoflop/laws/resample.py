"""Refits of one problem: bootstrap over clusters, ordered hold-outs, leave one cluster out. All batched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from isoflop.errors import FitError
from isoflop.laws import intervals, solve
from isoflop.laws.linear import without_leverage
from isoflop.laws.result import Holdout
from isoflop.laws.solve import Array, Problem

RESAMPLES: dict[str, str] = {
    "auto": "pairs from 20 clusters on; below, parametric, or wild where runs are very many",
    "pairs": "whole clusters drawn with replacement",
    "wild": "residuals of whole clusters times random weights, on the fitted law",
    "parametric": "normal noise by cluster and run, on the fitted law",
}
MANY_CLUSTERS = 20  # from which `auto` resamples pairs: records/2026-11-24_law-bootstrap-trunks
HOLDOUTS = 6  # ordered hold-out experiments at most
HOLDOUT_REACH = 100.0  # times the fitted compute: farther runs say nothing of a usual question
HOLDOUT_TARGETS = 12  # dearer runs predicted in each, at most
ONE_STEP_RUNS = 5000  # above it a draw is one Newton step from the optimum, which is as good there


def bootstrap_draws(
    problem: Problem, theta: Array, noise: intervals.Noise, cluster: npt.NDArray[np.intp],
    *, draws: int, resample: str, seed: int,
) -> tuple[Array, str, int]:  # fmt: skip
    """(k, p) parameters of the draws that converged, the method's name, and how many did not.

    `resample` is one of `RESAMPLES`. Pairs and wild draws (Cameron, Gelbach and Miller 2008) are widened to
    quantiles of Student's t with G - 1 degrees of freedom for G clusters, and pairs, which are too narrow by
    sqrt(1 - 1/G), by that as well (Cameron and Miller 2015, section VI). Raises FitError for one cluster.
    """
    if draws == 0:
        return np.empty((0, theta.shape[1])), "none", 0
    rng = np.random.default_rng(seed)
    clusters = int(cluster.max()) + 1
    method = resample
    if method == "auto" and clusters >= MANY_CLUSTERS:
        method = "pairs"
    elif method == "auto":  # parametric draws are as long as the table, each
        method = "parametric" if len(cluster) <= ONE_STEP_RUNS else "wild"
    if method != "parametric" and clusters < 2:
        raise FitError(
            f"One cluster of runs cannot be resampled by {method}.",
            hint="Resample auto or parametric, or give more trunks.",
        )
    name = f"{method} by cluster"
    if method != "parametric" and len(cluster) > ONE_STEP_RUNS:
        return _one_step(problem, theta, cluster, draws, method, rng), f"one step, {name}", 0
    varied = _varied_problem(problem, theta, noise, cluster, draws, method, rng)
    if problem.prior is not None:
        prior = problem.prior
        centre = prior.centre + prior.sd * rng.standard_normal((draws, prior.centre.shape[1]))
        varied = replace(varied, prior=replace(prior, centre=centre))
    found, _, done = solve.minimise(varied, np.repeat(theta, draws, axis=0))
    kept = found[done]
    if method == "pairs":
        kept = _widened(problem, theta, kept, intervals.cluster_widening(clusters, pairs=True))
    return kept, name, int(draws - done.sum())


def _varied_problem(
    problem: Problem, theta: Array, noise: intervals.Noise, cluster: npt.NDArray[np.intp],
    draws: int, method: str, rng: np.random.Generator,
) -> Problem:  # fmt: skip
    """The problem with the weights or the log losses of every draw."""
    if method == "pairs":
        return replace(problem, weight=problem.weight * intervals.pairs_weights(cluster, draws, rng))
    fitted = np.log(problem.law.value(theta, problem.x)[0])
    if method == "parametric":
        return replace(problem, log_loss=intervals.noisy_log_losses(fitted, noise, cluster, draws, rng))
    clusters = int(cluster.max()) + 1
    residual = without_leverage(problem, theta, cluster, fitted - problem.log_loss[0], 1.0)
    weights = intervals.cluster_widening(clusters) * intervals.webb_weights(clusters, draws, rng)
    return replace(problem, log_loss=fitted - weights[:, cluster] * residual)


def _one_step(
    problem: Problem, theta: Array, cluster: npt.NDArray[np.intp], draws: int, method: str,
    rng: np.random.Generator,
) -> Array:  # fmt: skip
    """(draws, p): theta - H^-1 (gradient of the reweighted objective), the first step of each refit.

    The wild draws weight the gradients of whole clusters (Kline and Santos 2012).
    """
    law, wild = problem.law, method == "wild"
    free = problem.free & (theta[0] > law.lower) & (theta[0] < law.upper)
    value, jac = law.jacobian(theta, problem.x)
    residual = np.log(value) - problem.log_loss
    if wild:
        residual = without_leverage(problem, theta, cluster, residual[0], 1.0)[None]
    slopes = (problem.weight * np.clip(residual, -problem.delta, problem.delta) / value)[0] * jac[0, free]
    clusters = int(cluster.max()) + 1
    by_cluster = np.stack([np.bincount(cluster, row, minlength=clusters) for row in slopes])
    _, hessian, _ = problem.newton(theta, np.zeros(1))
    count = np.empty((draws, len(by_cluster)))
    for i in range(draws):  # a draw's weights are as long as the table: never all of them at once
        if wild:
            count[i] = by_cluster @ intervals.webb_weights(clusters, 1, rng)[0]
        else:
            picked = np.bincount(rng.integers(clusters, size=clusters), minlength=clusters)
            count[i] = by_cluster @ (picked - 1.0)
    out = np.repeat(theta, draws, axis=0)
    out[:, free] -= np.linalg.solve(hessian[0][np.ix_(free, free)], count.T).T
    return _widened(problem, theta, out, intervals.cluster_widening(clusters, pairs=not wild))


def _widened(problem: Problem, theta: Array, draws: Array, factor: float) -> Array:
    """Draws further from the fit by the factor, inside the bounds."""
    moved = theta + (draws - theta) * factor
    return np.asarray(np.where(problem.free, np.clip(moved, problem.law.lower, problem.law.upper), theta))


def ordered_holdout(
    problem: Problem, theta: Array, compute: Array, sizes: Array, least: int = 0
) -> tuple[tuple[Holdout, ...], npt.NDArray[np.intp]]:
    """Ordered hold-outs: fit the cheaper runs, predict the dearer ones; and each row's experiment.

    A cheaper part needs twice as many runs as free parameters, and `least`; every covariate must vary in it.
    `sizes` (2, n) are N and D, (0, n) in laws without them.
    """
    n, first = len(compute), max(2 * int(problem.free.sum()), least)
    counts = np.unique(np.linspace(first, n - 1, HOLDOUTS).astype(int)) if n > first else np.empty(0, int)
    limits = np.unique(np.sort(compute)[counts - 1])
    inside = compute <= limits[:, None]
    usable = np.array([_varied(problem.x, row) and not row.all() for row in inside], dtype=bool)
    limits, inside = limits[usable], inside[usable]
    if len(limits) == 0:
        return (), np.empty(0, np.intp)
    found, _, _ = solve.minimise(
        replace(problem, weight=problem.weight * inside),
        np.repeat(theta, len(limits), axis=0),
        limits=solve.FAIR,
    )
    error = problem.law.value(found, problem.x) / np.exp(problem.log_loss) - 1.0
    rows, experiment = [], []
    for k, limit in enumerate(limits):
        targets = np.flatnonzero(~inside[k] & (compute <= HOLDOUT_REACH * limit))
        targets = targets[np.argsort(compute[targets], kind="stable")]
        targets = targets[np.unique(np.linspace(0, len(targets) - 1, HOLDOUT_TARGETS).astype(int))]
        ratio = compute[targets] / limit
        reach = intervals.reach(sizes[:, targets], sizes[:, inside[k]]) if len(sizes) else ratio
        for j, i in enumerate(targets):
            rows.append(
                Holdout(
                    fitted_runs=int(inside[k].sum()),
                    fitted_max_flops=float(limit),
                    flops=float(compute[i]),
                    ratio=float(ratio[j]),
                    reach=float(reach[j]),
                    error=float(error[k, i]),
                )
            )
            experiment.append(k)
    return tuple(rows), np.array(experiment, np.intp)


def leave_one_out(problem: Problem, theta: Array, cluster: npt.NDArray[np.intp], most: int) -> Array:
    """(clusters, p) parameters without each cluster; empty when they are more than `most`."""
    clusters = int(cluster.max()) + 1
    if clusters > most:
        return np.empty((0, theta.shape[1]))
    kept = cluster != np.arange(clusters)[:, None]
    kept = kept[[_varied(problem.x, row) for row in kept]]
    found, _, _ = solve.minimise(
        replace(problem, weight=problem.weight * kept),
        np.repeat(theta, len(kept), axis=0),
        limits=solve.FAIR,
    )
    return found


def _varied(x: Array, kept: npt.NDArray[np.bool_]) -> bool:
    """Whether every covariate that varies in the table varies among the kept rows."""
    if not kept.any():
        return False
    return bool(((np.ptp(x[:, kept], axis=1) > 0) | (np.ptp(x, axis=1) == 0)).all())
