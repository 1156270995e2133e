"""How fast does a metric grow, by which model, and how sure is that: one record for one question.

table = read_table("notable_ai_models.csv")
trend = answer(table, "compute", since="2018", frontier="top10")
trend.rate_per_year, trend.interval, trend.verdict
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from isoflop.errors import TrendError
from isoflop.laws.intervals import check_level, quantiles
from isoflop.records import Interval, Record
from isoflop.trend.breaks import SLOWING, UNTOLD, Slowing, slowing
from isoflop.trend.cells import bound
from isoflop.trend.compare import REACH, Backtest, Comparison, Model, backtest, compare
from isoflop.trend.frontier import Frontier, quantile_line
from isoflop.trend.growth import Growth, fit_all
from isoflop.trend.metrics import METRICS, MODELS, metric_named
from isoflop.trend.points import Points, decimal_year
from isoflop.trend.rates import (
    BOOTSTRAPS,
    DRAWS,
    Influence,
    Rate,
    as_they_are,
    influences,
    rate_of,
    resampled,
    slopes,
)
from isoflop.trend.series import series
from isoflop.trend.tables import PACKAGED, Table, read_table

LEAST = 5  # points behind any answer
FEW_GROUPS = 8  # organisations below which rows are drawn one by one
QUANTILE, QUANTILE_DRAWS = 0.9, 100  # of the quantile regression
SIDE_DRAWS = 500  # of the other definitions of the frontier
SIDE = ("all", "top10", "records")
SHIFTED = 0.2  # share of draws on one side of the rate, below which that is said
SETTLED = 3  # times K points before the window, below which a running top K is still filling up
TESTED = 10  # errors of past forecasts at a horizon, below which it has no band


class Definition(Record):
    """The rate by another definition of the frontier."""

    frontier: str
    n: int
    rate_per_year: float  # a factor
    interval: tuple[float, float]


class Forecast(Record):
    """A value to come, of a new point of the frontier; the band is of errors of past forecasts."""

    year: float
    value: Interval
    tested: int  # errors that the band is made of


class Trend(Record):
    """The answer. Rates are factors a year; `doubling_months` below zero is a halving time.

    Ends of an interval that is unbounded are infinite (null in the command's JSON).
    """

    metric: str
    unit: str
    snapshot: str  # hash of the table
    frontier: str
    since: float | None  # decimal years
    first: float  # of the points
    last: float
    n: int  # points of the frontier in the window
    of: int  # points in the window
    undisclosed: int  # rows in the window without the metric
    rate_per_year: float
    interval: tuple[float, float]  # of the rate
    level: float
    bootstrap: str  # that `interval` is of
    doubling_months: float
    doubling_interval: tuple[float, float]
    bootstraps: tuple[Rate, ...]
    definitions: tuple[Definition, ...]
    models: tuple[Model, ...]  # best AICc first
    verdict: str  # a model, or undecided
    why: str
    slowing: Slowing
    forecast_model: str
    forecast: tuple[Forecast, ...]
    influences: tuple[Influence, ...]
    seed: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """Points up to the end of the window, the window's beginning, and which of them are the frontier."""

    points: Points  # what came before the window decides who is among the largest in it
    since: float  # -inf: from the first
    frontier: Frontier

    @classmethod
    def of(
        cls, table: Table, metric: str, *, since: str | None = None, until: str | None = None,
        domain: str | None = None, frontier: str = "all",
    ) -> Question:  # fmt: skip
        """Raises TrendError for what the table does not hold, or fewer than `LEAST` points."""
        known = METRICS.get(metric)
        found = Frontier.named(frontier, falls=known is not None and known.falls)
        inside = series(table, metric, since, until, domain)
        before = series(table, metric, None, until, domain) if since else inside
        points = replace(before, undisclosed=inside.undisclosed, notes=inside.notes)
        begin = bound("--since", since, "first")
        asked = cls(points, -np.inf if begin is None else decimal_year(begin), found)
        asked.chosen()
        return asked

    def chosen(self) -> Points:
        """The frontier in the window. Raises TrendError when its points or dates are too few."""
        rows = np.flatnonzero(as_they_are(self.points, self.since, self.frontier).weights[0])
        found = self.points.take(rows)
        if len(rows) < LEAST or len(np.unique(found.years)) < LEAST:
            raise TrendError(
                f"{self.points.metric} has {len(rows)} points of {len(np.unique(found.years))} dates on the"
                f" frontier {self.frontier.name} in this window; a rate needs {LEAST}.",
                hint="Widen the window (--since, --until), or take --frontier all.",
            )
        return found

    def unsettled(self) -> bool:
        """Whether the frontier is still filling up where the window begins.

        A table's first K points belong to its top K for want of others, so the frontier rises too fast at
        first: of simulated series of constant growth half then looked as if they slowed (docs/trend.md).
        """
        before = int((self.points.years < self.since).sum())
        return before < max(SETTLED * self.frontier.top, TESTED) if self.frontier.top else False


def question(
    metric: str, *, path: Path | None = None, date_column: str | None = None, value_column: str | None = None,
    since: str | None = None, until: str | None = None, domain: str | None = None, frontier: str = "all",
) -> tuple[Table, Question]:  # fmt: skip
    """The table at `path`, or the package's own that states the metric, and the question put to it.

    Raises TrendError, also for a metric that only a table of the user's can state.
    """
    if path is None and metric_named(metric).kind not in PACKAGED:
        raise TrendError(f"The package has no table of {metric}.", hint="Give your own: --table FILE.csv.")
    kind = METRICS[metric].kind if path is None else MODELS
    table = read_table(path, kind=kind, date_column=date_column, value_column=value_column)
    return table, Question.of(table, metric, since=since, until=until, domain=domain, frontier=frontier)


def answer(
    table: Table,
    metric: str,
    *,
    since: str | None = None,
    until: str | None = None,
    domain: str | None = None,
    frontier: str = "all",
    interval: float = 0.9,
    seed: int = 0,
) -> Trend:
    """The rate of a metric's growth and all that is said about it.

    Raises TrendError for what the table does not hold or points that are too few, FitError for an interval
    that is none.
    """
    asked = Question.of(table, metric, since=since, until=until, domain=domain, frontier=frontier)
    return answer_to(asked, interval, seed)


def answer_to(asked: Question, interval: float = 0.9, seed: int = 0) -> Trend:
    """The answer to a question that is put already."""
    check_level(interval)
    points, since, chosen = asked.points, asked.since, asked.chosen()
    rng = np.random.default_rng(seed)
    inside = points.years >= since
    groups = len({group for group, there in zip(points.groups, inside, strict=True) if there})
    main = "organisations" if groups >= FEW_GROUPS else "rows"
    tables = {name: resampled(points, since, asked.frontier, name, DRAWS, rng) for name in BOOTSTRAPS}
    slope = float(slopes(as_they_are(points, since, asked.frontier))[0])
    rates = {name: rate_of(slope, slopes(drawn), interval, name) for name, drawn in tables.items()}
    growths, missing = fit_all(chosen.years, np.log(chosen.values))
    test = backtest(chosen.years, np.log(chosen.values))
    compared = compare(growths, missing, test)
    foreseen = forecasts(growths[compared.chosen], test, interval)
    evidence = slowing(growths, tables[main], interval, rng)
    if asked.unsettled() and evidence.verdict == SLOWING:
        evidence = evidence.model_copy(update={"verdict": UNTOLD})
    rate, above = rates[main], float((slopes(tables[main]) > slope).mean())
    return Trend(
        metric=points.metric,
        unit=points.unit,
        snapshot=points.snapshot,
        frontier=asked.frontier.name,
        since=float(since) if np.isfinite(since) else None,
        first=float(chosen.years[0]),
        last=float(chosen.years[-1]),
        n=len(chosen),
        of=int(inside.sum()),
        undisclosed=points.undisclosed,
        rate_per_year=rate.per_year.value,
        interval=(rate.per_year.low, rate.per_year.high),
        level=interval,
        bootstrap=main,
        doubling_months=rate.doubling_months.value,
        doubling_interval=(rate.doubling_months.low, rate.doubling_months.high),
        bootstraps=tuple(rates.values()),
        definitions=definitions(asked, main, interval, rng),
        models=compared.models,
        verdict=compared.verdict,
        why=compared.why,
        slowing=evidence,
        forecast_model=compared.chosen,
        forecast=foreseen,
        influences=influences(points, since, asked.frontier),
        seed=seed,
        notes=_notes(asked, compared, growths, rate, groups, bool(foreseen), above),
    )


def definitions(
    asked: Question, bootstrap: str, level: float, rng: np.random.Generator
) -> tuple[Definition, ...]:
    """The rate by every definition of the frontier that leaves points enough."""
    found = []
    for name in SIDE:
        other = replace(asked, frontier=Frontier.named(name, falls=asked.frontier.falls))
        try:
            n = len(other.chosen())
        except TrendError:
            continue
        drawn = resampled(asked.points, asked.since, other.frontier, bootstrap, SIDE_DRAWS, rng)
        rate = np.exp(slopes(as_they_are(asked.points, asked.since, other.frontier))[0])
        low, high = np.exp(quantiles(slopes(drawn), level))
        found.append(Definition(frontier=name, n=n, rate_per_year=rate, interval=(low, high)))
    return (*found, quantile_definition(asked, bootstrap, level, rng))


def quantile_definition(
    asked: Question, bootstrap: str, level: float, rng: np.random.Generator, draws: int = QUANTILE_DRAWS
) -> Definition:
    """The rate of the value that a share `QUANTILE` of points stay below (above, where less is better)."""
    everything = Frontier.named("all")
    years, weights, logs = as_they_are(asked.points, asked.since, everything)
    inside = weights[0] > 0
    u, y = years[inside], logs[0, inside]
    share = 1 - QUANTILE if asked.frontier.falls else QUANTILE
    drawn = resampled(asked.points, asked.since, everything, bootstrap, draws, rng).weights
    lines = [quantile_line(u, y, w, share)[1] for w in (np.ones(len(u)), *drawn)]
    low, high = np.exp(quantiles(np.array(lines[1:]), level))
    return Definition(frontier=f"quantile {share:g}", n=len(u), rate_per_year=np.exp(lines[0]),
                      interval=(low, high))  # fmt: skip


def forecasts(growth: Growth, test: Backtest, level: float) -> tuple[Forecast, ...]:
    """Values 1 to `REACH` years after the last point, with bands of what past forecasts missed by.

    A band is the `level` quantile of |ln(forecast / value)| over past forecasts of up to that horizon, and
    no narrower than a nearer one. Horizons with fewer than `TESTED` such errors are left out.
    """
    found, half = [], 0.0
    size = np.abs(test.of(growth.model))
    for year in range(1, REACH + 1):
        near = size[(test.ahead > year - 1) & (test.ahead <= year)] if len(size) else size
        at = growth.span.last + year
        middle = float(growth.predict(np.array([at]))[0])
        if len(near) < TESTED or not np.isfinite(middle) or not np.isfinite(near).all():
            break
        half = max(half, float(np.quantile(near, level)))
        low, value, high = (float(np.exp(middle + side * half)) for side in (-1, 0, 1))
        band = Interval(value=value, low=low, high=high, level=level, of="new point")
        found.append(Forecast(year=at, value=band, tested=len(near)))
    return tuple(found)


def _notes(
    asked: Question, compared: Comparison, growths: Mapping[str, Growth], rate: Rate, groups: int,
    foreseen: bool, above: float,
) -> tuple[str, ...]:  # fmt: skip
    notes = [*asked.points.notes, *compared.left_out]
    if asked.unsettled():
        notes.append(
            f"Few points came before the window: its first ones are of the frontier {asked.frontier.name} for"
            " want of others, which makes the rate too high and looks like slowing. Begin it later (--since)."
        )
    if rate.bootstrap == "rows":
        notes.append(f"{groups} organisations are too few to be drawn: the interval draws rows one by one.")
    if not SHIFTED < above < 1 - SHIFTED:
        notes.append(
            f"{above:.0%} of the draws lie above the rate itself: drawing {rate.bootstrap} anew shifts this"
            " frontier, so the interval leans to one side."
        )
    if not (np.isfinite(rate.doubling_months.low) and np.isfinite(rate.doubling_months.high)):
        notes.append("The rate's interval holds 1 (no growth): the doubling time has no end on that side.")
    if not foreseen:
        notes.append("Past forecasts are too few, or run into a singularity: no forecast.")
    if "hyperbolic" in growths and not np.isfinite(_error(compared, "hyperbolic")):
        notes.append(
            "Hyperbolic growth fitted in the past has reached its singularity since: error infinite."
        )
    return tuple(notes)


def _error(compared: Comparison, name: str) -> float:
    found = next(model.forecast_error for model in compared.models if model.name == name)
    return 0.0 if found is None else found
