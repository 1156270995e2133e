"""Targets that rise, and scores of tasks chained to a law of the loss."""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.laws import Fit, fit
from isoflop.laws.chain import predict_score

rng = np.random.default_rng(0)
N = np.repeat(np.geomspace(1e7, 1e9, 6), 6)
D = N * np.tile(np.geomspace(5, 80, 6), 6)
LOSS = 1.8 + 480.0 / N**0.35 + 2100.0 / D**0.37


def accuracy(loss: np.ndarray | float) -> np.ndarray:
    """OLMo's sigmoid: from chance at high loss to almost one."""
    return np.asarray(1.0 - 0.7 / (1.0 + np.exp(-4.8 * (np.asarray(loss) - 2.4))))


def test_a_rising_target_is_fitted_from_its_ceiling_and_predicted_as_it_is() -> None:
    hours = np.geomspace(10, 1e4, 20)
    score = 0.95 - 0.8 * hours**-0.3 * np.exp(0.01 * rng.standard_normal(20))
    found = fit({"x": hours, "loss": score}, law="power-floor", ceiling=1.0, bootstrap=100)
    one = found.predict(x=3e4)
    truth = 0.95 - 0.8 * 3e4**-0.3
    assert one.low < truth < one.high < 1.0
    assert one.value == pytest.approx(truth, abs=0.02)
    assert found.predict(x=1e5).value > one.value
    assert "The target rises" in " ".join(found.diagnostics)
    with pytest.raises(FitError, match="not below the ceiling"):
        fit({"x": hours, "loss": score}, law="power-floor", ceiling=0.5)


def test_scores_follow_from_size_and_data() -> None:
    loss_law = fit(
        {"params": N, "tokens": D, "loss": LOSS * np.exp(0.003 * rng.standard_normal(36))}, bootstrap=100
    )
    scores = accuracy(LOSS) * np.exp(0.004 * rng.standard_normal(36))
    task_law = fit({"task_loss": LOSS, "loss": scores}, law="downstream-sigmoid", bootstrap=100)
    found = predict_score(loss_law, task_law, 2e9, 8e10)
    truth = float(accuracy(1.8 + 480.0 / 2e9**0.35 + 2100.0 / 8e10**0.37))
    assert found.low < truth < found.high
    assert found.high - found.low < 0.4
    assert found.extrapolation == pytest.approx(2.0)
    assert predict_score(loss_law, task_law, 2e9, 8e10) == found
    narrow = predict_score(loss_law, task_law, 2e9, 8e10, interval=0.5)
    assert narrow.high - narrow.low < found.high - found.low
    with pytest.raises(FitError, match="not one of the loss"):
        predict_score(loss_law, loss_law, 2e9, 8e10)


def test_published_constants_chain_too() -> None:
    found = predict_score(
        Fit.of_published("gadre-2024-c4"), Fit.of_published("gadre-2024-error-c4"),
        (1e21 / 120) ** 0.5, (1e21 * 20 / 6) ** 0.5,
    )  # fmt: skip
    assert found.value == pytest.approx(0.529398355849361)
