"""Early stopping: once held-out loss falls no more, the cooldown begins.

With few tokens read again and again, a model sooner or later gets worse on other text. Cut off there it
would be poor, since the learning rate is still at its peak. So the run is not cut off: it cools down at once,
and ends with the very weights that a run of its own of so many tokens would have. Its number of tokens is the
true one. The held-out text that ends it also scores it, which flatters it a little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.errors import TrainError
from isoflop.records import RunConfig

SCORES = 20  # of a run, where `evaluate_every` does not say


def check_patience(config: RunConfig, token_counts: Sequence[int]) -> None:
    """Raises TrainError when runs of given lengths are asked for, which patience would shorten."""
    if config.patience and len(set(token_counts)) > 1:
        raise TrainError(
            f"a patience of {config.patience} would end a trunk before its {len(set(token_counts))} branches",
            hint="leave patience at 0 in a ladder, and give it to a single run (isoflop train --patience)",
        )


class Patience:
    """Watches the held-out scores of a constant-rate trunk of `total` steps; `end` is where its run ends."""

    def __init__(self, config: RunConfig, total: int) -> None:
        self.limit, self.cooldown = config.patience, config.cooldown
        every = config.evaluate_every / config.batch_tokens or total / SCORES
        self.every = max(1, round(every))  # steps
        self.best, self.worse, self.end = math.inf, 0, total

    def due(self, step: int) -> bool:
        """Whether to score the model after `step` steps."""
        constant = step < self.end * (1 - self.cooldown)
        return self.limit > 0 and constant and step % self.every == 0

    def hear(self, loss: float, step: int) -> None:
        """Take note of a held-out loss; after `limit` in a row above the best, `step` ends the trunk."""
        if loss < self.best:
            self.best, self.worse = loss, 0
            return
        self.worse += 1
        if self.worse >= self.limit:
            self.end = min(self.end, math.ceil(step / (1 - self.cooldown)))

    def state(self) -> dict[str, float]:
        return {"best": self.best, "worse": self.worse, "end": self.end}

    def load(self, state: dict[str, float]) -> None:
        self.best, self.worse, self.end = state["best"], int(state["worse"]), int(state["end"])
