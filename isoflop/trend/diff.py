"""Two snapshots of a table compared: rows that came, went or changed, and what that did to the rates."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from isoflop.errors import TrendError
from isoflop.records import Record
from isoflop.trend.metrics import METRICS, MODELS
from isoflop.trend.series import series
from isoflop.trend.tables import Table

SINCE = "2010"  # rates of models: the window of the published ones
SAME = 1e-6  # relative difference below which two numbers are one, written twice
TEXTS = ("confidence", "domain", "open_weights")


class Change(Record):
    """One cell of a row that both snapshots have; "" where it was empty."""

    name: str
    column: str
    before: str
    after: str


class Moved(Record):
    """A metric's least-squares rate in both snapshots."""

    metric: str
    n_before: int
    n_after: int
    rate_before: float  # times a year
    rate_after: float


class Diff(Record):
    """What differs between two snapshots of a table."""

    before: str  # snapshot hashes
    after: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    rates: tuple[Moved, ...]
    notes: tuple[str, ...] = ()


def diff(a: Table, b: Table) -> Diff:
    """What changed from `a` to `b`, row by row by name; rows of one name are told apart by their order.

    Numbers are compared in the units of `METRICS`, so the two may be of different formats. Raises TrendError
    when one is of models and the other of hardware.
    """
    if a.kind != b.kind:
        raise TrendError(
            f"{a.path} is a table of {a.kind} and {b.path} one of {b.kind}.",
            hint="Compare two tables of one kind.",
        )
    rows_a, rows_b = _rows(a), _rows(b)
    both = [(name, rows_a[name], rows_b[name]) for name in rows_a if name in rows_b]
    return Diff(
        before=a.snapshot,
        after=b.snapshot,
        added=tuple(name for name in rows_b if name not in rows_a),
        removed=tuple(name for name in rows_a if name not in rows_b),
        changed=tuple(_changes(a, b, both)),
        rates=tuple(_rates(a, b)),
        notes=tuple(f"{t.path}: {note}" for t in (a, b) for note in t.notes),
    )


def _rows(table: Table) -> dict[str, int]:
    seen: Counter[str] = Counter()
    out = {}
    for i, name in enumerate(table.names):
        seen[name] += 1
        out[name if seen[name] == 1 else f"{name} ({seen[name]})"] = i
    return out


def _changes(a: Table, b: Table, both: Sequence[tuple[str, int, int]]) -> list[Change]:
    """Cells that differ, row by row; columns that only one of the tables has are not compared."""
    columns = _columns(a, b)
    out = []
    for name, i, j in both:
        for column, (before, after) in columns.items():
            if not _same(before[i], after[j]):
                out.append(Change(name=name, column=column, before=_shown(before[i]), after=_shown(after[j])))
    return out


def _columns(a: Table, b: Table) -> dict[str, tuple[Sequence[object], Sequence[object]]]:
    """Cells of both by our names: days, who, numbers, words."""
    out: dict[str, tuple[Sequence[object], Sequence[object]]] = {
        "date": ([str(day or "") for day in a.dates], [str(day or "") for day in b.dates]),
        "organisation": (a.groups, b.groups),
    }
    for column in a.format.columns:
        if a.source(column) is not None and b.source(column) is not None:
            out[column] = (a.stated(column).tolist(), b.stated(column).tolist())
    if a.format is b.format:  # others have words of their own
        out |= {column: (a.words(column), b.words(column)) for column in TEXTS if a.source(column)}
    if a.value_column is not None and b.value_column is not None:
        out[b.value_column] = (a.own_column(a.value_column).tolist(), b.own_column(b.value_column).tolist())
    return out


def _same(before: object, after: object) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        both_empty = math.isnan(before) and math.isnan(after)
        return both_empty or math.isclose(before, after, rel_tol=SAME)
    return str(before).casefold() == str(after).casefold()


def _shown(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _rates(a: Table, b: Table) -> list[Moved]:
    """Rates of every metric that both tables state for at least three rows."""
    out = []
    since = SINCE if a.kind == MODELS else None
    for name in [b.value_column] if a.value_column and b.value_column else METRICS:
        try:
            before, after = series(a, name, since), series(b, name, since)
        except TrendError:
            continue  # one of them does not state it
        if min(len(before), len(after)) >= 3:
            slopes = [float(np.polyfit(p.years, np.log(p.values), 1)[0]) for p in (before, after)]
            out.append(
                Moved(
                    metric=name, n_before=len(before), n_after=len(after),
                    rate_before=math.exp(slopes[0]), rate_after=math.exp(slopes[1]),
                )
            )  # fmt: skip
    return out
