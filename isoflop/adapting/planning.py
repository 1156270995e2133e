"""How many steps an adaptation takes, and the learning rate of each."""

from __future__ import annotations

import math
from typing import NamedTuple

from isoflop.adapting.records import AdaptConfig

SCORING = 0.1  # share of the time that scores on validation examples may take, but for the last one
SPARE = 0.03  # share of the time that is kept back


class Pace(NamedTuple):
    """What was measured, in seconds."""

    step: float
    scoring: float  # of all validation examples


def steps_asked(config: AdaptConfig, examples: int, batch: int) -> int:
    """`config.steps`, else as many as `config.epochs` passes over the examples take."""
    return config.steps or max(1, round(config.epochs * math.ceil(examples / batch)))


def steps_that_fit(pace: Pace, evaluations: int, seconds: float) -> tuple[int, int]:
    """Steps and scores that the seconds left have time for; there is always one score, maybe no step."""
    scores = max(1, min(evaluations, int(SCORING * seconds / max(pace.scoring, 1e-9))))
    return max(0, int((seconds - scores * pace.scoring) / pace.step)), scores


def rate(step: int, total: int, warmup: float) -> float:
    """Of step 0, 1, ... as a share of the peak: up in a straight line for the share `warmup` of the steps,
    then down to zero, which step `total` would have (Devlin et al., arXiv 1810.04805, appendix A.2)."""
    warm = warmup * total
    if step + 1 <= warm:
        return (step + 1) / warm
    return min(1.0, max(0.0, (total - step) / max(1.0, total - warm)))
