"""Which side of the split each document is on, by the hash of its text alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isoflop.corpus.dedupe import INDEX
from isoflop.errors import CorpusError
from isoflop.records import CorpusConfig

TRAIN, HELDOUT, DROPPED = 0, 1, 2


def write_sides(stems: Sequence[str], dropped: Path | None, config: CorpusConfig) -> None:
    """Write `stem`.sides for every unit.

    A document is held out when the first half of its hash, as a fraction, is below `heldout_share`: so
    it never changes sides when the corpus grows. Only if that leaves a side empty, the document with
    the smallest hash is held out, or the one with the largest is trained on. Raises `CorpusError`
    when fewer than two documents are left.
    """
    limit = config.heldout_share * 2.0**64
    extremes: list[tuple[int, int, int]] = []  # side hash, unit, row
    counts = np.zeros(3, np.int64)
    flags = np.memmap(dropped, np.bool_, "r") if dropped else None
    first = 0
    for unit, stem in enumerate(stems):
        hashes = np.fromfile(f"{stem}.index", INDEX)["side"]
        sides = np.where(hashes < limit, HELDOUT, TRAIN).astype(np.uint8)
        if flags is not None:
            sides[flags[first : first + len(sides)]] = DROPPED
        first += len(sides)
        sides.tofile(f"{stem}.sides")
        counts += np.bincount(sides, minlength=3)
        kept = np.flatnonzero(sides != DROPPED)
        for row in {int(kept[hashes[kept].argmin()]), int(kept[hashes[kept].argmax()])} if len(kept) else ():
            extremes.append((int(hashes[row]), unit, row))
    if counts[TRAIN] + counts[HELDOUT] < 2:
        raise CorpusError(
            f"The corpus has {counts[TRAIN] + counts[HELDOUT]} document: nothing to hold out.",
            hint="Give at least two documents; a text file is one document per 64 Ki characters.",
        )
    if counts[HELDOUT] == 0:
        _move(stems, min(extremes), HELDOUT)
    elif counts[TRAIN] == 0:
        _move(stems, max(extremes), TRAIN)


def _move(stems: Sequence[str], place: tuple[int, int, int], side: int) -> None:
    _, unit, row = place
    with open(f"{stems[unit]}.sides", "r+b") as file:
        file.seek(row)
        file.write(bytes([side]))
