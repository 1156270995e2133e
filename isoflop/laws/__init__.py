"""Scaling laws: fit a table of runs, predict new ones with honest intervals, split a budget.

    from isoflop.laws import fit
    law = fit({"params": N, "tokens": D, "loss": L})
    law.predict(1e9, 2e10).value

To add a law: one file with a class like `chinchilla.Chinchilla`, and one line in `LAWS`.
"""

from isoflop.laws.chinchilla import Chinchilla
from isoflop.laws.fit import ESTIMATORS, fit
from isoflop.laws.registry import LAWS
from isoflop.laws.result import Fit, FlopsModel, Holdout, Observations, Optimum, Prediction

__all__ = [
    "ESTIMATORS",
    "LAWS",
    "Chinchilla",
    "Fit",
    "FlopsModel",
    "Holdout",
    "Observations",
    "Optimum",
    "Prediction",
    "fit",
]
