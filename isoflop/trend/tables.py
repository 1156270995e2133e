"""Tables of dated facts: the package's own, Epoch AI's published CSVs, and any user table.

A `Table` keeps the cells as they are written; a column is read when it is asked for, so a bad cell in a
column that nobody needs does no harm. Epoch AI's headline figures hold for its whole files: all 1,036 rows of
notable_ai_models.csv of 2026-07 give 4.35x a year for compute since 2010 (n = 467) and 2.86x for parameters
since 2018 (n = 495); the notable rows of its table of all systems of 2024-11 give 9.66x for language models
from 2017-06 to 2024-05 (n = 191). A table that keeps fewer rows gives other rates.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import re
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from isoflop.errors import TrendError
from isoflop.trend.cells import counted, day, missing, numbers, place
from isoflop.trend.formats import USERS, Format, format_of
from isoflop.trend.metrics import HARDWARE, MODELS
from isoflop.trend.points import Floats, Mask, decimal_year

NEARLY_ALL = 0.99  # of its parameters: with more of them active a model is dense
PACKAGED = {MODELS: "models.csv", HARDWARE: "accelerators.csv"}  # by kind
# Active parameters in billions: of a name (Qwen3-235B-A22B), or of notes on parameters (41B active).
ACTIVE = re.compile(
    r"-A(\d+(?:\.\d+)?)B\b|(\d+(?:\.\d+)?)\s?(?:B|billion)\s(?:parameters )?activ(?:e|ated)\b", re.IGNORECASE
)
MIXTURE = re.compile(r"\b(moe|mixture[- ]of[- ]experts|experts|mixtral|switch|gshard|glam)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """Rows of dated facts as columns; n rows in the order of the file."""

    path: str  # of the file, for messages
    snapshot: str  # first 16 hex digits of the SHA-256 of its bytes
    format: Format
    cells: dict[str, tuple[str, ...]]  # by the file's own names, as written
    names: tuple[str, ...]
    groups: tuple[str, ...]  # who made it, "" where the table does not say
    dates: tuple[date | None, ...]  # None: without a day that can be read
    notes: tuple[str, ...] = ()  # what the reader left out or assumed
    value_column: str | None = None  # of a user table

    def __len__(self) -> int:
        return len(self.names)

    @property
    def kind(self) -> str:
        return self.format.kind

    @cached_property
    def years(self) -> Floats:
        """(n,) decimal years, nan without a day."""
        return np.array([np.nan if d is None else decimal_year(d) for d in self.dates])

    def source(self, column: str) -> str | None:
        """The file's own name of one of our columns; None where it has none."""
        names = self.format.columns.get(column, ()) or self.format.texts.get(column, ())
        return next((name for name in names if name in self.cells), None)

    def words(self, column: str) -> tuple[str, ...]:
        """(n,) texts of one of our columns, "" where the table does not say."""
        found = self.source(column)
        return self.cells[found] if found is not None else ("",) * len(self)

    def stated(self, column: str) -> Floats:
        """(n,) values of a column as the table states them, in our units; nan where it does not.

        Raises TrendError when a cell of the user's own table is no number above zero.
        """
        found = self.source(column)
        if found is None:
            return np.full(len(self), np.nan)
        return self.own_column(found) * self.format.times.get(column, 1.0)

    def own_column(self, name: str) -> Floats:
        """(n,) values of a column by the file's own name. Raises TrendError, with the nearest names."""
        if name not in self.cells:
            raise no_column(self.path, name, tuple(self.cells))
        return numbers(self.cells[name], name, self.path, self.names, strict=self.format.own)

    def values(self, column: str) -> Floats:
        """(n,) values of one of our columns, derived where the table implies them.

        Tokens seen are unique tokens times epochs (1 where not stated, as in Epoch AI's table); active
        parameters are all of them unless the row is known for a mixture of experts; FP16 is the dense rate
        in FP16, else in BF16.
        """
        found = self.stated(column)
        if column == "tokens":
            epochs = self.stated("epochs")
            return _filled(found, self.stated("unique_tokens") * np.where(np.isnan(epochs), 1.0, epochs))
        if column == "unique_tokens":
            return _filled(found, self.stated("tokens") / self.stated("epochs"))
        if column == "params_active":
            return _filled(self._active, np.where(self.mixture, np.nan, self.stated("params_total")))
        if column == "fp16":
            return _filled(found, self.stated("bf16"))
        return found

    @cached_property
    def _active(self) -> Floats:
        """(n,) active parameters as stated, or else by the row's name or notes."""
        texts = zip(self.names, self.words("params_notes"), strict=True)
        found = [ACTIVE.search(" ".join(parts)) for parts in texts]
        named = np.array([np.nan if hit is None else 1e9 * float(hit[1] or hit[2]) for hit in found])
        with np.errstate(invalid="ignore"):
            named[named > NEARLY_ALL * self.stated("params_total")] = np.nan  # the notes spoke of all of them
        return _filled(self.stated("params_active"), named)

    @cached_property
    def mixture(self) -> Mask:
        """(n,) whether a row is known for a mixture of experts."""
        texts = zip(self.names, self.words("params_notes"), strict=True)
        named: Mask = np.array([bool(MIXTURE.search(" ".join(parts))) for parts in texts], dtype=bool)
        with np.errstate(invalid="ignore"):
            return named | (self._active < NEARLY_ALL * self.stated("params_total"))

    @cached_property
    def domains(self) -> tuple[frozenset[str], ...]:
        """Of each row the words for what it handles, in small letters."""
        both = zip(self.words("domain"), self.words("domains"), strict=True)
        return tuple(frozenset(_tags(f"{one},{other}")) for one, other in both)


def _tags(text: str) -> set[str]:
    return {tag.strip().lower() for tag in re.split(r"[,;]", text)} - {""}


def _filled(first: Floats, second: Floats) -> Floats:
    return np.where(np.isnan(first), second, first)


def no_column(path: str, name: str, columns: tuple[str, ...]) -> TrendError:
    near = difflib.get_close_matches(name, columns, n=3, cutoff=0.5) or list(columns)
    return TrendError(f"{path} has no column {name!r}.", hint=f"Did you mean {' or '.join(map(repr, near))}?")


def read_table(
    path: str | Path | None = None,
    *,
    kind: str = MODELS,
    date_column: str | None = None,
    value_column: str | None = None,
    every_row: bool = False,
) -> Table:
    """The table of a CSV or TSV file; without a path the package's own of this `kind` (models, hardware).

    Formats are known by their columns (`formats.FORMATS`); any other file is a user table, for which the
    columns of the date and of the value can be named. Of tables that mark notable models only those are
    kept, as in published rates, unless `every_row`. Raises TrendError that names file, row and column.
    """
    where = files("isoflop.trend") / "data" / PACKAGED[kind] if path is None else Path(path)
    label = f"the package's {PACKAGED[kind]}" if path is None else str(path)
    try:
        content = where.read_bytes()
    except OSError as error:
        raise TrendError(f"{label} cannot be read: {error.strerror}.", hint="Give a CSV file.") from None
    cells = _columns(content, label, "\t" if label.endswith(".tsv") else ",")
    columns = tuple(cells)
    found = USERS if date_column or value_column else format_of(columns)
    for name in (date_column, value_column):
        if name is not None and name not in cells:
            raise no_column(label, name, columns)
    notes: tuple[str, ...] = ()
    if not every_row:
        cells, notes = _kept(cells, found)
    n = len(next(iter(cells.values())))
    label_column = _first(found.label, cells)
    names = cells[label_column] if label_column else tuple(f"row {i + 1}" for i in range(n))
    group = _first(found.group, cells)
    return Table(
        path=label,
        snapshot=hashlib.sha256(content).hexdigest()[:16],
        format=found,
        cells=cells,
        names=names,
        groups=cells[group] if group else ("",) * n,
        dates=_dates(cells, date_column or _date_column(found, cells, label), names, found, label),
        notes=notes,
        value_column=value_column,
    )


def _columns(content: bytes, path: str, delimiter: str) -> dict[str, tuple[str, ...]]:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TrendError(f"{path} is not a table of text: {error}.", hint="Give a CSV file.") from None
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if len(lines) < 2:
        raise TrendError(f"{path} has no rows.", hint="Give a row a fact, under a line of names.")
    header, rows = [name.strip() for name in lines[0]], lines[1:]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise TrendError(f"{path} has two columns named {twice!r}.", hint="Rename one of them.")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise TrendError(
                f"{path}: row {i + 1} has {len(row)} cells and the line of names {len(header)}.",
                hint="Put a cell with a comma in it between quotation marks.",
            )
    return dict(zip(header, zip(*rows, strict=True), strict=True))


def _kept(
    cells: dict[str, tuple[str, ...]], found: Format
) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The rows that this format keeps, and a sentence on the others."""
    if found.keep is None or found.keep[0] not in cells:
        return cells, ()
    column, value = found.keep
    rows = [i for i, cell in enumerate(cells[column]) if (cell == value if value else cell.strip())]
    left = len(cells[column]) - len(rows)
    if not rows:  # a table that does not mark them
        return cells, ()
    note = f"{counted(left)} left out: {found.why_keep}."
    kept = {name: tuple(column_cells[i] for i in rows) for name, column_cells in cells.items()}
    return kept, (note,) if left else ()


def _first(names: tuple[str, ...], cells: dict[str, tuple[str, ...]]) -> str | None:
    return next((name for name in names if name in cells), None)


def _date_column(found: Format, cells: dict[str, tuple[str, ...]], path: str) -> str:
    column = _first(found.date, cells)
    if column is None:
        near = difflib.get_close_matches("date", list(cells), n=3, cutoff=0.4) or list(cells)
        raise TrendError(
            f"{path} has no column of dates.", hint=f"Say which it is: --date-column {' or '.join(near)}."
        )
    return column


def _dates(
    cells: dict[str, tuple[str, ...]], column: str, names: tuple[str, ...], found: Format, path: str
) -> tuple[date | None, ...]:
    """A day a row. Hardware may be announced: its day may lie ahead, and others' tables may lack it."""
    today, days = date.today(), list[date | None]()
    for i, cell in enumerate(cells[column]):
        try:
            known = None if missing(cell) else day(cell)
        except ValueError:
            if found.own:
                raise TrendError(
                    f"{path}: {place(i, names)}, column {column!r} is {cell!r}, which is not a date.",
                    hint="Write 2024-07-02, 2024-07 or 2024.",
                ) from None
            known = None
        if known is not None and known > today and found.kind != HARDWARE:
            raise TrendError(
                f"{path}: {place(i, names)}, column {column!r} is {cell!r}, which lies ahead.",
                hint="Mend the date, or drop the row until then.",
            )
        days.append(known)
    return tuple(days)
