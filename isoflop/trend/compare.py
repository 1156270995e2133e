"""Which growth model: AICc, BIC and rolling-origin forecasts side by side, and a verdict that may be none.

An origin is a date of the past: every model is fitted to the points before it and forecasts those of the
next `REACH` years. The errors are also what a forecast's band is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.records import Record
from isoflop.trend.growth import Growth, fit_all
from isoflop.trend.points import Floats
from isoflop.trend.shapes import SHAPES

MARGIN = 2.0  # of AICc: below it two models are not told apart (Burnham and Anderson 2002, section 2.6)
ORIGINS, REACH = 10, 3  # at most; years
NEAR = 1.02  # of forecast errors
EARLIEST = 12  # points before the first origin
UNDECIDED = "undecided"


class Model(Record):
    """One growth model of the fitted points."""

    name: str
    formula: str
    n: int
    k: int  # parameters, the noise counted
    rss: float  # of ln(value)
    aicc: float | None
    bic: float
    forecast_error: float | None  # mean |ln(forecast / value)|; None: not fitted at every origin
    params: dict[str, float]  # rates a year of ln(value), dates in decimal years
    rates: dict[str, float]  # of its pieces or ends, factors a year


class Comparison(Record):
    """All models, the best AICc first, and which it is."""

    models: tuple[Model, ...]
    verdict: str  # a model's name, or UNDECIDED
    why: str
    chosen: str  # to forecast with: the simplest within `NEAR` of the best forecaster
    origins: int
    left_out: tuple[str, ...]  # a sentence for each model that the points do not allow


@dataclass(frozen=True)
class Backtest:
    """What rolling origins forecast: one row of `errors` a model of `names`."""

    names: tuple[str, ...]
    ahead: Floats  # (m,) years from the origin to the point
    errors: Floats  # (models, m) ln(forecast / value)
    origins: int

    def of(self, name: str) -> Floats:
        """(m,) errors of a model; empty where it was not fitted at every origin."""
        return self.errors[self.names.index(name)] if name in self.names else np.empty(0)

    def error(self, name: str) -> float | None:
        found = self.of(name)
        return float(np.abs(found).mean()) if len(found) else None


def backtest(years: Floats, logs: Floats) -> Backtest:
    """Forecasts of the second half of (n,) points in order, from up to `ORIGINS` dates."""
    begin = max(EARLIEST, len(years) // 2)
    starts = np.unique(np.searchsorted(years, years[begin:]))  # a date's points are forecast together
    starts = starts[starts >= min(EARLIEST, len(years))]
    if len(starts) > ORIGINS:
        starts = starts[np.linspace(0, len(starts) - 1, ORIGINS).astype(int)]
    ahead, errors = [], []
    for start in starts:
        origin = years[start - 1]
        after = slice(start, int(np.searchsorted(years, origin + REACH, side="right")))
        fits, _ = fit_all(years[:start], logs[:start], refine=False)
        ahead.append(years[after] - origin)
        errors.append({name: g.predict(years[after]) - logs[after] for name, g in fits.items()})
    names = tuple(name for name in SHAPES if errors and all(name in e for e in errors))
    rows = [np.concatenate([e[name] for e in errors]) for name in names]
    every = np.concatenate(ahead) if ahead else np.empty(0)
    return Backtest(names, every, np.array(rows).reshape(len(names), len(every)), len(starts))


def compare(growths: Mapping[str, Growth], missing: Sequence[str], test: Backtest) -> Comparison:
    """The verdict over fits to the same points."""
    found = [
        Model(name=g.model, formula=SHAPES[g.model].formula, n=g.n, k=g.k, rss=g.rss, aicc=g.aicc, bic=g.bic,
              forecast_error=test.error(g.model), params=g.params,
              rates={piece: float(np.exp(slope)) for piece, slope in g.rates.items()})
        for g in growths.values()
    ]  # fmt: skip
    models = sorted(found, key=lambda m: _or_inf(m.aicc))
    verdict, why = _verdict(models)
    least = min(_or_inf(m.forecast_error) for m in models)
    able = [m for m in models if _or_inf(m.forecast_error) <= NEAR * least]
    chosen = min(able, key=lambda m: (m.k, _or_inf(m.forecast_error))).name
    return Comparison(models=tuple(models), verdict=verdict, why=why, chosen=chosen, origins=test.origins,
                      left_out=tuple(missing))  # fmt: skip


def _verdict(models: Sequence[Model]) -> tuple[str, str]:
    """The verdict on models sorted by AICc, and its reason."""
    best = models[0]
    if len(models) == 1:
        return UNDECIDED, f"The points allow {best.name} growth only."
    lead = _or_inf(models[1].aicc) - _or_inf(best.aicc)
    near = [m.name for m in models if _or_inf(m.aicc) < _or_inf(best.aicc) + MARGIN]
    if len(near) > 1:
        return UNDECIDED, f"Within {MARGIN:g} of the best AICc: {', '.join(near)}."
    tested = [m for m in models if m.forecast_error is not None]
    if not tested:
        return UNDECIDED, f"AICc favours {best.name}, but the points are too few to test forecasts."
    forecaster = min(tested, key=lambda m: _or_inf(m.forecast_error))
    if forecaster.name != best.name:
        return UNDECIDED, f"AICc favours {best.name} by {lead:.1f}, past forecasts favour {forecaster.name}."
    return best.name, f"Best by AICc, by {lead:.1f}, and in forecasts of the past."


def _or_inf(value: float | None) -> float:
    return np.inf if value is None else value
