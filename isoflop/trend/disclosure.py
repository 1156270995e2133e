"""Who states a metric, and how far its growth could be off because others do not.

What is missing is not missing at random: the largest models of recent years state least. Without a model of
why, a slope is only bounded (Manski 1989, "Anatomy of the selection problem"): each assumption gives every
silent row an interval, and as the least-squares slope is linear in the values, its ends are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date

import numpy as np

from isoflop.errors import TrendError
from isoflop.records import Record
from isoflop.trend.points import Floats, Mask
from isoflop.trend.series import select
from isoflop.trend.tables import Table

FACTORS = (3.0, 10.0)
GROUPS_SHOWN = 10
ASSUMPTIONS = {  # where a silent row lies, with reach r = ln(factor): from and to, in units of r of progress
    "about the trend": ("trend", -1.0, 1.0),
    "ahead of the trend": ("trend", 0.0, 1.0),
    "behind the trend": ("trend", -1.0, 0.0),
    "about the frontier": ("frontier", -1.0, 1.0),
    "behind the frontier": ("frontier", -1.0, 0.0),
}


class Share(Record):
    """How many of some rows state the metric."""

    label: str  # a year, or who made them
    rows: int
    stated: int

    @property
    def share(self) -> float:
        return self.stated / self.rows


class SlopeBound(Record):
    """The least and the most that the rate can be if the silent rows lie where it is assumed."""

    assumption: str  # of `ASSUMPTIONS`
    factor: float
    low: float  # times a year
    high: float


class Disclosure(Record):
    """Who states a metric, and bounds on its rate with the silent rows."""

    metric: str
    snapshot: str
    rows: int
    stated: int
    rate_per_year: float  # of the rows that state it, least squares
    by_year: tuple[Share, ...]
    by_organisation: tuple[Share, ...]  # those with the most rows
    bounds: tuple[SlopeBound, ...]
    notes: tuple[str, ...] = ()


def disclosure(
    table: Table,
    metric: str,
    since: str | date | None = None,
    until: str | date | None = None,
    domain: str | None = None,
    *,
    factors: Sequence[float] = FACTORS,
) -> Disclosure:
    """Shares of rows that state the metric, and worst-case rates. The arguments of `series`, and how far a
    silent row may lie from the trend or the frontier.

    Raises TrendError where it is stated on fewer than three days.
    """
    chosen = select(table, metric, since, until, domain)
    rows = np.flatnonzero(chosen.inside)
    years, values = table.years[rows], chosen.values[rows]
    known = ~np.isnan(values)
    if len(np.unique(years[known])) < 3:
        raise TrendError(
            f"{int(known.sum())} of {len(rows)} rows state {metric}, on fewer than three days: no rate.",
            hint="Widen the window, or give another table.",
        )
    sign = -1.0 if chosen.metric.falls else 1.0
    progress = sign * np.log(values)
    slope, level = np.polyfit(years[known], progress[known], 1)
    centres = {"trend": slope * years + level, "frontier": _frontier(years, progress)}
    bounds = [
        _bound(name, factor, sign, years, progress, centres[ASSUMPTIONS[name][0]])
        for name in ASSUMPTIONS
        for factor in factors
    ]
    by_organisation = _shares([table.groups[i] or "not said" for i in rows], known)
    return Disclosure(
        metric=chosen.metric.name,
        snapshot=table.snapshot,
        rows=len(rows),
        stated=int(known.sum()),
        rate_per_year=math.exp(sign * slope),
        by_year=tuple(sorted(_shares([str(int(year)) for year in years], known), key=lambda s: s.label)),
        by_organisation=tuple(sorted(by_organisation, key=lambda s: (-s.rows, s.label))[:GROUPS_SHOWN]),
        bounds=tuple(bounds),
        notes=(*table.notes, *chosen.notes),
    )


def _shares(labels: Sequence[str], known: Mask) -> list[Share]:
    names, which = np.unique(np.array(labels), return_inverse=True)
    rows, stated = np.bincount(which), np.bincount(which, weights=known)
    return [
        Share(label=str(name), rows=int(n), stated=int(k))
        for name, n, k in zip(names, rows, stated, strict=True)
    ]


def _frontier(years: Floats, progress: Floats) -> Floats:
    """(n,) the largest stated value up to each row's day; before the first, that one."""
    order = np.argsort(years, kind="stable")
    highest = np.fmax.accumulate(progress[order])
    highest[np.isnan(highest)] = highest[~np.isnan(highest)][0]
    out = np.empty_like(highest)
    out[order] = highest
    return out


def _bound(
    name: str, factor: float, sign: float, years: Floats, progress: Floats, centre: Floats
) -> SlopeBound:
    """Ends of the slope over all rows: after the mean day the highest values give the steepest line.

    `progress` is ln(value), negative where the metric falls; nan where a row is silent.
    """
    _, low, high = ASSUMPTIONS[name]
    reach = math.log(factor)
    pull = (years - years.mean()) / ((years - years.mean()) ** 2).sum()
    bottom = np.where(np.isnan(progress), centre + low * reach, progress)
    top = np.where(np.isnan(progress), centre + high * reach, progress)
    slopes = [pull @ np.where(pull > 0, top, bottom), pull @ np.where(pull > 0, bottom, top)]
    least, most = sorted(sign * slope for slope in slopes)
    return SlopeBound(assumption=name, factor=factor, low=math.exp(least), high=math.exp(most))
