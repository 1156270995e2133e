"""Several families in one picture: what compute buys of each, with the interval of its frontier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from isoflop.laws import Fit
from isoflop.plots.laws import frontier_data
from isoflop.plots.style import LOSS, MARKERS, PALETTE, Array, dress, points, power

COLOURS = ("accent", "final", "muted", "step5")  # ours first


@dataclass(frozen=True)
class FamilyCurve:
    """Frontier of one family with the 90% interval of the mean loss on it, and the runs behind it."""

    name: str
    flops: Array
    loss: Array
    low: Array
    high: Array
    run_flops: Array
    run_loss: Array


def family_curve(name: str, fit: Fit, *, scale: float = 1.0) -> FamilyCurve:
    """`scale` turns nats a token into the unit of the picture, such as bits per byte.

    Raises FitError when the law has no best split of compute.
    """
    data = frontier_data(fit)
    low, high = (scale * np.asarray(side) for side in data.mean)
    return FamilyCurve(
        name, data.flops, scale * data.loss, low, high, data.measured_flops, scale * data.measured_loss
    )


def draw_families(ax: Axes, curves: Sequence[FamilyCurve], ylabel: str = LOSS) -> None:
    """Loss against compute; one colour and marker a family."""
    for curve, colour, marker in zip(curves, COLOURS, MARKERS, strict=False):
        ax.fill_between(curve.flops, curve.low, curve.high, color=PALETTE[colour], alpha=0.16, lw=0)
        ax.plot(curve.flops, curve.loss, color=PALETTE[colour], lw=1.8)
        points(ax, curve.run_flops, curve.run_loss, PALETTE[colour], marker, curve.name)
    dress(ax, "training compute, FLOP", power, ylabel)
