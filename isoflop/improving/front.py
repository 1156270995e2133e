"""Which of several models are worth having: by loss, bytes and seconds a token at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isoflop.improving.records import Figures, Limits, Tried

SLACK = 0.01  # of the allowed rise, of bytes, of seconds: what nobody would notice
LEAST_GAIN = 0.003  # of the hypervolume, below which a candidate is not worth building


def better(one: Figures, other: Figures) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better (Pareto dominance)."""
    pairs = list(zip(_values(one), _values(other), strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def makes_needless(measured: Figures, at_best: Figures, rise: float) -> bool:
    """Whether a candidate would be hardly better in anything; `rise` of the loss, in nats, is allowed."""
    return (
        measured.loss <= at_best.loss + SLACK * rise
        and measured.bytes <= at_best.bytes * (1 + SLACK)
        and measured.seconds <= at_best.seconds * (1 + SLACK)
    )


def front(trials: Sequence[Tried]) -> tuple[int, ...]:
    """Numbers of those that no other dominates, fewest bytes first."""
    known = {i: t.figures for i, t in enumerate(trials) if t.figures is not None}
    kept = [i for i, f in known.items() if not any(better(g, f) for g in known.values())]
    return tuple(sorted(kept, key=lambda i: (known[i].bytes, i)))


def excess(found: Figures, limits: Limits, loss: float) -> dict[str, float]:
    """By how much each limit is broken, as a share of it; `loss` is the input's. Empty: within all."""
    allowed = {
        "loss": (found.loss, loss * (1 + limits.loss_increase)),
        "bytes": (found.bytes, limits.bytes),
        "seconds": (found.seconds, limits.seconds),
    }
    shares = {name: have / most - 1 for name, (have, most) in allowed.items() if most is not None}
    return {name: share for name, share in shares.items() if share > 0}


def recommended(trials: Sequence[Tried], limits: Limits) -> int | None:
    """Of the trials within all limits that with the least bytes x seconds; None when there is none."""
    first = trials[0].figures
    assert first is not None
    products = {
        i: f.bytes * f.seconds
        for i, t in enumerate(trials)
        if (f := t.figures) is not None and not excess(f, limits, first.loss)
    }
    return min(products, key=lambda i: (products[i], i)) if products else None


def hypervolume(found: Sequence[Figures], start: Figures, limits: Limits) -> float:
    """Share of the box that the models dominate: 0 is the input's worth, 1 would be nothing for nothing.

    Its sides are bytes and seconds as shares of the input's, and the rise of the loss as a share of the rise
    that is allowed; a loss below the input's counts as the input's.
    """
    from optuna._hypervolume import compute_hypervolume

    rise = limits.loss_increase * start.loss
    points = np.array([
        [max(0.0, f.loss - start.loss) / rise, f.bytes / start.bytes, f.seconds / start.seconds]
        for f in found
    ])  # fmt: skip
    inside = points[(points < 1).all(axis=1)] if len(points) else points
    return float(compute_hypervolume(inside, np.ones(3))) if len(inside) else 0.0


def _values(figures: Figures) -> tuple[float, float, float]:
    assert all(map(math.isfinite, (figures.loss, figures.bytes, figures.seconds)))
    return figures.loss, figures.bytes, figures.seconds
