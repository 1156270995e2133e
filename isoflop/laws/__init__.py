"""Scaling laws: fit a table of runs, predict new ones with honest intervals, split a budget.

    from isoflop.laws import fit
    law = fit({"params": N, "tokens": D, "loss": L})
    law.predict(1e9, 2e10).value

To add a law: one file with its equation (see `coupled`), and one line in `registry`.
"""

from isoflop.laws.chinchilla import Chinchilla
from isoflop.laws.fit import ESTIMATORS, fit
from isoflop.laws.observations import Observations
from isoflop.laws.registry import LAWS, PUBLISHED, law_named
from isoflop.laws.result import Fit, FlopsModel, Holdout, Optimum, Prediction

__all__ = [
    "ESTIMATORS",
    "LAWS",
    "PUBLISHED",
    "Chinchilla",
    "Fit",
    "FlopsModel",
    "Holdout",
    "Observations",
    "Optimum",
    "Prediction",
    "fit",
    "law_named",
]
