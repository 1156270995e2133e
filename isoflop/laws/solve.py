"""Many small robust regressions at once: the solver behind every fit, bootstrap draw and hold-out.

All problems share the points and differ in weights, observations, starts and priors; they are the leading
axis of every array. Shapes: m problems, n points, p parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
CHUNK_ELEMENTS = 24_000  # problems x points in one pass: the working set stays in cache


class Law(Protocol):
    """What a law must offer: see `chinchilla.Chinchilla` for shapes and units."""

    @property
    def name(self) -> str: ...
    @property
    def formula(self) -> str: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def linear(self) -> int: ...
    @property
    def lower(self) -> Array: ...
    @property
    def upper(self) -> Array: ...
    def features(self, params: Array, tokens: Array) -> tuple[Array, Array]: ...
    def start_grid(self) -> Array: ...
    def value(self, theta: Array, x: Array) -> Array: ...
    def jacobian(self, theta: Array, x: Array) -> tuple[Array, Array]: ...
    def curvature(self, jac: Array, x: Array, weight: Array) -> Array: ...
    def uncentre(self, theta: Array, centre: Array) -> Array: ...
    def recentre(self, theta: Array, centre: Array) -> Array: ...
    def loss(self, theta: Array, params: Array, tokens: Array) -> Array: ...
    def optimum(
        self, theta: Array, flops: float, kappa: float, gamma: float
    ) -> tuple[Array, Array, Array]: ...
    def compute_for(self, theta: Array, loss: Array, kappa: float, gamma: float) -> Array: ...


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
    """Weak normal prior on the logarithms of the exponents: ((ln theta - centre)/sd)^2 / 2 for each.

    `noise` is the relative run-to-run sd that turns it into units of the objective. `centre` is
    (m, exponents) or (1, exponents): bootstrap draws take random centres, so that the prior's own width
    is in the draws.
    """

    noise: float
    centre: Array
    sd: float

    def strength(self, delta: float) -> float:
        """What multiplies the prior: a residual r adds r^2/2 inside the Huber width and about delta |r|
        outside, so the objective over noise min(noise, delta) is a log-likelihood."""
        return self.noise * min(self.noise, delta)


@dataclass(frozen=True)
class Problem:
    """Points shared by all problems (`x` (2, n)), and what differs: log losses and weights (m or 1, n)."""

    law: Law
    x: Array
    log_loss: Array
    weight: Array
    delta: float  # of the Huber loss, on the log of the loss; inf is least squares
    prior: Prior | None = None

    def take(self, index: npt.NDArray[np.intp]) -> Problem:
        def pick(a: Array) -> Array:
            return a if len(a) == 1 else a[index]

        prior = self.prior and Prior(self.prior.noise, pick(self.prior.centre), self.prior.sd)
        return Problem(self.law, self.x, pick(self.log_loss), pick(self.weight), self.delta, prior)

    def objective(self, theta: Array) -> Array:
        """(m,) weighted sums of Huber losses of ln(prediction) - ln(observation), prior included."""
        size = np.abs(np.log(np.maximum(self.law.value(theta, self.x), 1e-300)) - self.log_loss)
        inside = np.minimum(size, self.delta)
        total = np.einsum("mn,mn->m", *np.broadcast_arrays(self.weight, inside * (size - 0.5 * inside)))
        if self.prior is not None:
            z = (np.log(theta[:, self.law.linear :]) - self.prior.centre) / self.prior.sd
            total = total + 0.5 * self.prior.strength(self.delta) * (z**2).sum(axis=1)
        return np.asarray(total)

    def newton(self, theta: Array, damping: Array) -> tuple[Array, Array, Array]:
        """Gradient (m, p), damped exact Hessian (m, p, p) and its positive diagonal scale (m, p).

        The damping adds the Hessian of the quadratic majorizer (iteratively reweighted least squares),
        so a large one gives the safe slow step of that method and zero gives Newton's.
        """
        value, jac = self.law.jacobian(theta, self.x)
        value = np.maximum(value, 1e-300)
        residual = np.log(value) - self.log_loss
        size = np.abs(residual)
        inside = size <= self.delta
        psi = self.weight * np.clip(residual, -self.delta, self.delta)
        majorizer = self.weight * np.where(inside, 1.0, self.delta / np.maximum(size, 1e-300))
        per_value = psi / value
        curvature = self.law.curvature(jac, self.x, per_value)
        gradient = np.einsum("mn,mpn->mp", per_value, jac)
        jac /= value[:, None, :]
        scale = np.einsum("mn,mpn,mpn->mp", majorizer, jac, jac, optimize=False)
        gram = self.weight * inside + damping[:, None] * majorizer - psi
        hessian = np.matmul(jac * gram[:, None, :], jac.transpose(0, 2, 1)) + curvature
        if self.prior is not None:
            at = np.arange(self.law.linear, theta.shape[1])
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
    move = -np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0] / root
    return np.asarray(np.clip(theta + move, law.lower, law.upper))


def minimise(
    problem: Problem,
    start: Array,
    *,
    free: npt.NDArray[np.bool_] | None = None,
    limits: Limits = FINE,
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Minimise every problem from its start; never worse than the start.

    Returns parameters (m, p), objectives (m,), and whether each converged (m,).
    """
    m, n = len(start), problem.x.shape[1]
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
    problem: Problem, start: Array, free: npt.NDArray[np.bool_] | None, limits: Limits
) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    m, p = start.shape
    free = np.ones(p, bool) if free is None else free
    theta = np.clip(start, problem.law.lower, problem.law.upper)
    objective = problem.objective(theta)
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
