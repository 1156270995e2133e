"""The command that takes personal data out of a text."""

from __future__ import annotations

import codecs
import json as json_text
import os
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import Annotated

import typer

from isoflop.cli.options import JsonOption, extra
from isoflop.errors import ServeError

app = typer.Typer()

CHUNK = 65_536  # bytes
READER_GONE = 141  # 128 + SIGPIPE


@app.command()
def mask(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="A UTF-8 text; stdin when absent.")
    ] = None,
    kinds: Annotated[
        str | None,
        typer.Option(
            metavar="KIND,...", help="E.g. email,phone; all when absent, an unknown one lists them."
        ),
    ] = None,
    reversible: Annotated[
        bool, typer.Option("--reversible", help="Numbered placeholders, the same for the same value.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Put placeholders such as [EMAIL] where a text has personal data, as it is read.

    The masked text goes to stdout, and how much was masked to stderr. With --json both are one document,
    which with --reversible also has the values. It needs isoflop's extra serve.

    Example: [bold]isoflop mask letters.txt --kinds email,phone > masked.txt[/bold]
    """
    with extra("serve"):
        from isoflop.serve.masking import KINDS, Masker

    named = KINDS if kinds is None else [kind.strip() for kind in kinds.split(",")]
    masker = Masker(named, reversible=reversible)
    stream = masker.stream()
    written = _quoted if json else str
    try:
        with _opened(file) as source:
            _say('{"text": "' if json else "")
            for text in _texts(source, file or "stdin"):
                _say(written(stream.push(text)))
        _say(written(stream.end()))
        if json:
            rest = {"found": stream.found, **({"values": masker.values} if reversible else {})}
            _say('", ' + json_text.dumps(rest, ensure_ascii=False)[1:] + "\n")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
        raise typer.Exit(READER_GONE) from None
    if not json:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in stream.found.most_common())
        typer.echo(f"masked: {counts or 'nothing'}", err=True)


def _opened(file: Path | None) -> FileIO:
    try:
        return FileIO(file or sys.stdin.fileno(), closefd=file is not None)
    except OSError as error:
        raise ServeError(f"{file} cannot be read: {error.strerror}", hint="name a text file") from None


def _texts(source: FileIO, name: object) -> Iterator[str]:
    """What there is to read, as it comes."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    read = begin = 0  # bytes: in all, and before those that are decoded next
    try:
        while piece := source.read(CHUNK):
            yield decoder.decode(piece)
            read += len(piece)
            begin = read - len(decoder.getstate()[0])
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ServeError(
            f"{name} is not UTF-8 at byte {begin + error.start:,}", hint="convert it first, e.g. by iconv"
        ) from None


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _quoted(text: str) -> str:
    """As it stands within a JSON string."""
    return json_text.dumps(text, ensure_ascii=False)[1:-1]
