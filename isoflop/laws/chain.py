"""A task's score from N and D: a law of the loss, then one of the score given the loss; P = f(N, D, task)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isoflop.errors import FitError
from isoflop.laws import intervals
from isoflop.laws.result import Fit, Prediction

SAMPLES = 4000


def predict_score(
    loss: Fit,
    task: Fit,
    params: float,
    tokens: float,
    *,
    interval: float = 0.9,
    seed: int = 0,
    others: Mapping[str, float] | None = None,
) -> Prediction:
    """Score of one new run with `params` and `tokens`, its interval from joint draws of both laws.

    Each sample takes a draw of the loss law, adds the run's noise and the law's own error, and puts that loss
    into a draw of the task law, whose noise is added in turn (Gadre et al. 2403.08540, section 2.3; Bhagia et
    al. 2412.04403, section 3). Raises FitError when `task` is not a law of the loss alone.
    """
    intervals.check_level(interval)
    further = dict(others or {})
    if task.columns != ("task_loss",):
        raise FitError(
            f"The law {task.law} is not one of the loss.",
            hint="Fit downstream-sigmoid or downstream-exponential.",
        )
    rng = np.random.default_rng(seed)
    drawn = loss.predict_draws(params, tokens, **further)[:, 0]
    reached = drawn[rng.integers(len(drawn), size=SAMPLES)]
    sd = np.hypot(loss.noise_sd, loss.model_sd(params, tokens, **further))
    reached = reached * np.exp(sd * rng.standard_normal(SAMPLES))
    theta = task.draws_array[rng.integers(len(task.draws_array), size=SAMPLES)]
    scores = task.target(theta, {"task_loss": reached[:, None]})[:, 0]
    scores = scores * np.exp(task.noise_sd * rng.standard_normal(SAMPLES))
    middle = float(loss.loss(params, tokens, **further)[0])
    value = float(task.loss(task_loss=middle)[0])
    low, high = intervals.quantiles(scores, interval)
    found = Prediction(
        value=value,
        low=min(low, value),
        high=max(high, value),
        level=interval,
        of="new run",
        extrapolation=loss.extrapolation(params, tokens, **further),
    )
    return task.oriented(found)
