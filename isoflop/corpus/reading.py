"""What the sources hold: blocks of text, and the documents of JSON lines, Parquet, Arrow and the hub."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, cast

from isoflop.corpus.sources import BLOCK_BYTES, File, Part
from isoflop.errors import CorpusError

SLACK_BYTES = 1 << 16  # how far beyond a block's end its last line may reach
BEYOND_BYTES = SLACK_BYTES + 4  # and the rest of a character
BINARY_SHARE = 0.001  # of NUL bytes
BATCH_ROWS = 256


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


def jsonl_documents(part: Part, field: str, decode: Callable[[bytes], str]) -> Iterator[str | None]:
    """The field's text, line by line, made text by `decode`; None where it is null.

    A line belongs to the part in which it starts. Raises `CorpusError` naming file and line when a
    line is not a JSON object or has no such field.
    """
    with open_bytes(part.file) as stream:
        position = 0
        if part.start:
            stream.seek(part.start - 1)
            position = part.start - 1 + len(stream.readline())
        for number, line in enumerate(stream):
            if part.stop is not None and position >= part.stop:
                return
            position += len(line)
            if line.strip():
                try:
                    row = json.loads(decode(line))
                except ValueError as error:
                    raise _line_error(part, number, f"is not JSON ({error})") from error
                if not isinstance(row, dict):
                    raise _line_error(part, number, f"is not a JSON object but a {type(row).__name__}")
                yield _value(row, field, part.file)


def parquet_documents(part: Part, field: str) -> Iterator[str | None]:
    """The column's text. Raises `CorpusError` when the file is not Parquet or has no such column."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(part.file.path) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise _no_field(part.file, field, names)
            groups = range(part.start, table.num_row_groups if part.stop is None else part.stop)
            for batch in table.iter_batches(BATCH_ROWS, row_groups=list(groups), columns=[field]):
                yield from (_text(value, field, part.file) for value in batch.column(0).to_pylist())
    except OSError as error:  # pyarrow's errors are OSError or ValueError
        raise read_error(part.file, error) from error
    except ValueError as error:
        if isinstance(error, CorpusError):
            raise
        raise read_error(part.file, error) from error


def row_groups(path: str, size: int) -> list[tuple[int, int]]:
    """Consecutive ranges of row groups of at least `size` uncompressed bytes each."""
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except (OSError, ValueError) as error:
        raise read_error(File(path, "parquet"), error) from error
    ranges, start, gathered = [], 0, 0
    for group in range(metadata.num_row_groups):
        gathered += metadata.row_group(group).total_byte_size
        if gathered >= size or group == metadata.num_row_groups - 1:
            ranges.append((start, group + 1))
            start, gathered = group + 1, 0
    return ranges


def arrow_documents(part: Part, field: str) -> Iterator[str | None]:
    """The column's text of a file that `datasets.save_to_disk` wrote."""
    import pyarrow as pa

    try:
        with pa.memory_map(part.file.path) as source, pa.ipc.open_stream(source) as batches:
            if field not in batches.schema.names:
                raise _no_field(part.file, field, batches.schema.names)
            for batch in batches:
                column = batch.column(field)
                for at in range(0, len(column), BATCH_ROWS):
                    values = column.slice(at, BATCH_ROWS).to_pylist()
                    yield from (_text(value, field, part.file) for value in values)
    except (OSError, pa.ArrowInvalid) as error:
        raise read_error(part.file, error) from error


def hub_documents(part: Part, field: str) -> Iterator[str | None]:
    """The field's text of a data set on the Hugging Face hub, streamed: `org/name` or `org/name:subset`."""
    import datasets

    name, _, subset = part.file.path.partition(":")
    try:
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True)
        for row in rows:
            yield _value(row, field, part.file)
    except CorpusError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CorpusError(
            f"{part.file.path} is no path here and cannot be loaded as a Hugging Face data set: {reason}",
            hint="Check the spelling and the network, or download it and give its folder.",
        ) from error


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


def _value(row: dict[str, Any], field: str, file: File) -> str | None:
    if field not in row:
        raise _no_field(file, field, list(row))
    return _text(row[field], field, file)


def _text(value: object, field: str, file: File) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise CorpusError(
        f'The field "{field}" of {file.path} holds {type(value).__name__}, not text.',
        hint="Name a field that holds strings.",
    )


def _no_field(file: File, field: str, names: list[str]) -> CorpusError:
    return CorpusError(
        f'{file.path} has no field "{field}"; there are: {", ".join(map(str, names))}.',
        hint="Name one of these as the field.",
    )


def _line_error(part: Part, number: int, what: str) -> CorpusError:
    with open_bytes(part.file) as stream:
        before = stream.read(part.start)
    number += 1 + before.count(b"\n") + (before != b"" and not before.endswith(b"\n"))
    return CorpusError(
        f"{part.file.path}, line {number}: this {what}.",
        hint="Mend or remove the line; a file of plain text should not be named .jsonl.",
    )
