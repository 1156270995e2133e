"""Hoffmann's approaches 1 and 2: the known bias, and the published exponents."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.laws.approaches import bias, envelope, parabolas

SHARED = Path(__file__).parents[2] / "shared/data/scaling"


def isoflops(alpha: float, beta: float, reach: float = 8.0) -> dict[str, np.ndarray]:
    """Six budgets of nine sizes around the best one, without noise."""
    N, D = [], []
    for C in np.geomspace(1e18, 1e21, 6):
        G = (alpha * 400.0 / (beta * 1000.0)) ** (1 / (alpha + beta))
        best = G * (C / 6) ** (beta / (alpha + beta))
        sizes = best * np.geomspace(1 / reach, reach, 9)
        N += sizes.tolist()
        D += (C / 6 / sizes).tolist()
    n, d = np.array(N), np.array(D)
    return {"params": n, "tokens": d, "loss": 1.7 + 400.0 / n**alpha + 1000.0 / d**beta}


@pytest.mark.parametrize(
    ("alpha", "beta", "reach", "error"),
    [
        (0.34, 0.28, 8, 0.0299),
        (0.34, 0.28, 16, 0.05374),
        (0.465, 0.155, 4, 0.0695),
        (0.465, 0.155, 16, 0.3007),
    ],
)
def test_the_bias_of_a_parabola_is_the_known_one(
    alpha: float, beta: float, reach: float, error: float
) -> None:
    # Computed apart from this code, for 15 sizes evenly spaced in ln N.
    grid = np.log(np.geomspace(1 / reach, reach, 15))
    assert bias(grid, alpha, beta) - 1 == pytest.approx(error, abs=2e-4)


def test_parabolas_have_the_right_exponent_and_after_correction_the_right_size() -> None:
    table = isoflops(0.40, 0.28)
    found = parabolas(table)
    assert found.exponent.value == pytest.approx(0.28 / 0.68, abs=1e-3)
    best = (0.40 * 400.0 / (0.28 * 1000.0)) ** (1 / 0.68) * (1e20 / 6) ** (0.28 / 0.68)
    assert found.at(1e20) == pytest.approx(best, rel=5e-3)
    raw = found.slices[0].params_parabola / found.slices[0].params
    assert raw == pytest.approx(bias(np.log(np.geomspace(1 / 8, 8, 9)), 0.40, 0.28), rel=1e-3)
    assert all(s.inside for s in found.slices)


def test_the_envelope_of_isoflops_finds_the_exponent_roughly() -> None:
    found = envelope(isoflops(0.34, 0.34))
    assert found.exponent.value == pytest.approx(0.5, abs=0.05)
    assert len(found.flops) == 6


def test_llama_3_isoflops_give_the_published_exponent() -> None:
    path = SHARED / "isoflops_llama3_marin.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the project (shared/data/scaling)")
    with path.open() as file:
        rows = [
            r
            for r in csv.DictReader(file)
            if r["experiment"] == "llama_3__exp_loss" and r["outlier"] != "True"
        ]
    table = {k: np.array([float(r[k]) for r in rows]) for k in ("params", "tokens", "loss")}
    found = parabolas(table)
    # Llama 3 (2407.21783): D* = 0.29 C^0.53, so N* rises with 1 - 0.53.
    assert found.exponent.low - 0.03 <= 0.47 <= found.exponent.high + 0.03


def test_tables_without_slices_are_refused() -> None:
    N = np.geomspace(1e6, 1e8, 9)
    table = {"params": N, "tokens": 20 * N, "loss": 2 + 400 / N**0.34}
    with pytest.raises(FitError, match="compute budgets have 4 sizes"):
        parabolas(table)
    with pytest.raises(FitError, match="several runs"):
        envelope(table)
