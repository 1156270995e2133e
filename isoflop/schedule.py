"""The learning rate over a run, as a share of its peak."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from isoflop.records import RunConfig

# From 1 to 0 as the share of the cooldown that is left does.
COOLDOWNS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "sqrt": lambda left: 1 - math.sqrt(1 - left),  # "1-sqrt" of Haegele et al., arXiv 2405.18392, section 3.2
    "cosine": lambda left: (1 - math.cos(math.pi * left)) / 2,
}


def rate(tokens: int, config: RunConfig) -> float:
    """Learning rate as a share of its peak: linear warm-up, constant, cooldown to zero.

    Haegele et al., arXiv 2405.18392: one constant-rate trunk with cooldown branches serves every D.
    """
    warm = min(1.0, (tokens + config.batch_tokens) / max(1, config.warmup_tokens))
    left = (config.tokens - tokens) / max(1.0, config.tokens * config.cooldown)
    return min(warm, COOLDOWNS[config.cooldown_shape](min(1.0, max(0.0, left))))
