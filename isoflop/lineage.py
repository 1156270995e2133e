"""How an artifact was made, as far as the ledger knows: of what, by which step, and what all of it cost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.engines import opened
from isoflop.records import Result, Run
from isoflop.store import Project
from isoflop.transforms import MODEL, Transform

if TYPE_CHECKING:
    from isoflop.export.gated import Export

UNKNOWN = "unknown"  # step of an artifact that no record names


@dataclass(frozen=True)
class Made:
    """One artifact and the step that made it. Paths are relative to the project's folder."""

    path: str  # a model folder, or what an engine opens of an export
    step: str  # "final", "train", "prune", "quantize", "gguf q8_0" ...
    flops: dict[str, float] = field(default_factory=dict)  # of this step, by part
    seconds: float = 0.0
    made_from: str | None = None  # the model that was changed, or the first teacher; None: of text alone
    read: tuple[str, ...] = ()  # all that it needed, `made_from` included
    lost: bool = False  # the project no longer has all of that


@dataclass(frozen=True)
class Costs:
    """Of an artifact with everything that it was made of, each step counted once.

    An export's calibration, a forward pass over some training text, is not: its record does not say it.
    """

    flops: dict[str, float]  # by step and part
    seconds: float
    complete: bool  # every step has a record


class Lineage:
    """The steps of a project. A float export in `to` stands for its model folder, and is not a step."""

    def __init__(self, project: Project, to: str) -> None:
        from isoflop.export.gated import Export

        self.project, self._to = project, to
        self._runs = {run.model: run for run in project.all("run", Run) if run.model}
        self._transforms = {t.model: t for t in project.all("transform", Transform)}
        self._exports = {done.path: done for done in project.all("export", Export)}
        self._results = {result.run_id: result for result in project.all("result", Result)}

    def made(self, artifact: Path | str) -> Made:
        """The step that made an artifact, a path of its own or relative to the project."""
        path = self.name(self.project.folder / artifact)
        export = self._exports.get(path)
        if export is not None:
            return self._exported(path, export)
        if path in self._transforms:
            return self._changed(path, self._transforms[path])
        if path in self._runs:
            return self._trained(path, self._runs[path])
        return Made(path, UNKNOWN)

    def name(self, artifact: Path) -> str:
        """What an engine opens of it, from the project's folder."""
        path = opened(artifact) if artifact.exists() else artifact
        return Path(os.path.relpath(path.absolute(), self.project.folder.absolute())).as_posix()

    def costs(self, artifact: Path | str) -> Costs:
        """Of it and of all its ancestors, teachers included."""
        parts: dict[str, float] = {}
        steps = list(self._ancestors(self.made(artifact)))
        for step in steps:
            for part, flops in step.flops.items():
                name = part if part in (step.step, "ladder") else f"{step.step}: {part}"
                parts[name] = parts.get(name, 0.0) + flops
        known = not any(s.lost or s.step == UNKNOWN for s in steps)
        return Costs(parts, sum(s.seconds for s in steps), known)

    def all(self) -> list[str]:
        """Every finished artifact that is there, models before their exports, oldest first."""
        named = [self.made(path).path for path in (*self._runs, *self._transforms, *self._exports)]
        return [path for path in dict.fromkeys(named) if (self.project.folder / path).exists()]

    def float_export(self, hash: str) -> str | None:
        """The float export in `to` of the model folder with that content, if it is there."""
        for done in self._exports.values():
            stands = (done.source, done.format, done.kind) == (hash, self._to, "f32")
            if stands and (self.project.folder / done.path).exists():
                return done.path
        return None

    def _ancestors(self, last: Made) -> Iterator[Made]:
        seen, waiting = set[str](), [last]
        while waiting:
            step = waiting.pop()
            if step.path not in seen:
                seen.add(step.path)
                yield step
                waiting += [self.made(path) for path in step.read]

    def _exported(self, path: str, export: Export) -> Made:
        source = self._by_hash(export.source)
        if source is not None and (export.format, export.kind) == (self._to, "f32"):
            return self.made(source)
        made = self._transforms.get(Path(path).parent.as_posix())
        if made is not None:
            return self._changed(path, made)
        read = () if source is None else (source,)
        return Made(path, f"{export.format} {export.kind}", made_from=source, read=read, lost=source is None)

    def _changed(self, path: str, made: Transform) -> Made:
        changed = [s.path for s in made.sources if s.role == MODEL] or [s.path for s in made.sources]
        return Made(
            path, made.kind, made.flops, made.seconds, changed[0] if changed else None,
            tuple(s.path for s in made.sources),
        )  # fmt: skip

    def _trained(self, path: str, run: Run) -> Made:
        flops, seconds = {run.role: run.flops}, run.seconds_train + run.seconds_eval + run.seconds_compile
        if (result := self._results.get(run.id)) is not None:
            flops["ladder"] = result.flops_total - result.flops
            seconds += result.seconds.get("ladder", 0.0)
        initial = self._by_hash(run.config.initial) if run.config.initial else None
        teachers = [self._by_hash(hash) for hash in run.config.teachers]
        read = tuple(path for path in (initial, *teachers) if path is not None)
        lost = len(read) < len(teachers) + bool(run.config.initial)
        return Made(path, run.role, flops, seconds, initial, read, lost)

    def _by_hash(self, hash: str) -> str | None:
        """The model folder of the project with that content; an export to a folder has its model's."""
        names = map(self.name, sorted((self.project.folder / "artifacts").glob(f"*-{hash}")))
        return next((name for name in names if name not in self._exports), None)
