"""Several families in one picture: the data behind it on known laws, and that each family is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from isoflop.laws import Fit, fit
from isoflop.plots.families import draw_families, family_curve

TRUE = {"E": 1.5, "A": 30.0, "B": 200.0, "alpha": 0.3, "beta": 0.35}


@pytest.fixture(scope="module")
def law() -> Fit:
    """Runs on a known law without noise."""
    N, D = (grid.ravel() for grid in np.meshgrid([1e5, 3e5, 9e5, 2.7e6], [1e6, 4e6, 1.6e7]))
    loss = TRUE["E"] + TRUE["A"] / N ** TRUE["alpha"] + TRUE["B"] / D ** TRUE["beta"]
    return fit({"params": N, "tokens": D, "loss": loss}, bootstrap=60)


def test_the_frontier_is_the_best_loss_of_each_compute(law: Fit) -> None:
    curve = family_curve("gpt2", law)
    sizes = np.geomspace(1e3, 1e9, 4000)
    for flops, loss in zip(curve.flops[::12], curve.loss[::12], strict=True):
        tokens = flops / (6 * sizes)
        known = TRUE["E"] + TRUE["A"] / sizes ** TRUE["alpha"] + TRUE["B"] / tokens ** TRUE["beta"]
        assert loss == pytest.approx(known.min(), rel=0.01)
    assert np.all(curve.low <= curve.loss)
    assert np.all(curve.loss <= curve.high)


def test_another_unit_scales_every_loss(law: Fit) -> None:
    nats, bits = family_curve("gpt2", law), family_curve("gpt2", law, scale=0.5)
    for name in ("loss", "low", "high", "run_loss"):
        assert getattr(bits, name) == pytest.approx(0.5 * getattr(nats, name))
    assert bits.run_flops == pytest.approx(nats.run_flops)


def test_every_family_is_drawn_and_named(law: Fit) -> None:
    ax = Figure().subplots()
    draw_families(ax, [family_curve(name, law) for name in ("isoflop", "gpt2", "llama")], "bits per byte")
    assert ax.get_legend_handles_labels()[1] == ["isoflop", "gpt2", "llama"]
    assert len(ax.collections) == 3  # intervals
    assert len(ax.lines) == 6  # frontiers and runs
    assert ax.get_ylabel() == "bits per byte"
    assert ax.get_xscale() == "log"
