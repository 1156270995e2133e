"""Many small robust regressions at once: the solver behind every fit, bootstrap draw and hold-out.

All problems share the points and differ in weights, observations, starts and priors; they are the leading
axis of every array. Shapes: m problems, n points, p parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CHUNK_ELEMENTS = 24_000  # problems x points in one pass: the working set stays in cache


class Law(Protocol):
    """What a law must offer.

    The solver's coordinates may differ from the natural parameters (scaled covariates, logarithms);
    `uncentre` and `recentre` go between them. `columns` name the covariates that the law needs.
    """

    @property
    def name(self) -> str: ...
    @property
    def formula(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def linear(self) -> int: ...  # that many first parameters enter linearly
    @property
    def lower(self) -> Array: ...
    @property
    def upper(self) -> Array: ...
    @property
    def exponents_at(self) -> tuple[int, ...]: ...  # what the weak prior of small tables is about
    @property
    def held(self) -> Mapping[str, float]: ...  # fixed unless the caller says otherwise
    @property
    def published(self) -> tuple[Any, ...]: ...
    @property
    def same_split(self) -> Callable[[Array], Array] | None: ...  # -> Chinchilla's with the same best split
    @property
    def target(self) -> str: ...  # what the law predicts, in a word
    @property
    def least_ratio(self) -> float: ...  # tokens a parameter, below which the law says nothing
    def features(self, columns: Mapping[str, Array], centred: bool = True) -> tuple[Array, Array]: ...
    def start_grid(self, level: float) -> Array: ...
    def value(self, theta: Array, x: Array) -> Array: ...
    def jacobian(self, theta: Array, x: Array) -> tuple[Array, Array]: ...
    def curvature(self, theta: Array, jac: Array, x: Array, weight: Array) -> Array | None: ...
    def uncentre(self, theta: Array, centre: Array) -> Array: ...
    def recentre(self, theta: Array, centre: Array) -> Array: ...
    def loss(self, theta: Array, columns: Mapping[str, Array]) -> Array: ...


@dataclass(frozen=True)
class Limits:
    """When to stop: relative decrease of the objective at which a problem is solved, and steps at most."""

    tolerance: float
    steps: int


FINE = Limits(tolerance=1e-11, steps=120)
ROUGH = Limits(tolerance=1e-4, steps=20)  # for starts
FAIR = Limits(tolerance=1e-7, steps=60)  # for hold-outs and the choice among starts


@dataclass(frozen=True)
class Prior:
    """Weak normal prior on the logarithms of the parameters `at`: ((ln theta - centre)/sd)^2 / 2 for each.

    `noise` is the relative run-to-run sd that turns it into units of the objective. `centre` is
    (m, len(at)) or (1, len(at)): bootstrap draws take random centres, so that the prior's own width
    is in the draws.
    """

    noise: float
    centre: Array
    sd: float
    at: tuple[int, ...]

    def strength(self, delta: float) -> float:
        """What multiplies the prior: a residual r adds r^2/2 inside the Huber width and about delta |r|
        outside, so the objective over noise min(noise, delta) is a log-likelihood."""
        return self.noise * min(self.noise, delta)


@dataclass(frozen=True)
class Problem:
    """Points shared by all problems (`x` (c, n)), and what differs: log losses and weights (m or 1, n)."""

    law: Law
    x: Array
    log_loss: Array
    weight: Array
    delta: float  # of the Huber loss, on the log of the loss; inf is least squares
    free: npt.NDArray[np.bool_]  # (p,) parameters that may move
    prior: Prior | None = None

    def take(self, index: npt.NDArray[np.intp]) -> Problem:
        def pick(a: Array) -> Array:
            return a if len(a) == 1 else a[index]

        prior = self.prior and replace(self.prior, centre=pick(self.prior.centre))
        return replace(self, log_loss=pick(self.log_loss), weight=pick(self.weight), prior=prior)

    def rows(self, at: npt.NDArray[np.intp]) -> Problem:
        """The problem of some of the points."""
        return replace(self, x=self.x[:, at], log_loss=self.log_loss[:, at], weight=self.weight[:, at])

    def objective(self, theta: Array) -> Array:
        """(m,) weighted sums of Huber losses of ln(prediction) - ln(observation), prior included."""
        size = np.abs(np.log(np.clip(self.law.value(theta, self.x), 1e-300, 1e300)) - self.log_loss)
        inside = np.minimum(size, self.delta)
        total = np.einsum("mn,mn->m", *np.broadcast_arrays(self.weight, inside * (size - 0.5 * inside)))
        if self.prior is not None:
            z = (np.log(theta[:, self.prior.at]) - self.prior.centre) / self.prior.sd
            total = total + 0.5 * self.prior.strength(self.delta) * (z**2).sum(axis=1)
        return np.asarray(total)

    def newton(self, theta: Array, damping: Array) -> tuple[Array, Array, Array]:
        """Gradient (m, p), damped exact Hessian (m, p, p) and its positive diagonal scale (m, p).

        The damping adds the Hessian of the quadratic majorizer (iteratively reweighted least squares),
        so a large one gives the safe slow step of that method and zero gives Newton's.
        """
        value, jac = self.law.jacobian(theta, self.x)
        value = np.clip(value, 1e-300, 1e300)
        residual = np.log(value) - self.log_loss
        size = np.abs(residual)
        inside = size <= self.delta
        psi = self.weight * np.clip(residual, -self.delta, self.delta)
        majorizer = self.weight * np.where(inside, 1.0, self.delta / np.maximum(size, 1e-300))
        per_value = psi / value
        curvature = self.law.curvature(theta, jac, self.x, per_value)
        gradient = np.einsum("mn,mpn->mp", per_value, jac)
        jac /= value[:, None, :]
        scale = np.einsum("mn,mpn,mpn->mp", majorizer, jac, jac, optimize=False)
        if curvature is None:  # reweighted Gauss-Newton
            gram = (1.0 + damping[:, None]) * majorizer
            hessian = np.matmul(jac * gram[:, None, :], jac.transpose(0, 2, 1))
        else:
            gram = self.weight * inside + damping[:, None] * majorizer - psi
            hessian = np.matmul(jac * gram[:, None, :], jac.transpose(0, 2, 1)) + curvature
        if self.prior is not None:
            at = np.array(self.prior.at)
            shape = theta[:, at]
            strength = self.prior.strength(self.delta) / self.prior.sd**2
            gradient[:, at] += strength * (np.log(shape) - self.prior.centre) / shape
            hessian[:, at, at] += strength / shape**2
            scale[:, at] += strength / shape**2
        return gradient, hessian, scale


def step(problem: Problem, theta: Array, damping: Array, free: npt.NDArray[np.bool_]) -> Array:
    """One damped Newton step inside the bounds; parameters outside `free` (p,) stay fixed."""
    law = problem.law
    gradient, hessian, scale = problem.newton(theta, damping)
    blocked = ((theta <= law.lower) & (gradient > 0)) | ((theta >= law.upper) & (gradient < 0)) | ~free
    scale = np.maximum(scale, 1e-14 * scale.max(axis=1, keepdims=True) + 1e-300)
    root = np.sqrt(scale)
    hessian = hessian / (root[:, :, None] * root[:, None, :])
    gradient = gradient / root
    keep = ~blocked
    hessian *= keep[:, :, None] & keep[:, None, :]
    at = np.arange(theta.shape[1])
    hessian[:, at, at] += np.where(blocked, 1.0, 0.1 * damping[:, None] + 1e-13)
    gradient = np.where(blocked, 0.0, gradient)
    usable = np.isfinite(hessian).all(axis=(1, 2)) & np.isfinite(gradient).all(axis=1)
    hessian = np.where(usable[:, None, None], hessian, np.eye(theta.shape[1]))
    move = np.where(usable[:, None], -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0] / root, np.nan)
    return np.asarray(np.where(free, np.clip(theta + move, law.lower, law.upper), theta))


def minimise(
    problem: Problem,
    start: Array,
    *,
    free: npt.NDArray[np.bool_] | None = None,
    limits: Limits = FINE,
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Minimise every problem from its start; never worse than the start. `free` (p,) frees fewer parameters.

    Returns parameters (m, p), objectives (m,), and whether each converged (m,).
    """
    m, n = len(start), problem.x.shape[1]
    free = problem.free if free is None else problem.free & free
    size = max(1, CHUNK_ELEMENTS // n)
    theta, objective, done = start.copy(), np.empty(m), np.empty(m, bool)
    for i in range(0, m, size):
        at = slice(i, min(i + size, m))
        part = problem.take(np.arange(m)[at])
        for delta in _widths(problem.delta):
            scaled = replace(part, delta=delta)
            theta[at], objective[at], done[at] = _minimise_chunk(scaled, theta[at], free, limits)
    return theta, objective, done


def _widths(delta: float) -> list[float]:
    """Huber widths on the way to a narrow one, which alone would be a maze of kinks."""
    first = [width for width in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7) if width > 2.0 * delta]
    return [*first, delta] if delta < 1e-3 else [delta]


def _minimise_chunk(
    problem: Problem, start: Array, free: npt.NDArray[np.bool_], limits: Limits
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    m = len(start)
    theta = np.where(free, np.clip(start, problem.law.lower, problem.law.upper), start)
    objective = np.nan_to_num(problem.objective(theta), nan=np.inf)
    damping = np.full(m, 0.3)
    done, refused = np.zeros(m, bool), np.zeros(m, bool)
    for _ in range(limits.steps):
        at = np.flatnonzero(~done)
        if len(at) == 0:
            break
        part = problem.take(at) if len(at) < m else problem
        trial = step(part, theta[at], damping[at], free)
        value = part.objective(trial)
        drop = objective[at] - value
        better = drop > 0
        small = np.abs(drop) <= limits.tolerance * objective[at]
        done[at] = (small & (~better | (damping[at] < 1e-2))) | (damping[at] > 1e8)
        won = at[better]
        theta[won], objective[won] = trial[better], value[better]
        # Straight after a refusal the damping stays, so that it does not swing between the two.
        eased = np.where(refused[at], 0.6, 0.15) * damping[at]
        damping[at] = np.where(better, eased, np.maximum(damping[at], 1e-6) * 8.0)
        refused[at] = ~better
    return theta, objective, done
