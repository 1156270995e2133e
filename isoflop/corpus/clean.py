"""One unit of input to clean, hashed documents on disk: a pure function of the unit and the config."""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from isoflop.corpus import reading
from isoflop.corpus.dedupe import INDEX, signatures, wants_signatures
from isoflop.corpus.sources import Part, Unit
from isoflop.errors import CorpusError
from isoflop.records import CorpusConfig

PIECE_CHARS = 1 << 16  # longer documents are cut
REPEATED_LINES = 20  # fewer non-blank lines are too few to judge
CONTROL_SHARE = 0.1  # of control characters, and of bytes that were no UTF-8
FLUSH_DOCUMENTS = 128
CONTROL = bytes(sorted({*range(32), 127} - set(b"\t\n\f\r")))
TABLES: dict[str, Callable[[Part, str], Iterator[str | None]]] = {
    "parquet": reading.parquet_documents,
    "arrow": reading.arrow_documents,
    "hub": reading.hub_documents,
}


@dataclass(frozen=True)
class CleanTask:
    """Clean `unit` into the files `stem`.txt, .index, .signatures and, last, .json."""

    unit: Unit
    config: CorpusConfig
    stem: str


def clean_unit(task: CleanTask) -> dict[str, int | str]:
    """Write the unit's clean documents and return its counts and the hash of what was read.

    Raises `CorpusError` for a source that cannot be used. A unit that was finished before is not
    done again.
    """
    done = Path(task.stem + ".json")
    if not done.exists():
        writer = _Writer(task)
        with writer:
            for part in task.unit:
                for text in _documents(part, writer):
                    writer.add(text)
        partial = Path(task.stem + ".partial")
        partial.write_text(json.dumps(writer.summary()))
        os.replace(partial, done)
    summary: dict[str, int | str] = json.loads(done.read_text())
    return summary


def cut(text: str) -> Iterator[str]:
    """Pieces of at most `PIECE_CHARS`, cut after a paragraph, else a line, else a word, else anywhere.

    A piece depends on the text before and in it only: appending to a text moves its last piece alone.
    """
    start = 0
    while len(text) - start > PIECE_CHARS:
        for border in ("\n\n", "\n", " "):
            at = text.rfind(border, start + PIECE_CHARS // 2, start + PIECE_CHARS)
            if at >= 0:
                at += len(border)
                break
        else:
            at = start + PIECE_CHARS
        yield text[start:at]
        start = at
    yield text[start:]


def fault(text: str, data: bytes, config: CorpusConfig) -> str | None:
    """Why the document (`data` is its UTF-8) should be dropped, or None."""
    stripped = len(text.strip())
    if stripped == 0:
        return "empty"
    if stripped < config.min_chars:
        return "short"
    control = len(data) - len(data.translate(None, CONTROL)) + text.count("\ufffd")
    if control > CONTROL_SHARE * len(text):
        return "control"
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    repeated = len(lines) - len(set(lines))
    if len(lines) >= REPEATED_LINES and repeated > config.max_repeated_line_share * len(lines):
        return "repeated lines"
    return None


def _documents(part: Part, writer: _Writer) -> Iterator[str]:
    """Normalised documents of the part; what cannot be one is counted."""
    if part.file.kind == "text":
        yield from _text_documents(part, writer)
        return
    field = writer.config.field
    if part.file.kind == "jsonl":
        texts = reading.jsonl_documents(part, field, writer.decode)
    else:
        texts = TABLES[part.file.kind](part, field)
    for text in texts:
        if text is None:
            writer.dropped["empty"] += 1
            continue
        writer.read(text.encode(errors="replace"))
        yield from cut(text)


def _text_documents(part: Part, writer: _Writer) -> Iterator[str]:
    if part.file.size == 0:
        writer.dropped["empty"] += 1
    for number, block in enumerate(reading.text_blocks(part)):
        if number == 0 and reading.is_binary(block):
            if part.file.named:
                raise CorpusError(
                    f"{part.file.path} is a binary file.",
                    hint="Give UTF-8 text, or convert it first (UTF-16 looks binary too).",
                )
            writer.dropped["binary"] += 1
            return
        writer.read(block)
        yield from cut(writer.decode(block))


class _Writer:
    """Gathers a unit's documents and counts, writing every `FLUSH_DOCUMENTS`."""

    def __init__(self, task: CleanTask) -> None:
        self.config = task.config
        self.dropped: Counter[str] = Counter()
        self._stem = task.stem
        self._salt = task.config.seed.to_bytes(8, "little", signed=True)
        self._identity = hashlib.blake2b(digest_size=16)
        self._pending: list[tuple[str, bytes]] = []
        self._counts = {"documents": 0, "bytes": 0, "raw_bytes": 0, "bad_bytes": 0}

    def __enter__(self) -> _Writer:
        names = ["txt", "index"] + ["signatures"] * wants_signatures(self.config)
        self._stack = ExitStack()
        self._files: dict[str, IO[bytes]] = {}
        for name in names:
            self._files[name] = self._stack.enter_context(open(f"{self._stem}.{name}", "wb"))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            self._flush()

    def read(self, data: bytes) -> None:
        """Account for raw bytes: their number, and their part in the corpus's identity."""
        self._counts["raw_bytes"] += len(data)
        self._identity.update(len(data).to_bytes(8, "little"))
        self._identity.update(data)

    def decode(self, block: bytes) -> str:
        """Text of a block of UTF-8; bytes that are none become U+FFFD and are counted."""
        try:
            return block.decode("utf-8-sig")
        except UnicodeDecodeError:
            self._counts["bad_bytes"] += len(block) - len(block.decode("utf-8", "ignore").encode())
            return block.decode("utf-8-sig", "replace")

    def add(self, text: str) -> None:
        """Keep the document, or count why not."""
        text = text.replace("\r\n", "\n")
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
        try:
            data = text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
            data = text.encode(errors="replace")
            text = data.decode()
        if reason := fault(text, data, self.config):
            self.dropped[reason] += 1
            return
        self._pending.append((text, data))
        if len(self._pending) >= FLUSH_DOCUMENTS:
            self._flush()

    def summary(self) -> dict[str, int | str]:
        """Counts, reasons as `dropped:reason`, and `identity`."""
        dropped = {f"dropped:{reason}": count for reason, count in sorted(self.dropped.items())}
        return {**self._counts, **dropped, "identity": self._identity.hexdigest()}

    def _flush(self) -> None:
        if not self._pending:
            return
        index = np.empty(len(self._pending), INDEX)
        for row, (_, data) in enumerate(self._pending):
            digest = hashlib.blake2b(data, digest_size=16, salt=self._salt).digest()
            halves = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
            index[row] = (len(data), *halves)
        self._files["txt"].write(b"".join(data for _, data in self._pending))
        self._files["index"].write(index.tobytes())
        if "signatures" in self._files:
            self._files["signatures"].write(signatures([text for text, _ in self._pending]).tobytes())
        self._counts["documents"] += len(index)
        self._counts["bytes"] += int(index["bytes"].sum())
        self._pending = []
