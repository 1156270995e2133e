"""Training, validation and test rows, parted by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import AdaptError

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1000


def splits_of(
    found: Mapping[str, Dataset], *, seed: int = 0, validation: float = 0.1, test: float = 0.2,
    notes: list[str] | None = None,
) -> dict[str, Dataset]:  # fmt: skip
    """train, validation and test: what is given stays, the others are these shares of the training rows.

    Rows with the lowest hashes are the test, the next ones the validation: equal rows lie on one side, and a
    row stays on its side, but for a few at the border, when others come. Rows of the training side that equal
    one of the test or validation rows, and of the validation that equal one of the test, are dropped and
    counted in `notes`. Columns should be those of the task: a running number makes every row unlike.

    Raises AdaptError for shares that leave nothing, or where a split comes out empty.
    """
    notes = [] if notes is None else notes
    if "train" not in found:
        raise AdaptError(f"the data has {', '.join(found)} and no training rows", hint="name training data")
    shares = {
        name: share for name, share in (("test", test), ("validation", validation)) if name not in found
    }
    if not all(0 < share < 1 for share in shares.values()) or sum(shares.values()) >= 1:
        raise AdaptError(
            f"shares of {', '.join(f'{s:g} for {n}' for n, s in shares.items())} leave no training rows",
            hint="give shares above 0 whose sum is below 1",
        )
    hashes = {name: _hashes(rows, seed) for name, rows in found.items()}
    kept = _without_leaks(hashes, notes)
    parts = {name: rows.select(kept[name]) for name, rows in found.items()}
    side = _sides(hashes["train"][kept["train"]], shares)
    whole = parts["train"]
    parts |= {name: whole.select(np.flatnonzero(side == name)) for name in ("train", *shares)}
    for name, rows in parts.items():
        if not len(rows):
            raise AdaptError(
                f"{len(found['train'])} rows are too few: none is left for {name}", hint="give more examples"
            )
    return {name: parts[name] for name in ("train", "validation", "test")}


def _without_leaks(hashes: Mapping[str, NDArray[np.uint64]], notes: list[str]) -> dict[str, NDArray[np.intp]]:
    """Rows of each split that no split which judges it has."""
    kept = {}
    for name, own in hashes.items():
        judges = {"train": ("validation", "test"), "validation": ("test",)}.get(name, ())
        leaked = np.zeros(len(own), bool)
        for judge in judges:
            if judge in hashes:
                leaked |= np.isin(own, hashes[judge])
        kept[name] = np.flatnonzero(~leaked)
        if leaked.any():
            notes.append(f"{int(leaked.sum())} rows of {name} equal rows that are held out, and are left out")
    return kept


def _sides(hashes: NDArray[np.uint64], shares: Mapping[str, float]) -> NDArray[np.str_]:
    """(n,) names of splits, in shares of the distinct contents."""
    distinct, which = np.unique(hashes, return_inverse=True)
    borders = np.round(np.cumsum(list(shares.values())) * len(distinct)).astype(int)
    return np.array([*shares, "train"])[np.searchsorted(borders, np.arange(len(distinct)), "right")][which]


def _hashes(rows: Dataset, seed: int) -> NDArray[np.uint64]:
    """(n,) of each row's content; of images and sounds, their files'."""
    from isoflop.examples.columns import undecoded

    made = np.zeros(len(rows), np.uint64)
    columns = sorted(rows.column_names)
    at = 0
    for batch in undecoded(rows).select_columns(columns).iter(BATCH):
        for values in zip(*(batch[name] for name in columns), strict=True):
            row = [_content(name, value) for name, value in zip(columns, values, strict=True)]
            content = json.dumps(row, sort_keys=True, default=str).encode()
            digest = hashlib.blake2b(content, digest_size=8, key=str(seed).encode()).digest()
            made[at] = int.from_bytes(digest)
            at += 1
    return made


def _content(column: str, value: Any) -> Any:
    """The bytes of a file stand for its path."""
    if column == "audio" and isinstance(value, str):
        value = {"bytes": None, "path": value}
    if isinstance(value, Mapping) and set(value) == {"bytes", "path"}:
        held = value["bytes"] if value["bytes"] is not None else Path(value["path"]).read_bytes()
        return hashlib.blake2b(held).hexdigest()
    return value
