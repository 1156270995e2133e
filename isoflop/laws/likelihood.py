"""How well a law describes its runs, for the choice among laws: AICc and BIC of a Huber density.

The density of a residual r of ln L at scale s is exp(-rho(r)/s^2) / (s Z(delta/s)), with rho the Huber loss
of width delta: a normal one for a wide delta, Laplace's for a narrow one. s is fitted, and counts.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.solve import Array

SCALES = 400


def deviance(residual: Array, delta: float) -> float:
    """-2 ln likelihood of (n,) residuals at the best scale."""
    from scipy.special import ndtr

    size = np.abs(residual)
    inside = np.minimum(size, delta)
    rho = float((inside * (size - 0.5 * inside)).sum())
    typical = max(float(np.sqrt(np.mean(residual**2))), 1e-12)
    # A narrow Huber density of mean |r| has scale sqrt(delta |r|), a wide one the standard deviation.
    narrow = np.sqrt(min(delta, typical) * max(float(size.mean()), 1e-12))
    s = np.geomspace(min(narrow, typical) / 10.0, 10.0 * typical, SCALES)
    width = np.minimum(delta / s, 40.0)
    normaliser = np.sqrt(2 * np.pi) * (2 * ndtr(width) - 1) + 2 * np.exp(-0.5 * width**2) / width
    return float(2.0 * (rho / s**2 + len(residual) * (np.log(s) + np.log(normaliser))).min())


def criteria(residual: Array, delta: float, parameters: int) -> tuple[float | None, float]:
    """AICc and BIC; the scale counts as a parameter. AICc is None when n is too small for it."""
    n, k = len(residual), parameters + 1
    fit = deviance(residual, delta)
    corrected = fit + 2 * k + 2.0 * k * (k + 1) / (n - k - 1) if n > k + 1 else None
    return corrected, float(fit + k * np.log(n))
