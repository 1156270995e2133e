"""Records on disk: rows.jsonl, and a README whose notes outlive the next run of the benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOTES = "    benchmarks/"  # the command, with which the notes of a person begin


def keep(folder: Path, rows: Sequence[dict[str, Any]], text: str) -> None:
    """Write the rows and the README, and print it; what was written under the command stays, to be reread."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
    readme = folder / "README.md"
    before = readme.read_text() if readme.exists() else ""
    at = before.find(NOTES)
    readme.write_text(text + (before[at:] if at >= 0 else ""))
    print(text)
