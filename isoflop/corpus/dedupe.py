"""Exact and near duplicates, found with memory that does not grow with the corpus.

The share of equal columns of two MinHash signatures (Broder 1997) estimates the Jaccard similarity of
the documents' shingles. Documents that share a key (their hash, or a band of their signature:
locality-sensitive hashing) are candidates. Keys are sorted a partition at a time; signatures are read
when compared.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.progress import Progress
from isoflop.records import CorpusConfig

INDEX = np.dtype([("bytes", "<u4"), ("side", "<u8"), ("sample", "<u8")])  # both halves of a document's hash
PERMUTATIONS = 128
SHINGLE_WORDS = 5
WORD_CHARS = 20  # text with longer words on average has no spaces between words: characters serve
HASH_SEED = 1
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93, 0x27D4EB2F165667C5],
    np.uint64,
)
PARTITION_DOCUMENTS = 1 << 22
PAIRS = 1 << 14  # compared at once: 16 MB of signatures
RECALL = 0.85  # least chance that two documents as similar as the threshold become candidates
Keys = Callable[[str], NDArray[np.uint64]]  # of a unit's documents


def wants_signatures(config: CorpusConfig) -> bool:
    """Whether near-duplicates are to be dropped at all."""
    return config.near_duplicate_threshold < 1.0


def signatures(texts: list[str]) -> NDArray[np.uint32]:
    """One row of `PERMUTATIONS` minima a text; the share of equal columns estimates the similarity."""
    from rensa import RMinHash

    rows = [_shingles(np.array(row, np.uint64)) for row in RMinHash.hash_token_sets([*map(_words, texts)])]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        np.concatenate(rows), offsets, PERMUTATIONS, HASH_SEED
    )
    return np.asarray(matrix.to_rows(), np.uint32)


def drop_duplicates(
    stems: Sequence[str], config: CorpusConfig, stage: Path, progress: Progress
) -> tuple[Path | None, dict[str, int]]:
    """Flag, in a file with one byte a document, those that equal or resemble an earlier one.

    Two documents resemble each other when the share of equal MinHash values reaches
    `near_duplicate_threshold`. Returns the file (None for no documents) and the counts.
    """
    path, done = stage / "duplicates", stage / "duplicates.json"
    if done.exists():
        counts: dict[str, int] = json.loads(done.read_text())
        return path, counts
    sizes = [Path(f"{stem}.index").stat().st_size // INDEX.itemsize for stem in stems]
    if sum(sizes) == 0:
        return None, {}
    rows = bands(config.near_duplicate_threshold) if wants_signatures(config) else PERMUTATIONS
    columns = range(0, PERMUTATIONS, rows) if wants_signatures(config) else ()
    progress.start("dedupe", 1 + len(columns), "passes")
    flags = np.memmap(path, np.bool_, "w+", shape=(sum(sizes),))
    finder = _Finder(stems, np.cumsum([0, *sizes]), flags)
    counts = {"duplicate": finder.flag(_hashes, finder.same_hash)}
    near, alike = 0, partial(finder.similar, threshold=config.near_duplicate_threshold)
    for number, first in enumerate(columns):
        progress.update("dedupe", 1 + number)
        near += finder.flag(partial(_band, first=first, rows=rows), alike)
    flags.flush()
    if columns:
        counts["near duplicate"] = near
    progress.finish("dedupe", f"{sum(counts.values()):,} dropped")
    unfinished = stage / "duplicates.partial"
    unfinished.write_text(json.dumps(counts))
    os.replace(unfinished, done)
    return path, counts


def bands(threshold: float) -> int:
    """Most rows a band such that documents as similar as `threshold` share a band with chance `RECALL`."""
    rows = [1, 2, 4, 8, 16, 32]
    chances = [1 - (1 - threshold**r) ** (PERMUTATIONS // r) for r in rows]
    return max((r for r, chance in zip(rows, chances, strict=True) if chance >= RECALL), default=1)


class _Finder:
    def __init__(self, stems: Sequence[str], starts: NDArray[Any], flags: NDArray[np.bool_]) -> None:
        self._stems = stems
        self._starts = starts
        self._flags = flags

    def flag(self, keys: Keys, alike: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]]) -> int:
        """Flag documents alike the first, or the previous, of those that share their key."""
        flagged = 0
        partitions = 1 + int(self._starts[-1]) // PARTITION_DOCUMENTS
        for partition in range(partitions):
            earlier, later = self._pairs(keys, partition, partitions)
            for at in range(0, len(later), PAIRS):
                a, b = earlier[at : at + PAIRS], later[at : at + PAIRS]
                open_ = ~self._flags[b]
                a, b = a[open_], b[open_]
                found = np.unique(b[alike(a, b)]) if len(b) else b
                self._flags[found] = True
                flagged += len(found)
        return flagged

    def same_hash(self, a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether the second halves of the hashes agree too."""
        equal: NDArray[np.bool_] = (
            self._read("index", INDEX, a)["sample"] == self._read("index", INDEX, b)["sample"]
        )
        return equal

    def similar(self, a: NDArray[Any], b: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
        """Whether the estimated Jaccard similarity of pairs of documents reaches `threshold`."""
        row = np.dtype((np.uint32, (PERMUTATIONS,)))
        equal = self._read("signatures", row, a) == self._read("signatures", row, b)
        above: NDArray[np.bool_] = equal.mean(axis=1) >= threshold
        return above

    def _pairs(self, keys: Keys, partition: int, partitions: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Documents of one partition of the keys, each with the first and the previous of its key."""
        gathered, owners = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
        for start, stem in zip(self._starts[:-1], self._stems, strict=True):
            values = keys(stem)
            inside = np.flatnonzero(values % partitions == partition) if partitions > 1 else slice(None)
            gathered.append(values[inside])
            owners.append(np.arange(start, start + len(values))[inside])
        values, documents = np.concatenate(gathered), np.concatenate(owners)
        order = np.argsort(values, kind="stable")  # so equal keys stay in the documents' order
        values, documents = values[order], documents[order]
        fresh = np.append(True, values[1:] != values[:-1])[: len(values)]
        later = np.flatnonzero(~fresh)
        leaders = np.maximum.accumulate(np.where(fresh, np.arange(len(values)), 0))[later]
        chained = leaders < later - 1
        earlier = np.concatenate([leaders, later[chained] - 1])
        return documents[earlier], documents[np.concatenate([later, later[chained]])]

    def _read(self, suffix: str, dtype: np.dtype[Any], documents: NDArray[Any]) -> NDArray[Any]:
        """The documents' rows of the units' files."""
        rows = np.empty(documents.shape, dtype)
        units = np.searchsorted(self._starts, documents, side="right") - 1
        for unit in np.unique(units):
            here = units == unit
            table = np.memmap(f"{self._stems[unit]}.{suffix}", dtype, "r")
            rows[here] = table[documents[here] - self._starts[unit]]
        return rows


def _hashes(stem: str) -> NDArray[np.uint64]:
    return np.fromfile(f"{stem}.index", INDEX)["side"].astype(np.uint64)


def _band(stem: str, first: int, rows: int) -> NDArray[np.uint64]:
    """A hash of `rows` columns of the signatures, from `first` on."""
    keys = [np.empty(0, np.uint64)]
    with open(f"{stem}.signatures", "rb") as file:
        while (table := np.fromfile(file, np.uint32, PAIRS * PERMUTATIONS)).size:
            key = np.zeros(table.size // PERMUTATIONS, np.uint64)
            for column in range(first, first + rows):
                key = (key ^ table[column::PERMUTATIONS]) * np.uint64(0x9E3779B97F4A7C15)
                key ^= key >> np.uint64(29)
            keys.append(key)
    return np.concatenate(keys)


def _words(text: str) -> list[str]:
    words = text.split()
    return words if len(words) * WORD_CHARS >= len(text) else list(text)


def _shingles(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hashes of all runs of `SHINGLE_WORDS` words; of the whole text when it is shorter."""
    width = min(SHINGLE_WORDS, len(words))
    count = len(words) - width + 1
    shingles = np.zeros(count, np.uint64)
    for at in range(width):
        shingles = (shingles ^ words[at : at + count]) * MULTIPLIERS[at]
        shingles ^= shingles >> np.uint64(29)
    return shingles
