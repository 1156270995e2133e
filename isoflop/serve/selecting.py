"""What each named model is served as: of the project's own the fastest artifact within limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from isoflop.progress import Progress
from isoflop.serve.settings import LOSS_INCREASE
from isoflop.store import Project


class Limits(NamedTuple):
    """Of what a model may be served as."""

    max_bytes: float | None = None
    max_loss_increase: float = LOSS_INCREASE  # share of the model's
    force: bool = False  # also what a gate or a verdict refused


def artifacts(
    named: Mapping[str, str], project: Project | None, threads: int | None, limits: Limits,
    progress: Progress, *, alone: bool = False,
) -> dict[str, str]:  # fmt: skip
    """What each model is served as: of the project's own, what `choose` takes; others as they are named, and
    all of them where they shall be `alone`, by an engine that somebody named.

    Raises as `choose` does.
    """
    return {
        name: _artifact(where, project, threads, limits, progress, alone) for name, where in named.items()
    }


def _artifact(
    where: str, project: Project | None, threads: int | None, limits: Limits, progress: Progress, alone: bool
) -> str:
    if "://" in where or project is None:
        return where
    if not Path(where).resolve().is_relative_to(project.folder.resolve() / "artifacts"):
        return where
    from isoflop.serve.engines.choosing import choose  # torch: a file that is named is served without it

    choice = choose(
        project, Path(where), threads=threads, max_bytes=limits.max_bytes, progress=progress,
        max_loss_increase=limits.max_loss_increase, force=limits.force, alone=alone,
    )  # fmt: skip
    progress.log(f"{where}: {choice.why}")
    return str(project.folder / choice.path)
