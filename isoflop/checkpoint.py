"""Checkpoints that survive anything: written aside, synced, renamed; hashed; the last two kept."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import CorruptError
from isoflop.progress import Progress
from isoflop.store import atomic_write

INDEX = "checkpoints.json"
KEEP = 2


def save(folder: Path, state: dict[str, Any], step: int) -> None:
    """Write `state` as checkpoint `step`; at every instant the index names only whole files."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getbuffer()
    name = f"checkpoint-{step:09d}.pt"
    atomic_write(folder / name, bytes(data))
    entries = [e for e in _index(folder) if e["file"] != name]
    entries.append({"file": name, "sha256": hashlib.sha256(data).hexdigest()})
    atomic_write(folder / INDEX, json.dumps(entries[-KEEP:]))
    for old in (*folder.glob("checkpoint-*.pt"), *folder.glob(".*.tmp")):  # the latter of killed writers
        if old.name not in {e["file"] for e in entries[-KEEP:]}:
            old.unlink(missing_ok=True)


def load(folder: Path, progress: Progress) -> dict[str, Any] | None:
    """The newest whole checkpoint, or None when there never was one.

    Raises CorruptError when checkpoints exist and none of them is what was written.
    """
    entries = _index(folder)
    for entry in reversed(entries):
        path = folder / entry["file"]
        data = path.read_bytes() if path.exists() else b""
        found = hashlib.sha256(data).hexdigest()
        if found == entry["sha256"]:
            state: dict[str, Any] = torch.load(io.BytesIO(data), weights_only=True)
            return state
        progress.log(
            f"{path} is damaged (sha256 {found[:12]}, written {entry['sha256'][:12]}); trying the one before"
        )
    if entries:
        raise CorruptError(
            f"no checkpoint in {folder} is what was written", hint=f"delete {folder} to start this run again"
        )
    return None


def _index(folder: Path) -> list[dict[str, str]]:
    path = folder / INDEX
    try:
        entries: list[dict[str, str]] = json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise CorruptError(
            f"{path} is not a checkpoint index: {error}", hint=f"delete {folder} to start this run again"
        ) from None
    return entries
