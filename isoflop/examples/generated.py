"""Rows made of files that no builder of `datasets` reads, and files that could not be read."""

from __future__ import annotations

import atexit
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import AdaptError

if TYPE_CHECKING:
    from datasets import Dataset

UNREADABLE_SHARE = 0.1  # of the files: above it the data is no data
NAMED = 3  # files that a sentence names


@cache
def scratch() -> Path:
    """A folder for rows on disk that goes when the program ends."""
    folder = Path(tempfile.mkdtemp(prefix="isoflop-examples-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def quiet() -> Iterator[None]:
    """Without the bars of `datasets`: progress is shown in one way."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def generated(rows: Callable[[], Iterator[dict[str, Any]]], features: Mapping[str, Any]) -> Dataset:
    """Rows that a function yields, written to disk as they come; `features` are of `datasets`.

    The function always runs, so that it may count what it meets.
    """
    from datasets import Dataset, Features

    return Dataset.from_generator(
        rows, features=Features(features), cache_dir=tempfile.mkdtemp(dir=scratch()),
        fingerprint=secrets.token_hex(8),
    )  # fmt: skip


def leave_out(bad: Sequence[str], total: int, place: Path, notes: list[str]) -> None:
    """Notes the files that could not be read. Raises AdaptError where they are more than a tenth of all."""
    if not bad:
        return
    names = ", ".join(bad[:NAMED]) + (" ..." if len(bad) > NAMED else "")
    if len(bad) > UNREADABLE_SHARE * total:
        raise AdaptError(
            f"{len(bad)} of {total} files of {place} cannot be read: {names}",
            hint="restore them, or take them away: up to a tenth may be unreadable",
        )
    notes.append(f"{len(bad)} of {total} files of {place} cannot be read and are left out: {names}")
