"""From the sources that a user names to the parts that workers read.

A part is a whole file or a fixed stretch of one, so that the parts, and with them the corpus, do not
depend on the number of workers.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import CorpusError

BLOCK_BYTES = 8 << 20  # of one part of a large file, and of one unit of small ones
TEXT_SUFFIXES = (".txt", ".md", ".py")
TABLE_KINDS = {".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".parquet": "parquet"}
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[\w.-]+)?")


@dataclass(frozen=True)
class File:
    """An input: `kind` is text, jsonl, parquet, arrow or hub (then `path` is a data set's name)."""

    path: str
    kind: str
    named: bool = False  # by the user, not found in a folder: a binary one is an error
    size: int = 0  # bytes
    mtime_ns: int = 0


@dataclass(frozen=True)
class Part:
    """A stretch of a file: bytes of text and JSONL, row groups of Parquet; `stop=None` is the end."""

    file: File
    start: int = 0
    stop: int | None = None


Unit = tuple[Part, ...]  # what one worker reads in one go


def find_files(sources: tuple[str, ...]) -> list[File]:
    """The files behind `sources`, sorted within each source; none: the standard library's source.

    Raises `CorpusError` when a source is neither a path, a glob that matches, nor a data set's name.
    """
    if not sources:
        return list(_standard_library())
    files: dict[str, File] = {}
    for source in sources:
        for file in _expand(source):
            files.setdefault(file.path, file)
    return list(files.values())


def to_units(files: list[File]) -> list[Unit]:
    """Cut large files into parts and gather small ones, about `BLOCK_BYTES` a unit."""
    units: list[Unit] = []
    gathered: list[Part] = []
    size = 0
    for file in files:
        parts = _cut(file)
        if len(parts) > 1 or file.kind == "hub":
            units += [(part,) for part in parts]
            continue
        gathered += parts
        size += file.size
        if size >= BLOCK_BYTES:
            units.append(tuple(gathered))
            gathered, size = [], 0
    if gathered:
        units.append(tuple(gathered))
    return units


def _standard_library() -> Iterator[File]:
    root = Path(sysconfig.get_path("stdlib"))
    for path in _walk(root, (".py",)):
        if not {"site-packages", "dist-packages"} & set(path.relative_to(root).parts):
            yield _stat(path, named=False)


def _expand(source: str) -> list[File]:
    path = Path(source).expanduser()
    if path.is_file():
        return [_stat(path, named=True)]
    if path.is_dir():
        found = list(_dataset(path)) or [_stat(p, named=False) for p in _walk(path, _walked())]
        if not found:
            raise CorpusError(
                f"The folder {source} holds no file of a known type.",
                hint=f"Known types are {' '.join(_walked())}; name other text files by a glob.",
            )
        return found
    if glob.has_magic(source):
        matches = sorted(glob.glob(str(path), recursive=True))
        if found := [_stat(Path(match), named=False) for match in matches if Path(match).is_file()]:
            return found
        raise CorpusError(f"The pattern {source} matches no file.", hint="Quote it, and try it with ls.")
    if HUB_NAME.fullmatch(source) and Path(source).suffix not in (*TEXT_SUFFIXES, *TABLE_KINDS):
        return [File(source, "hub", named=True)]
    raise CorpusError(
        f"The source {source} does not exist.",
        hint="Give a file, a folder, a glob, or the name of a Hugging Face data set such as org/name.",
    )


def _walked() -> tuple[str, ...]:
    return (*TEXT_SUFFIXES, *TABLE_KINDS)


def _walk(root: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            if name.endswith(suffixes) and not name.startswith(".") and path.is_file():
                yield path


def _dataset(folder: Path) -> Iterator[File]:
    """The Arrow files of a folder that `save_to_disk` wrote; of several splits, `train`."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text())["splits"]
        if "train" not in names:
            raise CorpusError(
                f"The data set {folder} has no split named train, but {', '.join(names)}.",
                hint=f"Name the split's folder, for example {folder / names[0]}.",
            )
        folder = folder / "train"
    state = folder / "state.json"
    if state.is_file():
        for entry in json.loads(state.read_text())["_data_files"]:
            yield _stat(folder / entry["filename"], named=False, kind="arrow")


def _stat(path: Path, *, named: bool, kind: str | None = None) -> File:
    kind = kind or next((k for suffix, k in TABLE_KINDS.items() if path.name.endswith(suffix)), "text")
    status = path.stat()
    return File(os.path.abspath(path), kind, named, status.st_size, status.st_mtime_ns)


def _cut(file: File) -> list[Part]:
    if file.kind == "parquet" and file.size > BLOCK_BYTES:
        from isoflop.corpus.reading import row_groups

        return [Part(file, start, stop) for start, stop in row_groups(file.path, BLOCK_BYTES)]
    splittable = file.kind in ("text", "jsonl") and not file.path.endswith((".gz", ".zst"))
    if splittable and file.size > BLOCK_BYTES:
        return [Part(file, at, at + BLOCK_BYTES) for at in range(0, file.size, BLOCK_BYTES)]
    return [Part(file)]
