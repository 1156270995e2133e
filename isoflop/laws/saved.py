"""Fits on disk and published laws by name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from isoflop.errors import CorruptError, FitError
from isoflop.laws.result import Fit
from isoflop.laws.table import parse_mapping
from isoflop.quantities import COUNT
from isoflop.store import atomic_write, disk_errors


def save(fit: Fit, path: Path) -> None:
    """Write a fit as JSON; the file is whole or is not there."""
    if path.is_dir():
        raise FitError(f"{path} is a folder.", hint="Give a file name, e.g. --out law.json.")
    with disk_errors(f"the fit {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, fit.to_json())


def load(name: str) -> Fit:
    """A saved fit, or a published law by name.

    Raises CorruptError for a file that holds no fit, FitError when `name` is neither.
    """
    path = Path(name)
    if not path.is_file():
        return Fit.of_published(name)
    try:
        body = json.loads(path.read_text())
        version = body.get("schema_version") if isinstance(body, dict) else None
        current = Fit.model_fields["schema_version"].default
        if isinstance(version, int) and version > current:
            raise FitError(f"{path} was saved by a newer isoflop (schema {version}).", hint="Update isoflop.")
        return Fit.from_json(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as error:
        raise CorruptError(
            f"{path} is not a saved fit",
            hint="make one: isoflop fit TABLE --out FILE; predict and plan read that",
        ) from error


def numbers(words: Sequence[str]) -> dict[str, float]:
    """NAME=NUMBER words of further covariates, 20B too. Raises FitError for what is no number."""
    out = {}
    for name, word in parse_mapping(words).items():
        if name in ("params", "tokens"):
            raise FitError(f"{name} has an option of its own.", hint=f"Give --{name} {word}.")
        out[name] = COUNT.read(name, word)
    return out
