"""How large a vocabulary a training budget deserves."""

from __future__ import annotations

import math

DEFAULT_VOCABULARY = 4096
SMALLEST, LARGEST = 512, 65_536


def vocab_for(flops: float | None) -> int:
    """Vocabulary size (a power of two in [512, 65536]) for a training budget in FLOPs; 4096 without one.

    The rule is approach 1 of Tao et al. 2024 (Scaling Laws with Vocabulary, arXiv 2407.13623): the
    compute-optimal model has `N_nv = 0.08 * C**0.50` parameters outside the vocabulary and
    `N_v = 0.20 * C**0.42` in it. The width follows from `N_nv = 12 * layers * d**2` with
    `layers = d / 64`, so `d = (N_nv * 64 / 12)**(1/3)`, and the vocabulary is `N_v / d`, rounded to
    the nearest power of two.
    """
    if flops is None:
        return DEFAULT_VOCABULARY
    width = (0.08 * flops**0.50 * 64 / 12) ** (1 / 3)
    power = max(0, round(math.log2(0.20 * flops**0.42 / width)))
    return min(max(1 << power, SMALLEST), LARGEST)
