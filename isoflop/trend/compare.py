"""Which growth model: AICc, BIC and rolling-origin forecasts side by side, and a verdict that may be none.

An origin is a date of the past: every model is fitted to the points before it and forecasts those of the
next `REACH` years. The errors are also what a forecast's band is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.records import Record
from isoflop.trend.growth import Growth, fit_all
from isoflop.trend.points import Floats
from isoflop.trend.shapes import SHAPES

MARGIN = 2.0  # of AICc: below it two models are not told apart (Burnham and Anderson 2002, section 2.6)
ORIGINS, REACH = 10, 3  # at most; years
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
    chosen: (
        str  # to forecast with: the simplest that forecast no worse than the best, without an end in reach
    )
    origins: int
    left_out: tuple[str, ...]  # a sentence for each model that the points do not allow


@dataclass(frozen=True)
class Backtest:
    """What rolling origins forecast: one row of `errors` a model of `names`."""

    names: tuple[str, ...]
    origin: NDArray[np.intp]  # (m,) 0, 1, ...: which forecasts were made on one date
    ahead: Floats  # (m,) years from the origin to the point
    errors: Floats  # (models, m) ln(forecast / value)

    @property
    def origins(self) -> int:
        return len(np.unique(self.origin))

    def of(self, name: str) -> Floats:
        """(m,) errors of a model; empty where it was not fitted at every origin."""
        return self.errors[self.names.index(name)] if name in self.names else np.empty(0)

    def error(self, name: str) -> float | None:
        found = self.of(name)
        return float(np.abs(found).mean()) if len(found) else None

    def no_worse(self) -> tuple[str, ...]:
        """The best forecaster, and models whose errors exceed its by no more than a standard error.

        The standard error is of the difference from origin to origin (Breiman et al. 1984, section 3.4.3).
        """
        size = np.abs(self.errors)
        finite = [i for i in range(len(self.names)) if len(self.ahead) and np.isfinite(size[i]).all()]
        if not finite:
            return ()
        best = min(finite, key=lambda i: size[i].mean())
        found = []
        for i in finite:
            more = size[i] - size[best]
            by_origin = np.array([more[self.origin == o].mean() for o in np.unique(self.origin)])
            slack = by_origin.std(ddof=1) / np.sqrt(len(by_origin)) if len(by_origin) > 1 else 0.0
            if by_origin.mean() <= slack:
                found.append(self.names[i])
        return tuple(found)


def backtest(years: Floats, logs: Floats) -> Backtest:
    """Forecasts of the second half of (n,) points in order, from up to `ORIGINS` dates."""
    begin = max(EARLIEST, len(years) // 2)
    starts = np.unique(np.searchsorted(years, years[begin:]))  # a date's points are forecast together
    starts = starts[starts >= min(EARLIEST, len(years))]
    if len(starts) > ORIGINS:
        starts = starts[np.linspace(0, len(starts) - 1, ORIGINS).astype(int)]
    ahead, errors, origin = [], [], []
    for i, start in enumerate(starts):
        begun = years[start - 1]
        after = slice(start, int(np.searchsorted(years, begun + REACH, side="right")))
        fits, _ = fit_all(years[:start], logs[:start], refine=False)
        ahead.append(years[after] - begun)
        origin.append(np.full(len(years[after]), i))
        errors.append({name: g.predict(years[after]) - logs[after] for name, g in fits.items()})
    names = tuple(name for name in SHAPES if errors and all(name in e for e in errors))
    rows = [np.concatenate([e[name] for e in errors]) for name in names]
    every = np.concatenate(ahead) if ahead else np.empty(0)
    dates = np.concatenate(origin) if origin else np.empty(0, np.intp)
    return Backtest(names, dates, every, np.array(rows).reshape(len(names), len(every)))


def compare(growths: Mapping[str, Growth], missing: Sequence[str], test: Backtest) -> Comparison:
    """The verdict over fits to the same points."""
    found = [
        Model(name=g.model, formula=SHAPES[g.model].formula, n=g.n, k=g.k, rss=g.rss, aicc=g.aicc, bic=g.bic,
              forecast_error=test.error(g.model), params=g.params,
              rates={piece: float(np.exp(slope)) for piece, slope in g.rates.items()})
        for g in growths.values()
    ]  # fmt: skip
    models = sorted(found, key=lambda m: _or_inf(m.aicc))
    able = test.no_worse()
    verdict, why = _verdict(models, able)
    last = np.array([max(g.span.last for g in growths.values()) + REACH])
    able_models = [m for m in models if m.name in able and np.isfinite(growths[m.name].predict(last)[0])]
    chosen = min(able_models or models, key=lambda m: (m.k, _or_inf(m.forecast_error))).name
    return Comparison(models=tuple(models), verdict=verdict, why=why, chosen=chosen, origins=test.origins,
                      left_out=tuple(missing))  # fmt: skip


def _verdict(models: Sequence[Model], able: Sequence[str]) -> tuple[str, str]:
    """The verdict on models sorted by AICc, and its reason; `able` is `Backtest.no_worse`."""
    best = models[0]
    if len(models) == 1:
        return UNDECIDED, f"The points allow {best.name} growth only."
    lead = _or_inf(models[1].aicc) - _or_inf(best.aicc)
    near = [m.name for m in models if _or_inf(m.aicc) < _or_inf(best.aicc) + MARGIN]
    if len(near) > 1:
        return UNDECIDED, f"Within {MARGIN:g} of the best AICc: {', '.join(near)}."
    if not able:
        return UNDECIDED, f"AICc favours {best.name}, but the points are too few to test forecasts."
    if best.name not in able:
        forecaster = min(models, key=lambda m: _or_inf(m.forecast_error))
        return UNDECIDED, f"AICc favours {best.name} by {lead:.1f}, past forecasts favour {forecaster.name}."
    return best.name, f"Best by AICc, by {lead:.1f}, and no worse than any in forecasts of the past."


def _or_inf(value: float | None) -> float:
    return np.inf if value is None else value
