"""Documents of text files, plain, gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, cast

from isoflop.corpus.sources import BLOCK_BYTES, File, Part
from isoflop.errors import CorpusError

SLACK_BYTES = 1 << 16  # how far beyond a block's end its last line may reach
BEYOND_BYTES = SLACK_BYTES + 4  # and the rest of a character
BINARY_SHARE = 0.001  # of NUL bytes


@contextmanager
def open_bytes(file: File) -> Iterator[IO[bytes]]:
    """Open for reading, decompressed by suffix. Raises `CorpusError` when that fails, now or later."""
    failures: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
    try:
        with ExitStack() as stack:
            if file.path.endswith(".gz"):
                yield cast(IO[bytes], stack.enter_context(gzip.open(file.path, "rb")))
            elif file.path.endswith(".zst"):
                import zstandard

                failures += (zstandard.ZstdError,)
                opened = stack.enter_context(zstandard.open(file.path, "rb"))
                yield io.BufferedReader(opened, 1 << 20)
            else:
                yield stack.enter_context(open(file.path, "rb"))
    except failures as error:
        raise read_error(file, error) from error


def read_error(file: File, error: Exception) -> CorpusError:
    """The error for a file that cannot be read."""
    return CorpusError(f"{file.path} cannot be read: {error}.", hint="Repair the file or leave it out.")


def text_blocks(part: Part) -> Iterator[bytes]:
    """The part's bytes in blocks of about `BLOCK_BYTES`, cut at line ends (a character's end, if none).

    Neighbouring parts of a file share their borders: no byte is lost or read twice.
    """
    with open_bytes(part.file) as stream:
        length = BLOCK_BYTES if part.stop is None else part.stop - part.start
        if part.start:
            stream.seek(part.start)
        data = stream.read(length + BEYOND_BYTES)
        first = _border(data, 0) if part.start else 0
        while data:
            last = _border(data, length)
            if first < last:
                yield data[first:last]
            if part.stop is not None:
                return
            data = data[last:] + stream.read(length + BEYOND_BYTES - (len(data) - last))
            first = 0


def is_binary(block: bytes) -> bool:
    """Whether more than `BINARY_SHARE` of the bytes are NUL."""
    return block.count(0) > BINARY_SHARE * len(block)


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
