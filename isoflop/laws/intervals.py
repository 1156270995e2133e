"""Every formula about uncertainty: resampling, run-to-run noise, model error, and how they combine.

The interval of a new run has three parts, added in quadrature on the log of the loss, each side apart:

1. parameters: quantiles of the bootstrap draws' predictions around the fitted one;
2. run-to-run noise: residual scale with n - p degrees of freedom and a prior's, Student's t; where runs
   share trunks, a new run's trunk deviates as well;
3. model error: the law itself is not exact, and is worse further out. Its relative sd is
   `sigma0 * log2(1 + r)^1.5` at a reach r of 1 or more, which is how far out the query is in size and data
   (`reach`); more of it lies below the prediction than above.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from isoflop.errors import FitError
from isoflop.laws.solve import Array

# Prior of sigma0 and its growth: parameter bootstraps missed 20x-compute extrapolations of six public data
# sets by 3.9-5.5%, ladders of this project missed runs of 4x by up to 3.3%. 0.39% and the power 1.5 give
# 90% half-widths of 0.6% at r <= 1, 2.3% at r = 4 and 5.9% at r = 20.
MODEL_SIGMA, MODEL_POWER = 0.0039, 1.5
# Laws fitted to cheap runs are too high for dear ones more often than too low: by 0.7% on average over seven
# public tables (records/2026-11-24_law-holdout). So of the model error more lies below than above.
MODEL_BELOW, MODEL_ABOVE = 1.3, 0.7
MODEL_PRIOR_WEIGHT = 6.0  # the prior counts as this many hold-out experiments
MODEL_SIGMA_RANGE = (0.5, 2.5)  # calibration moves sigma0 by no more than these factors
# Prior of the run-to-run noise: in three seeds of a ladder of 3 trunks and 8 branches it was 0.45% within
# trunks and 0.43% between them (docs/LOG.md).
NOISE_PRIOR = 0.0045
NOISE_PRIOR_DF = 4  # what it weighs, in runs
OUTLYING, OUTLIERS_FROM = 6.0, 20  # residuals count up to so many robust sds, when there are so many runs


def check_level(level: float) -> None:
    """Raises FitError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise FitError(f"An interval of {level} makes no sense.", hint="Use a share such as 0.9.")


def pairs_weights(cluster: npt.NDArray[np.intp], draws: int, rng: np.random.Generator) -> Array:
    """(draws, n) weights of a pairs bootstrap over clusters: how often each row's cluster was drawn."""
    clusters = int(cluster.max()) + 1
    counts = rng.multinomial(clusters, np.full(clusters, 1.0 / clusters), size=draws)
    return np.asarray(counts[:, cluster], dtype=np.float64)


def webb_weights(clusters: int, draws: int, rng: np.random.Generator) -> Array:
    """(draws, clusters) six-point weights of the wild bootstrap of Webb (2023): mean 0, variance 1.

    Signs alone have 2^G patterns for G clusters, too few for a quantile when G is small.
    """
    size = np.sqrt([0.5, 1.0, 1.5])
    return np.asarray(rng.choice(np.concatenate([-size, size]), size=(draws, clusters)))


def cluster_widening(clusters: int, pairs: bool = False) -> float:
    """What the deviations of cluster-bootstrap draws are multiplied by.

    Student's t with G - 1 degrees of freedom over the normal, at the usual level of 90%; pairs are too narrow
    by sqrt(1 - 1/G) as well (Cameron and Miller 2015, section VI).
    """
    tail = tails(0.9)[1]
    t = student_t(tail, clusters - 1) / NormalDist().inv_cdf(tail)
    return t * float(np.sqrt(clusters / (clusters - 1))) if pairs else t


class Noise(NamedTuple):
    """Relative scatter of the loss between runs that differ in seed alone."""

    run: float  # sd of a run around its trunk
    total: float  # sd of a run whose trunk is new, too
    df: int  # that `total` is known to, the prior's included

    @property
    def trunk(self) -> float:
        """sd between trunks."""
        return float(np.sqrt(max(0.0, self.total**2 - self.run**2)))


def run_noise(
    residual: Array, slopes: Array, cluster: npt.NDArray[np.intp], evaluation: float = 0.0
) -> Noise:
    """Noise from (n,) residuals of the log loss, shrunk to `NOISE_PRIOR`.

    `slopes` (n, p) are the derivatives of ln L by the free parameters: what the fit has absorbed.
    `evaluation` is the relative sd of an evaluation, which residuals hold too and which is taken off.
    Where runs share trunks (fewer clusters than runs), trunks and runs have variances of their own, by the
    sums of squares between and within trunks against what is expected of each (Henderson 1953, method 3).
    """
    n, parameters = slopes.shape
    if n >= OUTLIERS_FROM:  # a few broken runs must not widen every interval
        limit = OUTLYING * 1.4826 * float(np.median(np.abs(residual)))
        residual = np.clip(residual, -limit, limit)
    df = max(1, n - parameters)
    squares = float((residual**2).sum())
    if int(cluster.max()) + 1 == n:
        run = _shrunk(squares - df * evaluation**2, df)
        return Noise(run, run, NOISE_PRIOR_DF + df)
    size = np.bincount(cluster).astype(np.float64)
    between = float((np.bincount(cluster, residual) ** 2 / size).sum())
    run_within, run_between, trunk_within, trunk_between = _expected_squares(slopes, cluster, size)
    run = trunk = NOISE_PRIOR
    for _ in range(60):  # alternately, each given the other
        within = squares - between - trunk_within * trunk**2 - run_within * evaluation**2
        run = _shrunk(within, max(run_within, 1e-9))
        left = (between - run_between * (run**2 + evaluation**2)) / size.mean()
        trunk = _shrunk(left, max(trunk_between / size.mean(), 1e-9))
    total = float(np.hypot(run, trunk))
    known = run**4 / (NOISE_PRIOR_DF + run_within) + trunk**4 / (NOISE_PRIOR_DF + trunk_between / size.mean())
    return Noise(run, total, int(total**4 / known))  # Satterthwaite's degrees of freedom


def _shrunk(squares: float, df: float) -> float:
    """The sd of a sum of squares with `df` degrees of freedom, shrunk to the prior."""
    return float(np.sqrt((NOISE_PRIOR_DF * NOISE_PRIOR**2 + max(0.0, squares)) / (NOISE_PRIOR_DF + df)))


def _expected_squares(
    slopes: Array, cluster: npt.NDArray[np.intp], size: Array
) -> tuple[float, float, float, float]:
    """What unit variances of runs, then of trunks, add to the sums of squares within and between trunks.

    With the residual maker Q = I - H, H = G M^-1 G', and P the projection on trunks, Z their indicators:
    tr Q(I - P), tr QP, tr Z'Q(I - P)QZ and tr Z'QPQZ, by products of (p, p) matrices only.
    """
    slopes = slopes / np.maximum(np.sqrt((slopes**2).sum(axis=0)), 1e-300)
    sums = np.zeros((len(size), slopes.shape[1]))
    np.add.at(sums, cluster, slopes)
    inverse = np.linalg.pinv(slopes.T @ slopes, hermitian=True)
    A = inverse @ (sums.T @ (sums / size[:, None]))
    X = inverse @ (sums.T @ sums)
    absorbed = float(np.trace(inverse @ (slopes.T @ slopes)))
    run_between = len(size) - float(np.trace(A))
    trunk = float(size.sum() - np.trace(X))
    trunk_between = float(size.sum() - 2.0 * np.trace(X) + np.trace(A @ X))
    return len(slopes) - absorbed - run_between, run_between, trunk - trunk_between, trunk_between


def noisy_log_losses(
    log_fitted: Array, noise: Noise, cluster: npt.NDArray[np.intp], draws: int, rng: np.random.Generator
) -> Array:
    """(draws, n) log losses of a parametric bootstrap: a noise scale of its own for each draw, from its
    posterior; a deviation for each trunk, and one for each run.

    A handful of clusters cannot be resampled: pairs lose whole sizes, and the residuals of a wild
    bootstrap are what a fit of five parameters has left of eight runs.
    """
    n = len(log_fitted)
    scale = np.sqrt(noise.df / rng.chisquare(noise.df, size=(draws, 1)))
    shared = noise.trunk * rng.standard_normal((draws, int(cluster.max()) + 1))[:, cluster]
    return np.asarray(log_fitted + scale * (shared + noise.run * rng.standard_normal((draws, n))))


def growth(larger: Array, smaller: Array) -> Array:
    """(q, n) how far runs N, D (2, n) must grow to be as large as (2, q) in both, as a factor of compute.

    Growing by a in N and by b in D multiplies compute by a b; growth along one axis alone, into shapes that
    were not measured, counts as more: sqrt(a b) max(a, b), which is a b where both grow alike.
    """
    factors = np.maximum(larger[:, :, None] / smaller[:, None, :], 1.0)
    return np.asarray(np.sqrt(factors.prod(axis=0)) * factors.max(axis=0))


def reach(targets: Array, runs: Array) -> Array:
    """(q,) how far outside the runs (2, n) targets (2, q) are: the least growth, or shrinkage, of any run.

    1 is inside. Along the best split this is the ratio of compute; and a run of extreme shape does not bring
    targets of other shapes nearer.
    """
    up, down = growth(targets, runs).min(axis=1), growth(runs, targets).min(axis=0)
    return np.asarray(np.maximum(up, down))


def model_sd(reach: float | Array, sigma0: float) -> Array:
    """Relative sd of the law's own error at a reach; constant inside the data."""
    return np.asarray(sigma0 * _distance(reach))


def _distance(reach: float | Array) -> Array:
    """What the law's own error grows with: a power of the doublings beyond the data."""
    return np.asarray(np.log2(1.0 + np.maximum(reach, 1.0)) ** MODEL_POWER)


def calibrate_model(reach: Array, error: Array, experiment: npt.NDArray[np.intp], noise: float) -> float:
    """sigma0 from ordered hold-outs, shrunk to `MODEL_SIGMA`.

    `error` (k,) are relative errors of predictions at a `reach` (k,) outside the fitted runs;
    rows of one `experiment` share a fit and count once. Noise variance is taken off first.
    """
    if len(error) == 0:
        return MODEL_SIGMA
    unit = np.maximum(error**2 - noise**2, 0.0) / _distance(reach) ** 2
    labels = np.unique(experiment)
    found = np.array([unit[experiment == label].mean() for label in labels])
    variance = (MODEL_PRIOR_WEIGHT * MODEL_SIGMA**2 + found.sum()) / (MODEL_PRIOR_WEIGHT + len(labels))
    low, high = MODEL_SIGMA_RANGE
    return float(np.clip(np.sqrt(variance), low * MODEL_SIGMA, high * MODEL_SIGMA))


def tails(level: float) -> tuple[float, float]:
    """Probabilities of the two ends of a central interval."""
    return 0.5 - 0.5 * level, 0.5 + 0.5 * level


def quantiles(draws: Array, level: float) -> tuple[float, float]:
    """Central interval of (k,) draws; draws of +inf are kept in order, nan are left out."""
    kept = np.sort(draws[~np.isnan(draws)])
    # Order statistics without interpolation, so that infinite draws stay infinite.
    low, high = (kept[round(q * (len(kept) - 1))] for q in tails(level))
    return float(low), float(high)


def student_t(probability: float, df: int) -> float:
    """Quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def new_run_interval(
    value: float, draws: Array, *, noise: float, df: int, model: float, level: float
) -> tuple[float, float]:
    """Low and high loss of one new run: parameters, noise and model error in quadrature."""
    low, high = mean_interval(value, draws, model=model, level=level)
    run = student_t(tails(level)[1], df) * noise
    below, above = np.hypot(np.log(value / low), run), np.hypot(np.log(high / value), run)
    return float(value * np.exp(-below)), float(value * np.exp(above))


def mean_interval(value: float, draws: Array, *, model: float, level: float) -> tuple[float, float]:
    """Low and high of the mean loss (no run-to-run noise): parameters and model error in quadrature."""
    low, high = quantiles(draws, level) if len(draws) > 1 else (value, value)
    error = NormalDist().inv_cdf(tails(level)[1]) * model
    below = np.hypot(np.log(value / min(low, value)), MODEL_BELOW * error)
    above = np.hypot(np.log(max(high, value) / value), MODEL_ABOVE * error)
    return float(value * np.exp(-below)), float(value * np.exp(above))


def clusters_of(labels: Sequence[str] | None, n: int) -> npt.NDArray[np.intp]:
    """(n,) cluster numbers 0, 1, ... in order of appearance; every row its own when not given."""
    if labels is None:
        return np.arange(n)
    order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels])
