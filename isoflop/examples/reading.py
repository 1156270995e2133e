"""Examples from files and folders, as Datasets by split, on disk and not in memory."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.errors import AdaptError
from isoflop.examples.folders import files_of, read_folder
from isoflop.examples.generated import quiet, scratch
from isoflop.examples.media import IMAGES, SOUNDS, with_images, with_sounds
from isoflop.examples.parallel import CATALOGUES, read_pairs
from isoflop.progress import Progress, Silent

if TYPE_CHECKING:
    from datasets import Dataset

SPLITS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation",
    "val": "validation", "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
# An empty cell is the only one that is missing: "NA" and "None" are labels
CSV = {"keep_default_na": False, "na_filter": False}
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"sep": ",", **CSV}), ".tsv": ("csv", {"sep": "\t", **CSV}), ".json": ("json", {}),
    ".jsonl": ("json", {}), ".parquet": ("parquet", {}), ".txt": ("text", {}),
}  # fmt: skip
PACKED = (".gz", ".zst", ".bz2")


@dataclass(frozen=True)
class Reading:
    """What is shared while sources are read."""

    notes: list[str]
    progress: Progress
    cache: Path


@quiet()
def read_examples(
    sources: Sequence[Path], *, progress: Progress | None = None, notes: list[str] | None = None,
    cache: Path | None = None,
) -> dict[str, Dataset]:  # fmt: skip
    """Rows by split: "train" alone, or those of train, validation and test that the sources have.

    A source is a table (.csv, .tsv, .json, .jsonl, .parquet, also packed as .gz or .zst; .txt: a text a
    line), a catalogue of translations (.mo, .tmx), a dataset that `datasets` has saved, or a folder: of
    tables, of catalogues, or of images, sounds or texts, one a file, with a sub-folder a class. Files and
    sub-folders called train, validation (dev) and test are splits where one of them is train. Paths to images
    and sounds in a table are relative to it. Cells of .csv and .tsv are strings.

    What was left out is told in sentences that are added to `notes`. `cache` keeps what `datasets` has read;
    without one it is read again the next time. Raises AdaptError for what cannot be read.
    """
    reading = Reading([] if notes is None else notes, progress or Silent(), cache or scratch())
    found = _by_split(sources, reading)
    joined = {split: _joined(parts, sources) for split, parts in found.items()}
    for split, rows in joined.items():
        if not len(rows):
            raise AdaptError(f"{_names(sources)} has no rows in {split}", hint="name data with examples")
    return joined


def _by_split(sources: Sequence[Path], reading: Reading) -> dict[str, list[Dataset]]:
    """A source that has splits of its own keeps them; others are what their names say."""
    found: dict[str, list[Dataset]] = {}
    names = _splits(sources)
    for source, name in zip(sources, names, strict=True):
        for split, rows in _read(source, reading).items():
            found.setdefault(name if split == "train" else split, []).append(rows)
    return found


def _splits(paths: Sequence[Path]) -> list[str]:
    """What each path's name says, where one says train."""
    words = [path.name.lower().replace("_", "-").replace(".", "-").split("-") for path in paths]
    found = [next((SPLITS[word] for word in said if word in SPLITS), "train") for said in words]
    told = any(SPLITS.get(word) == "train" for said in words for word in said)
    return found if told else ["train"] * len(paths)


def _read(source: Path, reading: Reading) -> dict[str, Dataset]:
    if source.is_dir():
        return _read_dir(source, reading)
    if not source.exists():
        raise AdaptError(f"{source} does not exist", hint="name files or folders of examples")
    if source.name.lower().endswith(CATALOGUES):
        return {"train": read_pairs([source], source, reading.notes)}
    if _suffix(source) in TABLES:
        return {"train": _with_media(_table(source, reading), source, reading)}
    raise AdaptError(
        f"{source} is of no format that holds examples",
        hint=f"give {', '.join((*TABLES, *CATALOGUES))}, or a folder",
    )


def _read_dir(folder: Path, reading: Reading) -> dict[str, Dataset]:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return _saved(folder, reading)
    tables = [p for p in sorted(folder.iterdir()) if p.is_file() and _suffix(p) in set(TABLES) - {".txt"}]
    if tables:
        found = _by_split(tables, reading)
        return {split: _joined(parts, tables) for split, parts in found.items()}
    below = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    if {"train"} < {SPLITS.get(p.name.lower()) for p in below} and all(
        p.name.lower() in SPLITS for p in below
    ):
        return {SPLITS[p.name.lower()]: _read_dir(p, reading)["train"] for p in below}
    catalogues = [p for p in files_of(folder) if p.name.lower().endswith(CATALOGUES)]
    if catalogues:
        return {"train": read_pairs(catalogues, folder, reading.notes)}
    return {"train": read_folder(folder, reading.notes, reading.progress)}


def _saved(folder: Path, reading: Reading) -> dict[str, Dataset]:
    """A Dataset or a DatasetDict that was saved to disk."""
    from datasets import Dataset, load_from_disk

    try:
        whole = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise AdaptError(f"{folder} is no saved dataset: {_first(error)}", hint="save it again") from None
    given = {"train": whole} if isinstance(whole, Dataset) else dict(whole)
    if len(given) == 1:
        given = {"train": next(iter(given.values()))}
    unknown = [name for name in given if name not in SPLITS]
    if unknown:
        reading.notes.append(f"the splits {', '.join(unknown)} of {folder} are left out")
    return {
        SPLITS[name]: _with_media(rows, folder, reading) for name, rows in given.items() if name in SPLITS
    }


def _table(path: Path, reading: Reading) -> Dataset:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    builder, options = TABLES[_suffix(path)]
    try:
        if builder == "csv":
            options = {**options, "features": _strings(path, options["sep"])}
        return load_dataset(
            builder, data_files={"train": glob.escape(str(path.resolve()))}, split="train",
            cache_dir=str(reading.cache), **options,
        )  # fmt: skip
    except (DatasetGenerationError, ValueError, OSError) as error:
        raise AdaptError(
            f"{path} cannot be read as {_suffix(path)}: {_first(error.__cause__ or error)}",
            hint="mend the file; texts are in UTF-8",
        ) from None


def _strings(path: Path, sep: str) -> Any:
    """Every column as it is written: 007 is no number, and a later row may hold what an early one does not.

    Raises ValueError for names that no reader could use.
    """
    import pyarrow
    from datasets import Features, Value

    with io.TextIOWrapper(pyarrow.input_stream(str(path), compression="detect"), "utf-8-sig") as text:
        lines = csv.reader(text, delimiter=sep)
        names, first = next(lines, []), next(lines, [])
    if not names or len(set(names)) < len(names):
        raise ValueError(f"its first line names {'columns twice' if names else 'no column'}")
    if len(first) > len(names):
        raise ValueError(f"its second line has {len(first)} fields, and its first names {len(names)}")
    # What pandas calls a column without a name
    return Features({name or f"Unnamed: {at}": Value("string") for at, name in enumerate(names)})


def _with_media(rows: Dataset, source: Path, reading: Reading) -> Dataset:
    """Paths in its columns become images and sounds."""
    from datasets import Audio, Image, Value

    folder = source if source.is_dir() else source.parent
    for column, feature in dict(rows.features).items():
        kind = {Image: "image", Audio: "audio"}.get(type(feature), "")
        if not kind and feature == Value("string") and len(rows):
            kind = _kind(rows[0][column])
            if kind:
                rows = rows.map(_beside, batched=True, fn_kwargs={"column": column, "folder": str(folder)})
        if kind:
            check = with_images if kind == "image" else with_sounds
            rows = check(rows, column, source, reading.notes, reading.progress)
        if kind and column == "file_name" and kind not in rows.column_names:
            rows = rows.rename_column(column, kind)
    return rows


def _kind(value: Any) -> str:
    suffix = Path(value).suffix.lower() if isinstance(value, str) and "\n" not in value else ""
    return "image" if suffix in IMAGES else "audio" if suffix in SOUNDS else ""


def _beside(rows: Any, column: str, folder: str) -> dict[str, list[str | None]]:
    return {column: [None if path is None else str(Path(folder, path)) for path in rows[column]]}


def _joined(parts: Sequence[Dataset], sources: Sequence[Path]) -> Dataset:
    from datasets import concatenate_datasets

    columns = {tuple(sorted(rows.column_names)) for rows in parts}
    try:
        if len(columns) > 1:
            raise ValueError("; ".join(", ".join(names) for names in sorted(columns)))
        whole = concatenate_datasets(list(parts)) if len(parts) > 1 else parts[0]
    except (ValueError, TypeError) as error:
        raise AdaptError(
            f"the columns of {_names(sources)} differ: {_first(error)}", hint="give data of the same columns"
        ) from None
    whole.info.description = _names(sources)
    return whole


def _names(sources: Sequence[Path]) -> str:
    return ", ".join(map(str, sources))


def _suffix(path: Path) -> str:
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
