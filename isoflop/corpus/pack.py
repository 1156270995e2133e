"""Clean documents to token files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from isoflop.corpus.bpe import count_bytes, encoder, end_token, read_tokenizer, token_type
from isoflop.corpus.dedupe import INDEX
from isoflop.corpus.sources import BLOCK_BYTES
from isoflop.errors import CorpusError

SIDES = ("train", "heldout")
COUNTS = ("documents", "bytes", "tokens")


@dataclass(frozen=True)
class PackTask:
    """Encode documents [first, last) of the unit `stem`, which begin at byte `offset` of its text."""

    stem: str
    first: int
    last: int
    offset: int
    tokenizer: str  # path
    output: str  # path without suffix


def pack_tasks(stem: str, number: int, tokenizer: Path, folder: Path) -> Iterator[PackTask]:
    """The unit's documents in runs of about `BLOCK_BYTES`."""
    lengths = np.fromfile(f"{stem}.index", INDEX)["bytes"].astype(np.int64)
    ends = np.cumsum(lengths)
    first = 0
    while first < len(ends):
        offset = int(ends[first] - lengths[first])
        last = max(first + 1, int(np.searchsorted(ends, offset + BLOCK_BYTES, side="right")))
        output = folder / f"{number:06d}-{first:09d}"
        yield PackTask(stem, first, last, offset, str(tokenizer), str(output))
        first = last


def pack(task: PackTask) -> dict[str, int]:
    """Write `output`.train and `output`.heldout and return counts of documents, bytes and tokens.

    `stem`.sides says of each document 0 (training), 1 (held out) or 2 (dropped). Raises
    `CorpusError` when the tokenizer's tokens do not spell the text.
    """
    done = Path(task.output + ".json")
    if not done.exists():
        packed, counts = _encode(task)
        for side, ids in zip(SIDES, packed, strict=True):
            Path(f"{task.output}.{side}").write_bytes(ids)
        partial = Path(task.output + ".partial")
        partial.write_text(json.dumps(counts))
        os.replace(partial, done)
    result: dict[str, int] = json.loads(done.read_text())
    return result


def join(outputs: Sequence[str], side: str, target: Path) -> str:
    """Append the side's runs to one file, in order; its SHA-256."""
    digest = hashlib.sha256()
    with open(target, "wb") as sink:
        for output in outputs:
            data = Path(f"{output}.{side}").read_bytes()
            digest.update(data)
            sink.write(data)
    return digest.hexdigest()


def documents(task: PackTask) -> Iterator[tuple[bytes, int]]:
    """UTF-8 and side of the task's documents."""
    item = INDEX.itemsize
    count = task.last - task.first
    index = np.fromfile(f"{task.stem}.index", INDEX, count, offset=task.first * item)
    sides = np.fromfile(f"{task.stem}.sides", np.uint8, count, offset=task.first)
    with open(f"{task.stem}.txt", "rb") as text:
        text.seek(task.offset)
        for size, side in zip(index["bytes"].tolist(), sides.tolist(), strict=True):
            yield text.read(size), side


@dataclass(frozen=True)
class _Tools:
    encode: Callable[[str], bytes]
    sizes: NDArray[np.int64]
    end: bytes
    dtype: type[np.uint16] | type[np.uint32]


@lru_cache(maxsize=1)
def _tools(path: str) -> _Tools:
    """Kept between a worker's tasks, with the encoder's table of words."""
    tokenizer = read_tokenizer(Path(path))
    sizes = count_bytes(tokenizer)
    dtype = token_type(len(sizes))
    return _Tools(encoder(tokenizer, dtype), sizes, np.array([end_token(tokenizer)], dtype).tobytes(), dtype)


def _encode(task: PackTask) -> tuple[list[bytes], dict[str, int]]:
    tools = _tools(task.tokenizer)
    parts: list[list[bytes]] = [[] for _ in SIDES]
    counts = dict.fromkeys((f"{side}_{what}" for side in SIDES for what in COUNTS), 0)
    for data, number in documents(task):
        if number < len(SIDES):
            parts[number] += (tools.encode(data.decode()), tools.end)
            counts[f"{SIDES[number]}_documents"] += 1
            counts[f"{SIDES[number]}_bytes"] += len(data)
    packed = [b"".join(part) for part in parts]
    for side, ids in zip(SIDES, packed, strict=True):
        tokens = np.frombuffer(ids, tools.dtype)
        counts[f"{side}_tokens"] = len(tokens)
        spelled = int(tools.sizes[tokens].sum())
        if spelled != counts[f"{side}_bytes"]:
            raise CorpusError(
                f"The tokenizer changes the text: its tokens spell {spelled} bytes of "
                f"{counts[f'{side}_bytes']}, so bits per byte would be wrong.",
                hint="Use a tokenizer without a normalizer or prefix space, or let one be trained.",
            )
    return packed, counts
