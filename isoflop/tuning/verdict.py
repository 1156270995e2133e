"""Whether what a search found is better than the recipe, said by runs that the search has not seen.

The lowest of many losses is too low: it was chosen for its luck as well. So the best trial's values and the
recipe's are trained again, whole, with other seeds, and compared seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.records import Interval
from isoflop.trials import Trial, Tuning

LEVEL = 0.9


def paired(better: Sequence[float], base: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean difference `better` - `base` of pairs, with Student's interval of n - 1 degrees of freedom."""
    from scipy import stats

    d = np.subtract(better, base)
    half = float(stats.t.ppf((1 + level) / 2, len(d) - 1) * d.std(ddof=1) / math.sqrt(len(d)))
    mean = float(d.mean())
    return Interval(value=mean, low=mean - half, high=mean + half, level=level, of="difference")


def in_doublings(difference: Interval, recipe: Trial) -> Interval | None:
    """What the difference is worth in doublings of this run's compute; None when the recipe gains by none.

    One doubling is what the recipe gained by the last of its own, from the branch before the longest.
    """
    if len(recipe.losses) < 2 or recipe.losses[-2] <= recipe.losses[-1]:
        return None
    nats = recipe.losses[-2] - recipe.losses[-1]
    return Interval(
        value=-difference.value / nats, low=-difference.high / nats, high=-difference.low / nats,
        level=difference.level, of="doublings",
    )  # fmt: skip


def verdict(tuning: Tuning, recipe: Sequence[float], best: Sequence[float]) -> Tuning:
    """`tuning` with its answer; the losses are by seed, nan where one was not finite.

    They are empty when the best trial is the recipe's own.
    """
    known: dict[str, Any] = {"losses_recipe": tuple(recipe), "losses_best": tuple(best)}
    if not best:
        words = f"Of {len(tuning.trials)} trials the recipe's own values are the best: keep them."
    elif lost := sum(map(math.isnan, best)):
        words = f"Trial {tuning.best} does not hold: {lost} of {len(best)} other seeds fail. Keep the recipe."
    elif lost := sum(map(math.isnan, recipe)):
        words = f"With other seeds the recipe fails {lost} of {len(recipe)} times, trial {tuning.best} never."
        known |= {"better": True}
    else:
        difference = paired(best, recipe)
        worth = in_doublings(difference, tuning.trials[0])
        known |= {"difference": difference, "doublings": worth, "better": difference.high < 0}
        words = _compared(tuning, difference, worth)
    return tuning.model_copy(update={**known, "sentence": words})


def _compared(tuning: Tuning, found: Interval, worth: Interval | None) -> str:
    """The comparison in words."""
    level = f"{100 * found.level:g}% interval"
    nats = f"{found.value:+.4f} nats a token, {level} {found.low:+.4f} to {found.high:+.4f}"
    trial, seeds = f"Trial {tuning.best}", f"{len(tuning.seeds)} other seeds"
    if found.low > 0:
        return f"{trial} was luck: with {seeds} it is worse than the recipe, {nats}. Keep the recipe."
    if found.high >= 0:
        return f"{trial} and the recipe are not told apart by {seeds}: {nats}. Keep the recipe."
    says = f"{trial} is better than the recipe with {seeds}: {nats}"
    if worth is None:
        return f"{says}."
    return f"{says}. Worth {worth.value:.2f} [{worth.low:.2f}, {worth.high:.2f}] doublings of its compute."
