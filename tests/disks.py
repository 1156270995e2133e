"""A small disk of a test's own, which can be full."""

from __future__ import annotations

import subprocess
from pathlib import Path


class Disk:
    """In memory, under a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def resize(self, kilobytes: int, *options: str) -> bool:
        words = ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={kilobytes}k"]), "tmpfs"]
        return subprocess.run([*words, str(self.folder)], capture_output=True).returncode == 0

    def used(self) -> int:
        """Kilobytes of its files."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file()) // 1024
