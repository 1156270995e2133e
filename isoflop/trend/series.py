"""One metric of a table as dated points: what growth models are fitted to."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, replace
from datetime import date
from statistics import NormalDist

import numpy as np

from isoflop.errors import TrendError
from isoflop.trend.cells import bound, counted
from isoflop.trend.checks import trusted, warnings
from isoflop.trend.metrics import METRICS, MODELS, USER, Metric, metric_named
from isoflop.trend.points import Floats, Mask, Points
from isoflop.trend.tables import Table, no_column

# Epoch AI states its confidence as 90% intervals: within a factor 3, 10, or 31 either way.
FACTORS = {"confident": 3.0, "likely": 10.0, "speculative": 31.0}
UNSTATED = FACTORS["speculative"]  # in tables that state it for other rows
Z90 = NormalDist().inv_cdf(0.95)  # half a central 90% interval, in standard deviations


@dataclass(frozen=True)
class Selection:
    """A metric of a table in a window, before the rows that do not state it are dropped."""

    metric: Metric
    inside: Mask  # (n,) rows of the table that could state it
    values: Floats  # (n,), nan where it is not stated
    notes: list[str]  # what was left out


def select(
    table: Table,
    metric: str,
    since: str | date | None = None,
    until: str | date | None = None,
    domain: str | None = None,
) -> Selection:
    """What `series` chooses from, with the same arguments."""
    asked = _metric(table, metric)
    first, last = bound("--since", since, "first"), bound("--until", until, "last")
    if first is not None and last is not None and first > last:
        raise TrendError(f"--since {since} is after --until {until}.", hint="Swap them.")
    use, notes = trusted(table, asked)
    values = values_of(table, asked)
    inside = use & np.array([_between(day, first, last) for day in table.dates])
    inside &= _of_domain(table, domain)
    if asked.language_only and domain is None and table.kind == MODELS:
        language = _of_domain(table, "language")
        others = int((inside & ~language & ~np.isnan(values)).sum())
        notes += [f"{counted(others)} left out: images or samples are counted, not tokens."] if others else []
        inside &= language
    return Selection(asked, inside, values, notes)


def series(
    table: Table,
    metric: str,
    since: str | date | None = None,
    until: str | date | None = None,
    domain: str | None = None,
) -> Points:
    """The points of a metric in a window, the earliest first; a month or a year counts whole.

    `metric` is one of `METRICS`, or of a user table a name of its own whose values are in the column that
    `read_table` was told, or in a column of that name. `domain` keeps the rows that handle it, alone or
    beside others: "language" also multimodal models, as Epoch AI's published rates do, "language only" those
    that handle nothing else. Raises TrendError when no point is left, or fewer than the metric needs.
    """
    chosen = select(table, metric, since, until, domain)
    asked, values = chosen.metric, chosen.values
    rows = np.flatnonzero(chosen.inside & ~np.isnan(values))
    rows = rows[np.argsort(table.years[rows], kind="stable")]
    if len(rows) == 0:
        raise TrendError(
            f"{table.path} has no {asked.name} in this window.",
            hint=f"Its rows run from {_span(table)}." if domain is None else "Try it without --domain.",
        )
    if len(rows) < asked.least:
        raise TrendError(
            f"{table.path} has {len(rows)} points of {asked.name}; fewer than {asked.least} are refused:"
            f" {asked.why_least}.",
            hint="Give a table that states it more often.",
        )
    return Points(
        metric=asked.name,
        unit=asked.unit,
        names=tuple(table.names[i] for i in rows),
        groups=tuple(table.groups[i] or table.names[i] for i in rows),
        years=table.years[rows],
        values=values[rows],
        log_sd=log_sd(table)[rows],
        snapshot=table.snapshot,
        undisclosed=int(chosen.inside.sum()) - len(rows),
        notes=(*table.notes, *chosen.notes, *warnings(table, asked, rows), *filter(None, [asked.caveat])),
    )


def _metric(table: Table, name: str) -> Metric:
    """The metric by its name. Raises TrendError where this table cannot state it."""
    if table.kind == USER and (table.value_column or name not in METRICS):
        return _of_user(table, name)
    found = metric_named(name)
    if table.kind not in (found.kind, USER):
        raise TrendError(
            f"{table.path} is a table of {table.kind}, which does not state {name}.",
            hint="Give a table of your own." if found.kind == USER else f"Give a table of {found.kind}.",
        )
    if found.kind == USER:
        return _of_user(table, name)
    for column in filter(None, (found.column, found.per)):
        if np.isnan(table.values(column)).all():
            raise TrendError(
                f"{table.path} states no {column!r}, which {name} needs.",
                hint="Name a column so, or say which it is: --value-column.",
            )
    return found


def _of_user(table: Table, name: str) -> Metric:
    """The metric in a column that the user named, or in one of its own name."""
    column = table.value_column or next((c for c in table.cells if _plain(c) == _plain(name)), None)
    if column is None:
        raise no_column(table.path, name, tuple(table.cells))
    known = METRICS.get(name, Metric(name, about="", unit="", kind=USER, column=column))
    return replace(known, kind=USER, column=column, per="", language_only=False)


def values_of(table: Table, metric: Metric) -> Floats:
    """(n,) the metric of each row, nan where it is not stated."""
    if metric.kind == USER:
        return table.own_column(metric.column)
    values = table.values(metric.column)
    return values / table.values(metric.per) if metric.per else values


def log_sd(table: Table) -> Floats:
    """(n,) standard deviation of the error of ln(value), from the confidence that a row states.

    Epoch AI's words stand for 90% intervals of a factor 3 (confident), 10 (likely) and 31 (speculative)
    either way, of the least certain of a row's compute, parameters and data. Rows without a word count as
    speculative; tables without that column, and hardware, which has data sheets, as exact.
    """
    if table.kind not in (MODELS, USER) or table.source("confidence") is None:
        return np.zeros(len(table))
    factors = [FACTORS.get(word.strip().lower(), UNSTATED) for word in table.words("confidence")]
    return np.array([math.log(factor) / Z90 for factor in factors])


def _between(day: date | None, first: date | None, last: date | None) -> bool:
    return day is not None and (first is None or day >= first) and (last is None or day <= last)


def _of_domain(table: Table, domain: str | None) -> Mask:
    """(n,) rows that handle the domain. Raises TrendError for one that no row has."""
    if domain is None:
        return np.ones(len(table), dtype=bool)
    wanted = domain.lower()
    alone = wanted.removesuffix(" only")
    known = frozenset().union(*table.domains)
    if alone not in known:
        near = difflib.get_close_matches(alone, sorted(known), n=3, cutoff=0.5) or sorted(known)
        raise TrendError(
            f"{table.path} has no rows of the domain {domain!r}.",
            hint=f"Did you mean {' or '.join(near)}?" if known else "It has no column of domains.",
        )
    beside = {"multimodal", "vision", "video", "image generation", "speech", "audio"} - {alone}
    return np.array([
        alone in tags and not (wanted != alone and tags & beside) for tags in table.domains
    ])  # fmt: skip


def _span(table: Table) -> str:
    days = sorted(day for day in table.dates if day is not None)
    return f"{days[0]} to {days[-1]}" if days else "no date at all"


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())
