"""A fit linearised at its optimum: what the runs say of the parameters, and how far each cluster bends it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from isoflop.laws.solve import Array, Problem

HIGHEST_LEVERAGE = 0.9  # a cluster that alone determines a direction has leverage 1 and no residual there


class Linear(NamedTuple):
    """The Gauss-Newton problem of the parameters that move, in the solver's coordinates."""

    at: npt.NDArray[np.intp]  # (f,) free parameters inside their bounds
    slopes: Array  # (f, n) derivatives of ln L, times the root of the weight
    information: Array  # (f, f) of the runs and the prior, in units of 1 / variance of a run


def linearise(problem: Problem, theta: Array) -> Linear:
    """The problem (m = 1) at `theta` (1, p)."""
    law, prior = problem.law, problem.prior
    at = np.flatnonzero(problem.free & (theta[0] > law.lower) & (theta[0] < law.upper))
    value, jac = law.jacobian(theta, problem.x)
    slopes = (np.sqrt(problem.weight) * jac[0] / value)[at]
    information = slopes @ slopes.T
    if prior is not None:
        stiffness = np.zeros(theta.shape[1])
        stiffness[list(prior.at)] = (prior.noise / (prior.sd * theta[0, list(prior.at)])) ** 2
        information += np.diag(stiffness[at])
    return Linear(at, slopes, information)


def inverse_root(information: Array) -> Array:
    """(f, f) W with W'W the inverse of `information`; directions that nothing determines are damped."""
    size = np.sqrt(np.maximum(np.diag(information), 1e-300))
    values, vectors = np.linalg.eigh(information / np.outer(size, size))
    return np.asarray((vectors / np.sqrt(np.maximum(values, 1e-13 * values[-1]))).T / size)


def without_leverage(
    problem: Problem, theta: Array, cluster: npt.NDArray[np.intp], residual: Array, power: float
) -> Array:
    """(n,) residuals (or their Huber scores), each cluster's multiplied by (I - H_gg)^-power.

    H_gg is the cluster's block of the Gauss-Newton hat matrix, the prior's information counted. Power 1 gives
    to first order the residuals of a fit without the cluster (CV3, the jackknife's), 1/2 has the right
    variance when the noise is even (CV2): Bell and McCaffrey 2002; Cameron and Miller 2015, section VI.
    Eigenvalues of H_gg count `HIGHEST_LEVERAGE` at most.
    """
    linear = linearise(problem, theta)
    hat = inverse_root(linear.information) @ linear.slopes
    root = np.sqrt(problem.weight[0])
    out = root * residual
    for g in range(int(cluster.max()) + 1):
        rows = cluster == g
        along, singular, _ = np.linalg.svd(hat[:, rows].T, full_matrices=False)
        grown = (1.0 - np.minimum(singular**2, HIGHEST_LEVERAGE)) ** -power - 1.0
        out[rows] += along @ (grown * (along.T @ out[rows]))
    return np.asarray(out / root)
