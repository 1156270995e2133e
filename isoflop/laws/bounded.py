"""M4 of Alabdulmohsin et al. 2209.06640: a power law between a random guess and a floor.

    (y - E) / (I - y)^alpha = beta x^-c

y is given implicitly; the left side rises with y on (E, I), so it has one solution. I is the score of a
random guess (1 - 1/classes for an error rate, ln of the vocabulary for a loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from isoflop.laws.equation import grid
from isoflop.laws.published import Published
from isoflop.laws.solve import Array

BISECTIONS, NEWTONS = 12, 6
CURVATURES = (0.25, 1.0, 3.0)
RATES = (0.1, 0.3, 0.8)


class Bounded:
    """Parameters (E, I, beta, alpha, c); the solver moves ln beta, and E, I, alpha, c as they are."""

    name: ClassVar[str] = "bounded"
    formula: ClassVar[str] = "(y - E) / (I - y)^alpha = beta x^-c"
    source: ClassVar[str] = "M4 of Alabdulmohsin et al. 2209.06640"
    names: ClassVar[tuple[str, ...]] = ("E", "I", "beta", "alpha", "c")
    columns: ClassVar[tuple[str, ...]] = ("x",)
    linear: ClassVar[int] = 0
    lower: ClassVar[Array] = np.array([0.0, 1e-9, -np.inf, 0.0, 0.0])
    upper: ClassVar[Array] = np.array([np.inf, np.inf, np.inf, 20.0, 5.0])
    exponents_at: ClassVar[tuple[int, ...]] = ()
    held: ClassVar[Mapping[str, float]] = {}
    published: ClassVar[tuple[Published, ...]] = ()
    same_split: ClassVar[None] = None
    target: ClassVar[str] = "loss"
    least_ratio: ClassVar[float] = 0.0

    def features(self, columns: Mapping[str, Array], centred: bool = True) -> tuple[Array, Array]:
        """(1, n) centred ln x, and its centre (1,)."""
        x = np.log(np.asarray(columns["x"], dtype=np.float64))[None]
        centre = x.mean(axis=1) if centred else np.zeros(1)
        return x - centre[:, None], centre

    def start_grid(self, level: float) -> Array:
        starts = grid(0.3 * level, (1.5 * level, 3.0 * level), 1.0, CURVATURES, RATES)
        E, guess, _, alpha, _ = starts.T
        starts[:, 2] = np.log((level - E) / (guess - level) ** alpha)
        return starts

    def value(self, theta: Array, x: Array) -> Array:
        """(m, n) by bisection on the share of the way from E to I, then Newton steps on its logit."""
        E, guess, b, alpha, c = (theta[:, i : i + 1] for i in range(5))
        width = np.maximum(guess - E, 1e-12)
        # With y = E + width s: ln s - alpha ln(1 - s) = target, increasing in the logit z of s.
        target = b - c * x[0] - (1.0 - alpha) * np.log(width)
        low, high = np.full(target.shape, -60.0), np.full(target.shape, 60.0)
        for _ in range(BISECTIONS):
            z = 0.5 * (low + high)
            above = _log_sides(z, alpha) > target
            high, low = np.where(above, z, high), np.where(above, low, z)
        z = 0.5 * (low + high)
        for _ in range(NEWTONS):
            s = 1.0 / (1.0 + np.exp(-z))
            z = np.clip(z - (_log_sides(z, alpha) - target) / (1.0 - s + alpha * s + 1e-300), low, high)
        return np.asarray(E + width / (1.0 + np.exp(-z)))

    def jacobian(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """Values and derivatives: the implicit function theorem on the logarithm of the equation."""
        y = self.value(theta, x)
        E, guess, _, alpha, _ = (theta[:, i : i + 1] for i in range(5))
        below, above = np.maximum(y - E, 1e-300), np.maximum(guess - y, 1e-300)
        slope = 1.0 / below + alpha / above
        parts = (
            -1.0 / below,
            -alpha / above,
            -np.ones_like(y),
            -np.log(above),
            np.broadcast_to(x[0], y.shape),
        )
        return y, np.stack([-part / slope for part in parts], axis=1)

    def curvature(self, theta: Array, jac: Array, x: Array, weight: Array) -> None:
        """Not used: steps are Gauss-Newton's."""
        return

    def uncentre(self, theta: Array, centre: Array) -> Array:
        out = theta.copy()
        out[:, 2] = np.exp(theta[:, 2] + theta[:, 4] * centre[0])
        return out

    def recentre(self, theta: Array, centre: Array) -> Array:
        """Inverse of `uncentre`."""
        out = theta.copy()
        out[:, 2] = np.log(theta[:, 2]) - theta[:, 4] * centre[0]
        return out

    def loss(self, theta: Array, columns: Mapping[str, Array]) -> Array:
        """(m, n) targets of natural parameters (m, 5) at x (n,)."""
        x = np.log(np.asarray(columns["x"], dtype=np.float64))[None]
        return self.value(self.recentre(theta, np.zeros(1)), x)


def _log_sides(z: Array, alpha: Array) -> Array:
    """ln s - alpha ln(1 - s) at the logit z of s."""
    return np.asarray(-np.logaddexp(0.0, -z) + alpha * np.logaddexp(0.0, z))
