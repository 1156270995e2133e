"""Tables of runs from files: columns and units are guessed from names, and every guess is said.

CSV, Parquet, JSONL and exports of experiment trackers; read by pyarrow. A mapping `role=COLUMN` overrides a
guess, `role=COLUMN:UNIT` says a unit: K, M, B, T multiply; for the loss `ppl` is a perplexity, `bits` are
bits a token, `nats` takes it as it is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.laws.solve import Array
from isoflop.quantities import COUNT, MULTIPLES, split_unit

# Names by which columns are known, letters and digits only, the likeliest first.
ROLES: dict[str, tuple[str, ...]] = {
    "params": (
        "params", "paramsmatmul", "n", "nparams", "numparams", "parameters", "numparameters", "modelsize",
        "modelparams", "paramsnonembedding", "nonembeddingparams", "nnonemb", "paramcount", "totalparams",
        "paramstotal", "size",
    ),
    "tokens": (
        "tokens", "d", "ntokens", "numtokens", "traintokens", "trainingtokens", "tokensseen", "dtokens",
        "totaltokens", "tokensprocessed", "datasetsize",
    ),
    "loss": (
        "loss", "valloss", "validationloss", "evalloss", "testloss", "finalvalloss", "finalloss",
        "heldoutloss", "heldoutlossnats", "validloss", "crossentropy", "l", "lossnats",
        "trainloss", "trainingloss", "ppl",
        "perplexity", "valppl", "evalppl", "bpb", "bitsperbyte", "valbpb", "heldoutbpb", "error", "y",
        "accuracy", "acc", "auroc", "score",
    ),
    "flops": (
        "flops", "trainingflop", "trainingflops", "trainflops", "flop", "totalflops", "compute", "c",
        "budget", "computebudget",
    ),
    "unique_tokens": ("uniquetokens", "uniqtokens", "datasettokens", "u"),
    "loss_se": ("lossse", "lossstderr", "lossstderror", "vallossse", "stderr"),
    "cluster": ("cluster", "trunk"),
    "teacher_loss": ("teacherloss",),
    "task_loss": ("taskloss",),
    "sparsity": ("sparsity",),
    "bits_weights": ("bitsweights", "weightbits"),
    "bits_activations": ("bitsactivations", "activationbits"),
    "bits_kv": ("bitskv", "kvbits"),
    "bits_post": ("bitspost", "postbits"),
    "x": ("x",),
}  # fmt: skip
LOSS_UNITS = ("nats", "ppl", "bits")
LABELS = ("cluster",)
TABLES = (".csv", ".csv.gz", ".tsv", ".txt", ".parquet", ".jsonl", ".jsonl.gz", ".ndjson")
FINISHED = "finished"  # the state of a run that ended, in exports of experiment trackers
LARGEST_LOSS = 14.0  # nats a token; ln of a vocabulary of a million: above it stands a perplexity


def read_table(
    path: str | Path, mapping: Mapping[str, str] | None = None, where: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Columns by role, and a sentence for every guess. `where` keeps the rows whose column has that value.

    Raises FitError when the file cannot be read, a column is not there, or the loss seems to be in
    another unit.
    """
    table = _read(Path(path))
    mapping = mapping or {}
    unknown = [role for role in mapping if role not in ROLES]
    if unknown:
        raise FitError(f"There is no role {unknown[0]!r} to map to.", hint=f"Roles: {', '.join(ROLES)}.")
    notes: list[str] = []
    table = _filtered(table, where or {}, str(path), notes)
    state = next((name for name in table if name.lower() == "state"), None)
    unfinished = [cell for cell in table[state] if str(cell).lower() != FINISHED] if state else []
    if unfinished:
        notes.append(
            f"{len(unfinished)} rows have a {state} other than {FINISHED}; to leave them out: --where"
            f" {state}={FINISHED}."
        )
    columns: dict[str, Any] = {}
    taken = {column for word in mapping.values() for column in (word, word.rpartition(":")[0])}
    for role, names in ROLES.items():
        if role in mapping:
            column, unit = _mapped(table, role, mapping[role], str(path))
        else:
            found = _guess(table, names, taken)
            if found is None or (role == "x" and columns.keys() & {"params", "tokens", "flops"}):
                continue
            column, unit = found, _unit_of_name(found, role)
            taken.add(column)
            notes.append(f"{role} is column {column!r}{f', in {unit}' if unit else ''}.")
        columns[role] = _values(table[column], role, column, unit, notes)
    if "loss" not in columns:
        raise FitError(
            f"{path} has no column that looks like a loss.",
            hint=f"Columns: {', '.join(table)}. Say which: --map loss=COLUMN.",
        )
    return columns, notes


def parse_mapping(words: Sequence[str]) -> dict[str, str]:
    """`role=COLUMN` words as a mapping. Raises FitError for a word without '='."""
    out = {}
    for word in words:
        role, sign, column = word.partition("=")
        if not (sign and role.strip() and column.strip()):
            raise FitError(f"{word!r} is not ROLE=COLUMN.", hint="E.g. --map loss=val_loss params=size:M.")
        out[role.strip()] = column.strip()
    return out


def _read(path: Path) -> dict[str, list[Any]]:
    if not path.exists():
        raise FitError(f"{path} does not exist.", hint="Give a CSV, Parquet or JSONL file, a row a run.")
    import pyarrow as pa

    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    try:
        if ending == ".parquet":
            import pyarrow.parquet as parquet

            table = parquet.read_table(path)
        elif ending in (".jsonl", ".ndjson", ".jsonl.gz"):
            import pyarrow.json as json

            table = json.read_json(path)
        elif ending in (".csv", ".tsv", ".txt", ".csv.gz"):
            import pyarrow.csv as csv

            table = csv.read_csv(
                path, parse_options=csv.ParseOptions(delimiter="\t" if ending == ".tsv" else ",")
            )
        else:
            raise FitError(
                f"{path} is not a table that can be read.", hint="Give a .csv, .tsv, .parquet or .jsonl file."
            )
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise FitError(f"{path} cannot be read: {first}", hint="Every row needs the same columns.") from error
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise FitError(f"{path} has two columns named {twice[0]!r}.", hint="Rename one of them.")
    if table.num_rows == 0:
        raise FitError(f"{path} has no rows.", hint="Give a row a run, under a line of names.")
    return {str(name): table.column(name).to_pylist() for name in table.column_names}


def _filtered(
    table: dict[str, list[Any]], where: Mapping[str, str], path: str, notes: list[str]
) -> dict[str, list[Any]]:
    for name, wanted in where.items():
        column = table[_existing(table, name, path)]
        kept = [i for i, value in enumerate(column) if str(value).lower() == wanted.lower()]
        if not kept:
            known = ", ".join(sorted({str(v) for v in column})[:8])
            raise FitError(f"No row of {path} has {name} = {wanted}.", hint=f"Its values: {known}.")
        notes.append(f"{len(kept)} of {len(column)} rows have {name} = {wanted}.")
        table = {key: [values[i] for i in kept] for key, values in table.items()}
    return table


def _existing(table: Mapping[str, Any], name: str, path: str) -> str:
    if name in table:
        return name
    near = difflib.get_close_matches(name, list(table), n=3, cutoff=0.4) or list(table)
    raise FitError(f"{path} has no column {name!r}.", hint=f"Did you mean {' or '.join(map(repr, near))}?")


def _mapped(table: Mapping[str, Any], role: str, word: str, path: str) -> tuple[str, str]:
    """Column and unit of COLUMN or COLUMN:UNIT; a column whose own name has a colon wins."""
    name, _, unit = word.rpartition(":")
    known = LOSS_UNITS if role == "loss" else tuple(MULTIPLES)
    unit = unit if role == "loss" else unit.upper()
    if word in table or not name:
        return _existing(table, word, path), ""
    if unit not in known:
        raise FitError(f"{word!r} ends with an unknown unit.", hint=f"For {role}: {', '.join(known)}.")
    return _existing(table, name, path), unit


def _guess(table: Mapping[str, Any], names: Sequence[str], taken: set[str]) -> str | None:
    """The column whose name, without its unit and punctuation, is the likeliest of `names`."""
    plain: dict[str, str] = {}
    for column in table:
        if column not in taken:
            bare = re.sub(r"[\[(]?\b(nats|bits|[KMBT])\b[\])]?$", "", column)
            short = re.sub(r"_[kmbt]$", "", column, flags=re.IGNORECASE)
            whole = (column, bare, short)
            for form in (*whole, *(name.split(mark)[-1] for name in whole for mark in ("/", ".", " - "))):
                plain.setdefault(re.sub(r"[^a-z0-9]", "", form.lower()), column)
    return next((plain[name] for name in names if name in plain), None)


def _unit_of_name(column: str, role: str) -> str:
    """M of "params (M)" or "tokens_B"; ppl of a column called so."""
    if role == "loss":
        return "ppl" if re.search(r"ppl|perplexity", column, re.IGNORECASE) else ""
    found = re.search(r"(?:[_ \[(])([KMBT])[\])]?$", column) or re.search(r"_([kmbt])$", column)
    return found.group(1).upper() if found and role in ("params", "tokens", "unique_tokens", "flops") else ""


def _values(cells: Sequence[Any], role: str, column: str, unit: str, notes: list[str]) -> Any:
    if role in LABELS:
        return [str(cell) for cell in cells]
    numbers = np.array([_number(cell, i, column) for i, cell in enumerate(cells)])
    if role == "loss":
        return _loss(numbers, column, unit, notes)
    return numbers * MULTIPLES.get(unit, 1.0)


def _number(cell: Any, row: int, column: str) -> float:
    """A number, also written as 350M or 1.4T."""
    if isinstance(cell, int | float):
        return float(cell)
    if cell is None:
        return float("nan")
    try:
        value, unit = split_unit(str(cell).replace(",", ""))
        return value * COUNT.units[unit]
    except (KeyError, ValueError):
        raise FitError(
            f"Row {row} (the first is 0) of column {column!r} is {cell!r}, which is not a number.",
            hint="Drop or mend that row, or map another column.",
        ) from None


def _loss(values: Array, column: str, unit: str, notes: list[str]) -> Array:
    """The loss in nats, converted when its unit says so; asks when it looks like a perplexity."""
    if unit == "ppl":
        notes.append(f"The loss is the logarithm of the perplexity {column!r}.")
        return np.asarray(np.log(values))
    if unit == "bits":
        notes.append(f"The loss is {column!r} times ln 2: bits a token.")
        return np.asarray(values * np.log(2.0))
    if re.search(r"bpb|bits", column, re.IGNORECASE):
        notes.append(f"The loss {column!r} stays in its own unit (bits); the law holds in it too.")
    median = float(np.nanmedian(values)) if np.isfinite(values).any() else 0.0
    if unit != "nats" and median > LARGEST_LOSS:
        raise FitError(
            f"The median of column {column!r} is {median:.4g}: more than any loss in nats a token.",
            hint=f"Say what it is: --map loss={column}:ppl for a perplexity, :bits, or :nats as it is.",
        )
    return values
