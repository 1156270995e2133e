"""Columns of a user's data as the roles of a task: guessed by name, then by what they hold, and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import AdaptError
from isoflop.examples.generated import quiet
from isoflop.examples.kinds import KINDS
from isoflop.examples.media import undecoded

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.tasks.protocol import Role

SAMPLE = 1000  # rows that a column is known by


@quiet()
def with_roles(
    rows: Dataset, roles: Sequence[Role], given: Mapping[str, str] | None = None, *, keep: Sequence[str] = (),
    notes: list[str] | None = None,
) -> tuple[Dataset, dict[str, str]]:  # fmt: skip
    """Columns renamed to roles, in the form that `Role.holds` names, and role -> column.

    `given` says which column is a role; names of it that are no roles of the task are kept as columns of that
    name, those of `keep` as they are. Others are guessed: by name, the likeliest first, whatever the case;
    then a role is the only column that holds what it needs. Labels become strings, labels and tags lists of
    strings, numbers float64, answers SQuAD's form, images and sounds files: {"bytes", "path"} or a path.

    Rows without a text, label or another required role are left out and counted in `notes`. Raises AdaptError
    for a column that is missing or ambiguous, and where no row is left.
    """
    notes = [] if notes is None else notes
    chosen = _chosen(rows, roles, given or {}, notes)
    names = [*chosen, *(name for name in keep if name not in chosen.values())]
    taken = [*chosen.values(), *names[len(chosen) :]]
    _must_exist(rows, taken)
    if len(set(taken)) < len(taken) or len(set(names)) < len(names):
        raise AdaptError(
            f"two roles of {_place(rows)} share a column: {_mapped(chosen)}", hint="map each to its own"
        )
    renamed = rows.select_columns(taken).rename_columns(dict(zip(taken, names, strict=True)))
    formed = _formed(renamed, [role for role in roles if role.name in chosen])
    return _without_empty(formed, [r for r in roles if r.name in chosen and not r.optional], notes), chosen


def _chosen(
    rows: Dataset, roles: Sequence[Role], given: Mapping[str, str], notes: list[str]
) -> dict[str, str]:
    _must_exist(rows, [*given.values()])
    chosen = dict(given)
    values = _sample(rows)
    for role in roles:
        if role.name in given:
            _must_fit(role, rows, values, given[role.name])
        elif named := _by_name(role, rows, values, chosen):
            chosen[role.name] = named
    for role in roles:
        if role.name not in chosen and not role.optional:
            chosen[role.name] = _by_content(role, rows, values, chosen)
            notes.append(
                f"{role.name} is read from the column {chosen[role.name]!r}, the only one of "
                f"{KINDS[role.holds].says}"
            )
    return chosen


def _must_fit(role: Role, rows: Dataset, values: Mapping[str, list[Any]], column: str) -> None:
    kind = KINDS[role.holds]
    if not kind.fits(values[column]):
        raise AdaptError(
            f"the column {column!r} of {_place(rows)} does not hold {kind.says}",
            hint=f"--map {role.name}=COLUMN with one that does",
        )


def _by_name(role: Role, rows: Dataset, values: Mapping[str, list[Any]], chosen: Mapping[str, str]) -> str:
    """The column of the likeliest name that may hold the role; "" where none does."""
    for guess in role.guesses:
        found: list[str] = [
            column for column in rows.column_names
            if column.lower() == guess and column not in chosen.values()
            and KINDS[role.holds].fits(values[column])
        ]  # fmt: skip
        if len(found) > 1:
            raise _ambiguous(role, rows, found)
        if found:
            return found[0]
    return ""


def _by_content(role: Role, rows: Dataset, values: Mapping[str, list[Any]], chosen: Mapping[str, str]) -> str:
    free = [column for column in rows.column_names if column not in chosen.values() and values[column]]
    found: list[str] = [column for column in free if KINDS[role.holds].tells(values[column])]
    if len(found) > 1:
        raise _ambiguous(role, rows, found)
    if not found:
        raise AdaptError(
            f"{_place(rows)} has no column of {KINDS[role.holds].says} for {role.name}; "
            f"it has {', '.join(rows.column_names)}",
            hint=f"--map {role.name}=COLUMN",
        )
    return found[0]


def _ambiguous(role: Role, rows: Dataset, found: Sequence[str]) -> AdaptError:
    return AdaptError(
        f"{role.name} could be each of the columns {' and '.join(found)} of {_place(rows)}",
        hint=f"--map {role.name}={found[0]}",
    )


def _must_exist(rows: Dataset, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise AdaptError(
            f"{_place(rows)} has no column {missing[0]!r}; it has {', '.join(rows.column_names)}",
            hint="--map ROLE=COLUMN with one of these",
        )


def _sample(rows: Dataset) -> dict[str, list[Any]]:
    """Of each column the values of rows spread over the data, without those that are None."""
    at = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE)).astype(int))
    found = undecoded(rows.select(at))[:]
    return {name: [value for value in values if value is not None] for name, values in found.items()}


def _formed(rows: Dataset, roles: Sequence[Role]) -> Dataset:
    """Each role in its form; None where a row has none."""
    from datasets import Features, Image, Value
    from datasets import Sequence as Listed

    forms = {
        "string": Value("string"), "strings": Listed(Value("string")), "number": Value("float64"),
        "answers": {"text": Listed(Value("string")), "answer_start": Listed(Value("int64"))},
    }  # fmt: skip
    for role in roles:
        if role.holds == "image":
            rows = rows.cast_column(role.name, Image(decode=False))
    made = {role.name: role.holds for role in roles if KINDS[role.holds].column}
    named = {name: names for name in made if (names := _class_names(rows.features[name]))}
    features = {**rows.features, **{name: forms[KINDS[holds].column] for name, holds in made.items()}}

    def form(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return {
            name: [KINDS[holds].form(_named(value, named.get(name))) for value in batch[name]]
            for name, holds in made.items()
        }

    return rows.map(form, batched=True, features=Features(features), load_from_cache_file=False)


def _class_names(feature: Any) -> list[str] | None:
    """Of a column of class numbers, or of lists of them."""
    inner = getattr(feature, "feature", feature)
    return getattr(inner, "names", None)


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """A class's name for its number; a negative one is none."""
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [names[number] for number in value if number >= 0]
    return names[value] if value >= 0 else None


def _without_empty(rows: Dataset, roles: Sequence[Role], notes: list[str]) -> Dataset:
    good = np.ones(len(rows), bool)
    for role in roles:
        there = undecoded(rows.select_columns([role.name])).iter(SAMPLE)
        values = (value is not None for batch in there for value in batch[role.name])
        has = np.fromiter(values, bool, len(rows))
        lost = int((good & ~has).sum())
        if lost:
            notes.append(f"{lost} of {len(rows)} rows have no {role.name} and are left out")
        good &= has
    if not good.any():
        raise AdaptError(f"no row of {_place(rows)} has all that the task needs", hint="give other examples")
    return rows if good.all() else rows.select(np.flatnonzero(good))


def _place(rows: Dataset) -> str:
    """What the rows were read from."""
    return rows.info.description or "the data"


def _mapped(chosen: Mapping[str, str]) -> str:
    return ", ".join(f"{role}={column}" for role, column in chosen.items())
