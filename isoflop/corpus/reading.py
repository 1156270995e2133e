"""Documents of text files, plain, gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from typing import IO, cast

from isoflop.corpus.sources import BLOCK_BYTES, File, Part
from isoflop.errors import CorpusError

SLACK_BYTES = 1 << 16  # how far beyond a block's end its last line may reach
BINARY_SHARE = 0.001  # of NUL bytes


def open_bytes(file: File) -> IO[bytes]:
    """Open for reading, decompressed by suffix."""
    if file.path.endswith(".gz"):
        return cast(IO[bytes], gzip.open(file.path, "rb"))
    if file.path.endswith(".zst"):
        import zstandard

        return io.BufferedReader(zstandard.open(file.path, "rb"), 1 << 20)
    return open(file.path, "rb")


def read_error(file: File, error: Exception) -> CorpusError:
    """The error for a file that cannot be read."""
    return CorpusError(f"{file.path} cannot be read: {error}.", hint="Repair the file or leave it out.")


def text_blocks(part: Part) -> Iterator[bytes]:
    """The part's bytes in blocks of about `BLOCK_BYTES`, cut at line ends (a character's end, if none).

    A binary file yields nothing when it was found in a folder; raises `CorpusError` when it was named.
    """
    with open_bytes(part.file) as stream:
        first = 0
        if part.start:
            stream.seek(part.start)
        data = stream.read(_wanted(part, 0))
        if part.start:
            first = _border(data, 0)
        while data:
            at = (part.stop or 0) - part.start if part.stop else BLOCK_BYTES
            last = _border(data, at)
            yield data[first:last]
            if part.stop:
                return
            data = data[last:] + stream.read(_wanted(part, len(data) - last))
            first = 0


def is_binary(block: bytes) -> bool:
    """Whether more than `BINARY_SHARE` of the bytes are NUL."""
    return block.count(0) > BINARY_SHARE * len(block)


def _wanted(part: Part, have: int) -> int:
    length = part.stop - part.start if part.stop else BLOCK_BYTES
    return length + SLACK_BYTES + 4 - have


def _border(data: bytes, at: int) -> int:
    """The first line start at or after `at`, or the first character start beyond the slack."""
    if at >= len(data):
        return len(data)
    newline = data.find(b"\n", at, at + SLACK_BYTES)
    if newline >= 0:
        return newline + 1
    border = min(at + SLACK_BYTES, len(data))
    while border < len(data) and data[border] & 0xC0 == 0x80:
        border += 1
    return border
