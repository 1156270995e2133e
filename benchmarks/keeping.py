"""Records on disk: rows.jsonl, appended to as measurements end; a README whose notes outlive the next run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

NOTES = "    benchmarks/"  # the command, with which the notes of a person begin


def read(record: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    path = record / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def find(record: Path, key: dict[str, Any]) -> dict[str, Any] | None:
    """The row that has all of `key`."""
    return next((row for row in read(record) if all(row.get(k) == v for k, v in key.items())), None)


def once(record: Path, key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row of `key`; measured and appended unless it is there. It says how busy the machine was."""
    found = find(record, key)
    if found is not None:
        return found
    before = os.getloadavg()[0]
    measured = work()
    row = key | {"load_before": before, "load_after": os.getloadavg()[0], "cores": os.cpu_count()} | measured
    record.mkdir(parents=True, exist_ok=True)
    with (record / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps({k: v for k, v in row.items() if k not in ("runs", "curve")}), flush=True)
    return row


def write_readme(folder: Path, text: str) -> None:
    """Write the README and print it; what was written under the command stays, to be reread."""
    folder.mkdir(parents=True, exist_ok=True)
    readme = folder / "README.md"
    before = readme.read_text() if readme.exists() else ""
    at = before.find(NOTES)
    readme.write_text(text if at < 0 else text.partition(NOTES)[0] + before[at:])
    print(text)


def keep(folder: Path, rows: Sequence[dict[str, Any]], text: str) -> None:
    """Write all rows at once, and the README."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    write_readme(folder, text)


def machine() -> str:
    """Cores and processor, for people."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"
