"""What tests of the ledger and of the project folder share."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

from isoflop.records import Interval

SPAWN = multiprocessing.get_context("spawn")


def interval(value: float) -> Interval:
    """A small record."""
    return Interval(value=value, low=0, high=1)


def files(folder: Path) -> list[str]:
    """Everything under a folder, hidden files included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
