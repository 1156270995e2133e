"""Cells of a table of dated facts: days and numbers as people write them."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Sequence
from datetime import date

import numpy as np

from isoflop.errors import TrendError
from isoflop.quantities import BYTES, COUNT, RATE, split_unit
from isoflop.trend.points import Floats

MISSING = {"", "nan", "na", "n/a", "none", "null", "unknown", "-", "–"}
DAY = re.compile(r"(\d{4})(?:-(\d{1,2})(?:-(\d{1,2}))?)?(?:[T ]\d\d:\d\d.*)?")
THOUSANDS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d*)?")


def counted(rows: int) -> str:
    return f"{rows} row{'s' * (rows != 1)}"


def missing(cell: str) -> bool:
    return cell.strip().lower() in MISSING


def day(text: str, part: str = "middle") -> date:
    """2024-07-02, 2024-07 or 2024; of a month or a year the `part`: its first, middle or last day.

    Raises ValueError for anything else.
    """
    found = DAY.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a day")
    year, month, of_month = (int(piece) if piece else None for piece in found.groups())
    assert year is not None
    if of_month is not None and month is not None:
        return date(year, month, of_month)
    if month is not None:
        return date(year, month, {"first": 1, "middle": 15, "last": monthrange(year, month)[1]}[part])
    return date(year, *{"first": (1, 1), "middle": (7, 2), "last": (12, 31)}[part])


def bound(label: str, value: str | date | None, part: str) -> date | None:
    """An end of a window. Raises TrendError that names the option."""
    if value is None or isinstance(value, date):
        return value
    try:
        return day(value, part)
    except ValueError:
        raise TrendError(
            f"{label} is {value!r}, which is not a date.", hint="Write 2018, 2018-06 or 2018-06-15."
        ) from None


def number(text: str) -> tuple[float, str]:
    """A number, and "bytes" or "bytes/s" where it has such a unit; "" otherwise, also for 7B: seven billion.

    Raises ValueError for anything else.
    """
    text = text.strip()
    head = text.partition(" ")[0]
    if THOUSANDS.fullmatch(head):
        text = text.replace(",", "")
    value, unit = split_unit(text)
    if unit in COUNT.units:
        return value * COUNT.units[unit], ""
    for name, units in (("bytes", BYTES.units), ("bytes/s", RATE.units)):
        if unit in units:
            return value * units[unit], name
    raise ValueError(f"{text!r} ends with an unknown unit")


def place(row: int, names: Sequence[str]) -> str:
    """`row 3 (GPT-3)`, the first under the line of names being 1; a nameless row is `row 3` already."""
    where = f"row {row + 1}"
    return where if names[row] == where else f"{where} ({names[row]})"


def numbers(cells: Sequence[str], column: str, path: str, names: Sequence[str], *, strict: bool) -> Floats:
    """(n,) values of a column, nan where a cell is empty.

    A cell that is no number above zero raises TrendError that names file, row and column; of a table that
    is not the user's own (not `strict`) it is left empty.
    """
    values = np.full(len(cells), np.nan)
    units: dict[str, int] = {}
    for i, cell in enumerate(cells):
        if missing(cell):
            continue
        try:
            value, unit = number(cell)
            if not 0 < value < np.inf:
                raise ValueError(f"{cell!r} is not above zero")
        except ValueError as error:
            if strict:
                raise _bad(path, i, names, column, cell, error) from None
            continue
        units.setdefault(unit, i)
        values[i] = value
    if len(units) > 1:
        one, other = sorted(units.values())[:2]
        raise TrendError(
            f"{path}: column {column!r} mixes units: row {one + 1} is {cells[one]!r}, row {other + 1} is"
            f" {cells[other]!r}.",
            hint="Give a unit in every row or in none.",
        )
    return values


def _bad(path: str, row: int, names: Sequence[str], column: str, cell: str, error: ValueError) -> TrendError:
    above = "above zero" in str(error)
    return TrendError(
        f"{path}: {place(row, names)}, column {column!r} is {cell!r}, which is not a number"
        f"{' above zero' if above else ''}.",
        hint="Growth is a ratio: mend the cell, or leave it empty." if above
        else "Write e.g. 7e9, 7B or 80GB, or leave the cell empty.",
    )  # fmt: skip
