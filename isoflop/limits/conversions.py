"""What limits are made of, in training FLOPs: logarithms, so that products of many draws are sums.

Every function takes and gives natural logarithms, of shapes that broadcast.
"""

from __future__ import annotations

import numpy as np

from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array

SECONDS_A_DAY, SECONDS_AN_HOUR = 86_400.0, 3_600.0


def of_power(watts: Array, seconds: Array, flops_per_joule: Array, utilisation: Array) -> Array:
    """Power times time is energy; `flops_per_joule` are those of a machine at its peak."""
    return watts + seconds + flops_per_joule + utilisation


def of_chips(chips: Array, flops_per_second: Array, seconds: Array, utilisation: Array) -> Array:
    """`flops_per_second` is a chip's peak."""
    return chips + flops_per_second + seconds + utilisation


def of_money(usd: Array, usd_per_hour: Array, flops_per_second: Array, utilisation: Array) -> Array:
    """What the hours that money buys of a machine compute."""
    return usd - usd_per_hour + float(np.log(SECONDS_AN_HOUR)) + flops_per_second + utilisation


def of_tokens(law: Fit, tokens: Array, theta: Array, **others: float) -> Array:
    """The compute whose best split trains on (m,) `tokens`, by (m, p) parameters; inf where none does."""
    found = law.split(**others).compute_for_tokens(theta, np.exp(tokens))
    return np.log(np.where(np.isnan(found), np.inf, found))


def of_gap(law: Fit, gap: Array, theta: Array, **others: float) -> Array:
    """The compute that brings the loss within (m,) `gap` of the irreducible one; inf where none does."""
    floor = theta[:, law_named(law.law).names.index("E")]
    found = law.compute_for(floor + np.exp(gap), theta, **others)
    return np.log(np.where(np.isnan(found), np.inf, found))
