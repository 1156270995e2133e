"""Training doublings of one result over a law."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isoflop.errors import FitError
from isoflop.laws import intervals
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.records import Gain, Interval

UNBOUNDED_FLOPS = 1e300  # stands for C_base(L) where L <= E: no compute reaches it; keeps the JSON strict
MIN_DRAWS = 2000  # joint draws of law and loss when the loss is uncertain


def gain(
    fit: Fit,
    loss: float,
    flops: float,
    *,
    loss_se: float = 0.0,
    costs: Mapping[str, float] | None = None,
    interval: float = 0.9,
    seed: int = 0,
) -> Gain:
    """Training doublings log2(C_base(L) / C) of a model with held-out `loss` made with `flops` in all.

    C_base(L) inverts the compute-optimal frontier of the fitted law (Hoffmann et al. 2203.15556, eq. 4).
    The interval joins the law's bootstrap draws with normal noise of the loss: `loss_se` (nats a token)
    and nothing else, so give a standard error that includes the spread over seeds.

    Where L <= E the baseline never reaches L: `flops_base` is then `UNBOUNDED_FLOPS`, `doublings` follow
    from it, and `undefined_share` counts the draws; `is_defined` asks about the value itself.
    `costs` are the named parts of `flops`, kept in the record. Raises FitError on impossible numbers.
    """
    intervals.check_level(interval)
    parts = dict(costs or {})
    for name, value in {"loss": loss, "flops": flops}.items():
        if not (np.isfinite(value) and value > 0):
            raise FitError(f"A gain needs a positive {name}, not {value}.", hint="Measure it again.")
    if not (np.isfinite(loss_se) and loss_se >= 0):
        raise FitError(f"loss_se is {loss_se}.", hint="Give a standard error in nats a token, or 0.")
    bad = [name for name, value in parts.items() if not (np.isfinite(value) and value >= 0)]
    if bad:
        raise FitError(f"The cost {bad[0]!r} is {parts[bad[0]]}.", hint="Costs are FLOPs, zero or more.")

    draws = fit.draws_array
    rng = np.random.default_rng(seed)
    copies = max(1, -(-MIN_DRAWS // len(draws))) if loss_se > 0 else 1
    theta = np.tile(draws, (copies, 1))
    losses = loss + loss_se * rng.standard_normal(len(theta))
    base = fit.compute_for(losses, theta)
    value = float(bounded(fit.compute_for(loss, fit.theta))[0])
    low, high = intervals.quantiles(bounded(base), interval)
    flops_base = Interval(
        value=value, low=min(low, value), high=max(high, value), level=interval, of="baseline compute"
    )
    measured = fit.observations.compute()
    return Gain(
        loss=loss,
        flops=flops,
        costs=parts,
        flops_base=flops_base,
        doublings=Interval(
            value=float(np.log2(flops_base.value / flops)),
            low=float(np.log2(flops_base.low / flops)),
            high=float(np.log2(flops_base.high / flops)),
            level=interval,
            of="doublings",
        ),
        extrapolated=not measured.min() <= value <= measured.max(),
        undefined_share=float(np.isnan(base).mean()),
    )


def is_defined(result: Gain) -> bool:
    """Whether the baseline law reaches the loss at all (L > E of the fitted law)."""
    return result.flops_base.value < UNBOUNDED_FLOPS


def bounded(base: Array) -> Array:
    """C_base with `UNBOUNDED_FLOPS` where it is undefined or larger."""
    return np.asarray(np.minimum(np.where(np.isnan(base), np.inf, base), UNBOUNDED_FLOPS))


def drawn(row: Array, level: float, of: str = "doublings") -> Interval:
    """A value first, its draws after it."""
    low, high = intervals.quantiles(row[1:], level)
    value = float(row[0])
    return Interval(value=value, low=min(low, value), high=max(high, value), level=level, of=of)
