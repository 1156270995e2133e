"""Checkpoints that survive anything: written aside, synced, renamed; hashed; the last two kept."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import CorruptError
from isoflop.progress import Progress
from isoflop.store import atomic_write

INDEX = "checkpoints.json"
KEEP = 2

Entry = dict[str, Any]  # of the index: the checkpoint's name under "file", and its hash or hashes
State = dict[str, Any]


def save(folder: Path, state: State, step: int) -> None:
    """Write `state` as checkpoint `step`; at every instant the index names only whole files."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    name = f"checkpoint-{step:09d}.pt"
    atomic_write(folder / name, bytes(data))
    publish(folder, {"file": name, "sha256": hashlib.sha256(data).hexdigest()})


def load(folder: Path, progress: Progress) -> State | None:
    """The newest whole checkpoint, or None when there never was one.

    Raises CorruptError when checkpoints exist and none of them is what was written.
    """

    def read(path: Path, entry: Entry) -> State | None:
        data = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            return None
        state: State = torch.load(io.BytesIO(data), weights_only=True)
        return state

    return newest(folder, index(folder), read, progress)


def publish(folder: Path, entry: Entry) -> None:
    """Name a checkpoint that is whole in the index, and delete what that does not name any more."""
    entries = [*(e for e in index(folder) if e["file"] != entry["file"]), entry][-KEEP:]
    atomic_write(folder / INDEX, json.dumps(entries))
    for old in (*folder.glob("checkpoint-*"), *folder.glob(".*.tmp")):  # the latter of killed writers
        if old.name in {e["file"] for e in entries}:
            continue
        if old.is_dir():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.unlink(missing_ok=True)


def newest(
    folder: Path, entries: list[Entry], read: Callable[[Path, Entry], State | None], progress: Progress
) -> State | None:
    """The last of `entries` of which `read` finds what was written. Raises CorruptError when none is."""
    for entry in reversed(entries):
        path = folder / entry["file"]
        if (state := read(path, entry)) is not None:
            return state
        progress.log(f"{path} is damaged: it is not what was written; trying the one before")
    if entries:
        raise CorruptError(
            f"no checkpoint in {folder} is what was written", hint=f"delete {folder} to start this run again"
        )
    return None


def index(folder: Path) -> list[Entry]:
    """What the folder's index names, oldest first. Raises CorruptError when it is not what was written."""
    path = folder / INDEX
    try:
        entries: list[Entry] = json.loads(path.read_text()) if path.exists() else []
        if not (isinstance(entries, list) and all(map(_is_entry, entries))):
            raise ValueError("it does not name files with their hashes")
    except ValueError as error:
        raise CorruptError(
            f"{path} is not a checkpoint index: {error}", hint=f"delete {folder} to start this run again"
        ) from None
    return entries


def _is_entry(value: Any) -> bool:
    """Whether a value is like an `Entry`: a name, and the hash of a file or of each of a folder's."""
    match value:
        case {"file": str(), "sha256": str(), **others} if not others:
            return True
        case {"file": str(), "files": {**hashes}, **others} if not others:
            return all(isinstance(found, str) for found in hashes.values())
    return False
