"""Folders in which every file is an example: images, sounds or texts, a sub-folder being a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import AdaptError
from isoflop.examples.generated import generated, leave_out
from isoflop.examples.media import IMAGES, SOUNDS, with_images, with_sounds
from isoflop.progress import Progress

if TYPE_CHECKING:
    from datasets import Dataset

OTHER = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".md")  # beside texts, about them


def files_of(folder: Path) -> list[Path]:
    """All below it, sorted; hidden ones are not looked at."""
    below = (path for path in folder.rglob("*") if path.is_file())
    return sorted(p for p in below if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def read_folder(folder: Path, notes: list[str], progress: Progress) -> Dataset:
    """Columns image, or audio and text (from FILE.txt beside FILE.wav), or text; and label of sub-folders.

    Raises AdaptError where it holds nothing, or more than a tenth cannot be read.
    """
    files = files_of(folder)
    images, sounds = ([p for p in files if p.suffix.lower() in suffixes] for suffixes in (IMAGES, SOUNDS))
    texts = [p for p in files if p.suffix.lower() == ".txt"]
    texts = texts or [p for p in files if p.suffix.lower() not in (*OTHER, *IMAGES, *SOUNDS)]
    if images:
        return with_images(_paths(folder, images, "image", notes), "image", folder, notes, progress)
    if sounds and texts:
        return with_sounds(_spoken(folder, sounds, notes), "audio", folder, notes, progress)
    if sounds:
        return with_sounds(_paths(folder, sounds, "audio", notes), "audio", folder, notes, progress)
    if not texts:
        raise AdaptError(f"{folder} holds no examples", hint="name a file, or a folder of files")
    return _texts(folder, texts, notes)


def _labelled(folder: Path, paths: Sequence[Path], notes: list[str]) -> list[tuple[Path, dict[str, str]]]:
    """Each with its label, the sub-folder of `folder` that it lies in; without one where none has."""
    inside = [path for path in paths if path.parent != folder]
    if not inside:
        return [(path, {}) for path in paths]
    if len(inside) < len(paths):
        notes.append(
            f"{len(paths) - len(inside)} files of {folder} lie in no class's folder and are left out"
        )
    return [(path, {"label": path.relative_to(folder).parts[0]}) for path in inside]


def _paths(folder: Path, paths: Sequence[Path], column: str, notes: list[str]) -> Dataset:
    examples = _labelled(folder, paths, notes)
    rows = ({column: str(path), **label} for path, label in examples)
    return generated(lambda: rows, _strings(column, *examples[0][1]))


def _spoken(folder: Path, sounds: Sequence[Path], notes: list[str]) -> Dataset:
    told = [path for path in sounds if path.with_suffix(".txt").exists()]
    if len(told) < len(sounds):
        notes.append(f"{len(sounds) - len(told)} sounds of {folder} have no .txt beside them")

    def rows() -> Iterator[dict[str, Any]]:
        for path in told:
            yield {"audio": str(path), "text": _decoded(path.with_suffix(".txt")).strip()}

    return generated(rows, _strings("audio", "text"))


def _texts(folder: Path, paths: Sequence[Path], notes: list[str]) -> Dataset:
    examples = _labelled(folder, paths, notes)
    bad: list[str] = []
    replaced = 0

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal replaced
        for path, label in examples:
            try:
                text = _decoded(path)
            except OSError:
                bad.append(path.name)
                continue
            replaced += "\ufffd" in text
            yield {"text": text, **label}

    found = generated(rows, _strings("text", *examples[0][1]))
    leave_out(bad, len(examples), folder, notes)
    if replaced:
        notes.append(f"{replaced} texts of {folder} are not UTF-8: bytes that are none were replaced")
    return found


def _strings(*columns: str) -> dict[str, Any]:
    from datasets import Value

    return {column: Value("string") for column in columns}


def _decoded(path: Path) -> str:
    return path.read_text("utf-8-sig", errors="replace")
