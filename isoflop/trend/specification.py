"""The rate under every reasonable choice: a specification curve (Simonsohn, Simmons and Nelson 2020).

A published rate is one path through choices that could have been made otherwise: which points are the
frontier, from when on, of which domain, with or without outliers and speculative values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from isoflop.errors import TrendError
from isoflop.laws.intervals import check_level, quantiles
from isoflop.records import Record
from isoflop.trend.answer import Question, quantile_definition
from isoflop.trend.frontier import Frontier
from isoflop.trend.points import Points
from isoflop.trend.rates import Tables, as_they_are, resampled, slopes
from isoflop.trend.series import FACTORS, Z90
from isoflop.trend.tables import Table

FRONTIERS = ("all", "top5", "top10", "top20", "records")
SHIFTS = (-4, -2, 0, 2, 4)  # years by which the window may begin earlier or later
OUTLYING = 3.0  # robust standard deviations from the line through all points
LEAST = 10  # points behind a choice
DRAWS, QUANTILE_DRAWS = 200, 60
SPECULATIVE = float(np.log(FACTORS["speculative"])) / Z90  # log_sd of such rows


class Choice(Record):
    """One way to ask, and what it answers."""

    frontier: str
    since: float  # decimal years
    domain: str  # or "any"
    outliers: bool  # kept
    speculative: bool  # kept
    asked: bool  # this is how the user asked
    n: int
    rate_per_year: float  # a factor
    interval: tuple[float, float]


class Choices(Record):
    """All choices, the slowest rate first."""

    metric: str
    level: float
    choices: tuple[Choice, ...]
    median: float  # of the rates
    left_out: int  # choices that leave fewer than `LEAST` points

    def span(self) -> tuple[float, float]:
        """The rates' own 5th and 95th percentile."""
        low, high = np.quantile([choice.rate_per_year for choice in self.choices], [0.05, 0.95])
        return float(low), float(high)


def specification(
    table: Table, metric: str, *, since: str | None = None, until: str | None = None,
    domain: str | None = None, frontier: str = "all", level: float = 0.9, seed: int = 0,
) -> Choices:  # fmt: skip
    """The rate by every definition of the frontier, date, domain and sort of row that leaves points enough.

    Intervals draw rows one by one. Raises TrendError where the question itself cannot be answered.
    """
    check_level(level)
    rng = np.random.default_rng(seed)
    asked = Question.of(table, metric, since=since, until=until, domain=domain, frontier=frontier)
    begin = asked.since if np.isfinite(asked.since) else float(asked.points.years[0])
    found, left_out = [], 0
    for name in dict.fromkeys((domain, "language")):
        try:
            question = Question.of(table, metric, until=until, domain=name, frontier=frontier)
        except TrendError:  # the table has no such domain
            continue
        for points, outliers, speculative in _kept(question.points, begin):
            for choice in _choices(points, asked, begin, level, rng):
                if choice is None:
                    left_out += 1
                    continue
                found.append(choice.model_copy(update={
                    "domain": name or "any", "outliers": outliers, "speculative": speculative,
                    "asked": choice.asked and outliers and speculative and name == domain,
                }))  # fmt: skip
    if not found:
        raise TrendError("No choice leaves points enough.", hint=f"A choice needs {LEAST} points.")
    found.sort(key=lambda choice: choice.rate_per_year)
    return Choices(metric=metric, level=level, choices=tuple(found), left_out=left_out,
                   median=float(np.median([choice.rate_per_year for choice in found])))  # fmt: skip


def _kept(points: Points, begin: float) -> Iterator[tuple[Points, bool, bool]]:
    """The points with and without outliers and speculative rows, where there are such."""
    logs = np.log(points.values)
    inside = points.years >= begin
    residual = logs - np.polyval(np.polyfit(points.years[inside], logs[inside], 1), points.years)
    spread = 1.4826 * float(np.median(np.abs(residual[inside] - np.median(residual[inside]))))
    outlying = inside & (np.abs(residual) > OUTLYING * spread)
    doubtful = points.log_sd >= SPECULATIVE - 1e-9
    for outliers in (True, False) if outlying.any() else (True,):
        for speculative in (True, False) if doubtful.any() else (True,):
            kept = (outliers | ~outlying) & (speculative | ~doubtful)
            yield points.take(np.flatnonzero(kept)), outliers, speculative


def _choices(
    points: Points, asked: Question, begin: float, level: float, rng: np.random.Generator
) -> Iterator[Choice | None]:
    """Every frontier and beginning, of these points; None for one that leaves too few."""
    for name in dict.fromkeys((asked.frontier.name, *FRONTIERS)):
        frontier = Frontier.named(name, falls=asked.frontier.falls)
        whole = as_they_are(points, -np.inf, frontier)
        drawn = resampled(points, -np.inf, frontier, "rows", DRAWS, rng)
        for shift in SHIFTS:
            since = begin + shift
            n = int((whole.weights[0] > 0)[whole.years >= since].sum())
            if n < LEAST or (shift < 0 and points.years[0] >= since + 2):
                yield None
                continue
            rate = np.exp(slopes(_from(whole, since))[0])
            low, high = np.exp(quantiles(slopes(_from(drawn, since)), level))
            yield Choice(frontier=name, since=since, domain="", outliers=True, speculative=True, n=n,
                         asked=name == asked.frontier.name and shift == 0, rate_per_year=rate,
                         interval=(low, high))  # fmt: skip
    if (points.years >= begin).sum() >= LEAST:
        q = quantile_definition(Question(points, begin, asked.frontier), "rows", level, rng, QUANTILE_DRAWS)
        yield Choice(frontier=q.frontier, since=begin, domain="", outliers=True, speculative=True, n=q.n,
                     asked=False, rate_per_year=q.rate_per_year, interval=q.interval)  # fmt: skip


def _from(tables: Tables, since: float) -> Tables:
    return Tables(tables.years, tables.weights * (tables.years >= since), tables.logs)
