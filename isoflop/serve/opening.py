"""Models opened as a server holds them: the engine, what the ledger knows of it, its chat template."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from isoflop.engines import opened
from isoflop.engines.speed import disk_bytes
from isoflop.progress import Progress
from isoflop.serve.chats import Template, template_of
from isoflop.serve.engines.opening import KEY_VARIABLE, opened_engine
from isoflop.serve.gateway import Model
from isoflop.serve.protocol import Engine
from isoflop.serve.settings import LOSS_INCREASE
from isoflop.served import KIND, Served
from isoflop.store import HASH_DIGITS, Project, content_hash


class Limits(NamedTuple):
    """Of what a model may be served as."""

    max_bytes: float | None = None
    max_loss_increase: float = LOSS_INCREASE  # share of the model's
    force: bool = False  # also what a gate or a verdict refused


class Opening(NamedTuple):
    """How models are opened."""

    threads: int | None  # None: as many as the machine has
    slots: int  # requests that each computes at the same time
    context: int | None  # tokens of each; None: what the model was made for

    async def engine(self, where: str | Path, key_variable: str = KEY_VARIABLE) -> Engine:
        return await opened_engine(
            where, threads=self.threads, slots=self.slots, context=self.context, key_variable=key_variable
        )


def artifacts(
    named: Mapping[str, str], project: Project | None, threads: int | None, limits: Limits, progress: Progress
) -> dict[str, str]:
    """What each model is served as: of the project's own, what `choose` takes; others as they are named.

    Raises as `choose` does.
    """
    return {name: _artifact(where, project, threads, limits, progress) for name, where in named.items()}


def _artifact(
    where: str, project: Project | None, threads: int | None, limits: Limits, progress: Progress
) -> str:
    if "://" in where or project is None:
        return where
    if not Path(where).resolve().is_relative_to(project.folder.resolve() / "artifacts"):
        return where
    from isoflop.serve.engines.choosing import choose  # torch: a file that is named is served without it

    choice = choose(
        project, Path(where), threads=threads, max_bytes=limits.max_bytes, progress=progress,
        max_loss_increase=limits.max_loss_increase, force=limits.force,
    )  # fmt: skip
    progress.log(f"{where}: {choice.why}")
    return str(project.folder / choice.path)


async def opened_models(named: Mapping[str, str], project: Project | None, how: Opening) -> dict[str, Model]:
    """The models at these paths or URLs, started. Raises as `opened_engine` does, and leaves nothing open."""
    models: dict[str, Model] = {}
    try:
        for name, where in named.items():
            models[name] = await _opened(name, where, project, how, _key_variable(name, named.values()))
    except BaseException:
        await closed(models)
        raise
    return models


async def closed(models: Mapping[str, Model]) -> None:
    """End what these models run."""
    await asyncio.gather(*(model.engine.close() for model in models.values()))


def _key_variable(name: str, served: Iterable[str]) -> str:
    """What has the key of a server elsewhere: one of its own, as no other server shall see the key.

    Where it is the only one the variable need not name it.
    """
    own = f"{KEY_VARIABLE}_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"
    alone = sum("://" in where for where in served) == 1
    return KEY_VARIABLE if alone and own not in os.environ else own


async def _opened(name: str, where: str, project: Project | None, how: Opening, key_variable: str) -> Model:
    if "://" in where:  # another server, of whose files nothing is known
        return Model(name, await how.engine(where, key_variable))
    path = opened(Path(where))
    read, engine = await asyncio.gather(  # the engine loads it meanwhile
        asyncio.to_thread(_read, path, project), how.engine(path), return_exceptions=True
    )
    if isinstance(read, BaseException):
        if not isinstance(engine, BaseException):
            await engine.close()
        raise read
    if isinstance(engine, BaseException):
        raise engine
    hash, bpb, size, template = read
    return Model(name, engine, hash, bpb, size, template)


def _read(path: Path, project: Project | None) -> tuple[str, float | None, int, Template | None]:
    hash = content_hash(path)[:HASH_DIGITS]
    bpb = None if project is None else _bits_per_byte(project, hash)
    return hash, bpb, disk_bytes(path), template_of(path)


def _bits_per_byte(project: Project, hash: str) -> float | None:
    """Of the artifact with this content, as it was measured last."""
    found = [served.bpb for served in project.all(KIND, Served) if served.hash == hash]
    return found[-1] if found else None
