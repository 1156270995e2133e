"""How well a law describes its runs: AICc and BIC of a Huber density, and the deviance behind profiles.

The density of a residual r of ln L at scale s is exp(-rho(r)/s^2) / (s Z(delta/s)), with rho the Huber loss
of width delta: a normal one for a wide delta, Laplace's for a narrow one. s is fitted, and counts.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.solve import Array

SCALES = 200


def huber(residual: Array, delta: float) -> float:
    """Sum of Huber losses of (n,) residuals."""
    size = np.abs(residual)
    inside = np.minimum(size, delta)
    return float((inside * (size - 0.5 * inside)).sum())


def scale(total: Array, n: int, delta: float) -> Array:
    """(m,) scales of largest likelihood, from (m,) sums of Huber losses of n residuals.

    The best s^2 is 2 rho / (n (1 + g)), with g in (0, 1) the share of the density outside the width: it lies
    between rho/n (Laplace) and 2 rho/n (normal).
    """
    s = np.sqrt(np.maximum(total / n, 1e-26))[:, None] * np.geomspace(1.0, np.sqrt(2.0), SCALES)
    best = _deviance(total[:, None], s, n, delta).argmin(axis=1)
    return np.asarray(s[np.arange(len(s)), best])


def deviance(total: Array, n: int, delta: float) -> Array:
    """(m,) -2 ln likelihood at the best scale, from (m,) sums of Huber losses of n residuals."""
    return _deviance(total, scale(total, n, delta), n, delta)


def _deviance(total: Array, s: Array, n: int, delta: float) -> Array:
    from scipy.special import ndtr

    width = np.minimum(delta / s, 40.0)
    normaliser = np.sqrt(2 * np.pi) * (2 * ndtr(width) - 1) + 2 * np.exp(-0.5 * width**2) / width
    return np.asarray(2.0 * (total / s**2 + n * (np.log(s) + np.log(normaliser))))


def criteria(residual: Array, delta: float, parameters: int) -> tuple[float | None, float]:
    """AICc and BIC; the scale counts as a parameter. AICc is None when n is too small for it."""
    n, k = len(residual), parameters + 1
    fit = float(deviance(np.array([huber(residual, delta)]), n, delta)[0])
    corrected = fit + 2 * k + 2.0 * k * (k + 1) / (n - k - 1) if n > k + 1 else None
    return corrected, float(fit + k * np.log(n))
