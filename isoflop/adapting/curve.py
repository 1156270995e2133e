"""Error against examples, or against size: a power law with a floor, and where a new run of it will lie.

    error(x) = E + beta x^-c        (M2 of Alabdulmohsin et al. 2209.06640, `laws.powers.FLOORED`)

fitted on ln error by weighted least squares with a weak prior on the exponent, as a handful of runs says
little of a floor and an exponent at once. Its interval has four parts, all drawn together:

1. the law's parameters: refits of a parametric bootstrap;
2. run-to-run noise, with Student's heavier tails, as few runs tell of its size; what is taken before any are
   seen (`SEEDS`, and the error of the test set) weighs as much as `PRIOR_DF` of them;
3. the test set's own error, which all runs that were scored on it share, and no residual shows;
4. the law's own error further out (`laws.intervals.model_sd`).

Shapes: s tables that share their points, n points, k draws, p parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isoflop.laws import intervals, solve
from isoflop.laws.equation import Equation
from isoflop.laws.powers import FLOORED, POWER
from isoflop.laws.solve import Array, Prior, Problem

DRAWS = 400
PRIOR_DF = 4  # runs that the noise's prior weighs
# Assumptions: the exponents of 8 in 10 learning curves lie between 0.16 and 1, errors differ between seeds by
# 5% beside the test set's part, and the law itself errs by 4% of the error at twice the largest x.
PRIOR_EXPONENT, PRIOR_SD = 0.4, 0.7
SEEDS = 0.05
MODEL_SIGMA = 0.02
EXPONENT = "c"


@dataclass(frozen=True)
class Curves:
    """A law fitted to each of s tables of runs, with its draws, in the solver's coordinates."""

    law: Equation
    centre: Array
    largest: float  # x of the furthest run
    theta: Array  # (s, p)
    draws: Array  # (s, k, p)
    noise: Array  # (s, k) relative sd of a run, drawn from what is known of it
    test: Array  # (s,) relative sd of an error, by the test set
    smallest: Array  # (s,) fitted error at the largest x

    def value(self, x: float | Array) -> Array:
        """(s, q) fitted errors at x (q,)."""
        return np.asarray(self.law.value(self.theta, self._features(x)))

    def new_runs(self, x: float, seed: int = 0) -> Array:
        """(s, k) errors that a new run may have at x, scored on a test set of the same size."""
        rng = np.random.default_rng(seed)
        tables, draws, p = self.draws.shape
        error = self.law.value(self.draws.reshape(-1, p), self._features(x)).reshape(tables, draws)
        model = float(intervals.model_sd(x / self.largest, MODEL_SIGMA))
        sd = np.sqrt(self.noise**2 + model**2 + self._test_sd(error) ** 2)
        return np.asarray(error * np.exp(sd * rng.standard_normal(error.shape)))

    def needed(self, error: Array) -> tuple[Array, Array]:
        """x at which the law comes to an error (1 + k,): by the fit of the first table, then by each draw.

        nan where it never does.
        """
        own = self._inverse(self.theta[:1], error[:1])
        return own, self._inverse(self.draws[0], error[1:])

    def _inverse(self, theta: Array, error: Array) -> Array:
        natural = dict(zip(self.law.names, self.law.uncentre(theta, self.centre).T, strict=True))
        above = error - natural.get("E", 0.0)
        with np.errstate(all="ignore"):
            x = (above / natural["beta"]) ** (-1.0 / natural[EXPONENT])
        return np.asarray(np.where((above > 0) & (natural[EXPONENT] > 0), x, np.nan))

    def _test_sd(self, error: Array) -> Array:
        """Relative; of a share it grows as the error falls, by the root."""
        ratio = self.smallest[:, None] / np.maximum(error, 1e-12)
        return np.asarray(self.test[:, None] * np.sqrt(np.clip(ratio, 0.25, 4.0)))

    def _features(self, x: float | Array) -> Array:
        return np.log(np.atleast_1d(x))[None] - self.centre[:, None]


def fit_curves(
    x: Array, error: Array, test_sd: Array, *, exponent: float = PRIOR_EXPONENT, draws: int = DRAWS,
    seed: int = 0,
) -> Curves:  # fmt: skip
    """Fit a law to each row of `error` (s, n), above zero, at `x` (n,).

    `test_sd` (s, n) is the relative standard error of each, by its test set; `exponent` the prior's centre.
    Without three different x there is no floor to see, and the law has none.
    """
    law = FLOORED if len(np.unique(x)) > 2 else POWER
    features, centre = law.features({"x": x})
    tables, n = error.shape
    weight = test_sd**-2.0
    test = np.sqrt(n / weight.sum(axis=1))
    prior = Prior(
        noise=float(np.hypot(np.median(test), SEEDS)), centre=np.full((1, 1), np.log(exponent)), sd=PRIOR_SD,
        at=(law.names.index(EXPONENT),),
    )  # fmt: skip
    problem = Problem(
        law, features, np.log(error), weight / weight.mean(axis=1, keepdims=True), np.inf,
        np.ones(len(law.names), bool), prior,
    )  # fmt: skip
    theta = _optimum(problem, tables)
    rng = np.random.default_rng(seed)
    noise = _noise(problem, theta, test)[:, None] * _scales(tables, draws, n - len(law.names), rng)
    last = int(x.argmax())
    return Curves(
        law, centre, float(x.max()), theta, _refits(problem, theta, noise, rng), noise, test_sd[:, last],
        law.value(theta, features)[:, last],
    )  # fmt: skip


def _optimum(problem: Problem, tables: int) -> Array:
    """(s, p): the best of the law's starts, for each table."""
    starts = problem.law.start_grid(float(np.exp(problem.log_loss.mean())))
    at = np.repeat(np.arange(tables), len(starts))
    with np.errstate(divide="ignore"):  # an exponent of zero has no logarithm, and is refused
        theta, objective, _ = solve.minimise(
            problem.take(at), np.tile(starts, (tables, 1)), limits=solve.FAIR
        )
        best = objective.reshape(tables, -1).argmin(axis=1) + np.arange(tables) * len(starts)
        return solve.minimise(problem, theta[best])[0]


def _noise(problem: Problem, theta: Array, test: Array) -> Array:
    """(s,) relative sd of a run of weight one: that of the residuals, shrunk to what is taken of it."""
    residual = np.log(problem.law.value(theta, problem.x)) - problem.log_loss
    df = max(0, residual.shape[1] - theta.shape[1])
    squares = (problem.weight * residual**2).sum(axis=1)
    return np.asarray(np.sqrt((PRIOR_DF * (test**2 + SEEDS**2) + squares) / (PRIOR_DF + df)))


def _scales(tables: int, draws: int, df: int, rng: np.random.Generator) -> Array:
    """(s, k): how much larger than estimated the noise may be."""
    known = PRIOR_DF + max(0, df)
    return np.asarray(np.sqrt(known / rng.chisquare(known, size=(tables, draws))))


def _refits(problem: Problem, theta: Array, noise: Array, rng: np.random.Generator) -> Array:
    """(s, k, p): each draw has noise of its own scale, and a centre of the prior."""
    tables, draws = noise.shape
    at = np.repeat(np.arange(tables), draws)
    many = problem.take(at)
    sd = noise.reshape(-1, 1) / np.sqrt(many.weight)
    fitted = np.log(problem.law.value(theta, problem.x))[at]
    assert problem.prior is not None
    centre = problem.prior.centre + problem.prior.sd * rng.standard_normal((len(at), 1))
    drawn = replace(
        many, log_loss=fitted + sd * rng.standard_normal(fitted.shape),
        prior=replace(problem.prior, centre=centre),
    )  # fmt: skip
    with np.errstate(divide="ignore"):
        found, _, _ = solve.minimise(drawn, theta[at], limits=solve.FAIR)
    return found.reshape(tables, draws, -1)
