"""Models opened as a server holds them: the engine, what the ledger knows of it, its chat template."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from isoflop.engines import opened
from isoflop.engines.speed import disk_bytes
from isoflop.errors import CorruptError
from isoflop.serve.chats import Template, template_of
from isoflop.serve.deploying.records import named
from isoflop.serve.engines.opening import KEY_VARIABLE, opened_engine, unstarted
from isoflop.serve.gateway import Model
from isoflop.serve.protocol import Engine
from isoflop.served import KIND, Served
from isoflop.store import HASH_DIGITS, Project, content_hash


class Opens(Protocol):
    """How models are opened."""

    async def engine(self, where: str | Path, key_variable: str = KEY_VARIABLE) -> Engine:
        """Started. Raises as `opened_engine` does."""


class Opening(NamedTuple):
    """With engines of this machine."""

    threads: int | None  # None: as many as the machine has
    slots: int  # requests that each computes at the same time
    context: int | None  # tokens of each; None: what the model was made for
    by: str | None = None  # the engine that was named; None: the one that suits

    async def engine(self, where: str | Path, key_variable: str = KEY_VARIABLE) -> Engine:
        return await opened_engine(
            where, threads=self.threads, slots=self.slots, context=self.context, key_variable=key_variable,
            by=self.by,
        )  # fmt: skip

    def unstarted(self, where: str | Path, key_variable: str = KEY_VARIABLE) -> Engine:
        return unstarted(str(where), **self._asdict(), key_variable=key_variable)


async def opened_models(served: Mapping[str, str], project: Project | None, how: Opens) -> dict[str, Model]:
    """The models at these paths or URLs, started. Raises as `opened_engine` does, and leaves nothing open."""
    models: dict[str, Model] = {}
    try:
        for name, where in served.items():
            variable = key_variable(name, served.values())
            models[name] = await opened_model(name, where, project, how, variable)
    except BaseException:
        await closed(models)
        raise
    return models


async def closed(models: Mapping[str, Model]) -> None:
    """End what these models run."""
    await asyncio.gather(*(model.engine.close() for model in models.values()))


def key_variable(name: str, served: Iterable[str]) -> str:
    """What has the key of a server elsewhere: one of its own, as no other server shall see the key.

    Where it is the only one the variable need not name it.
    """
    own = f"{KEY_VARIABLE}_{re.sub(r'[^A-Z0-9]', '_', name.upper())}"
    alone = sum("://" in where for where in served) == 1
    return KEY_VARIABLE if alone and own not in os.environ else own


async def opened_model(
    name: str, where: str, project: Project | None, how: Opens, variable: str = KEY_VARIABLE, *,
    hash: str = "",
) -> Model:  # fmt: skip
    """The model at a path or URL, started; the environment's `variable` may have the key of a URL's server.

    Raises as `opened_engine` does, and CorruptError where its content is not what this hash is of.
    """
    if "://" in where:  # another server, of whose files nothing is known
        return Model(name, await how.engine(where, variable), path=where)
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
    found, bpb, size, template = read
    if hash and found != hash:
        await engine.close()
        raise CorruptError(
            f"{path} is not what was deployed: its content's hash is {found}, not {hash}",
            hint="restore it from a copy, or deploy another",
        )
    known_as = str(path.absolute()) if project is None else named(project, path)
    return Model(name, engine, found, bpb, size, template, path=known_as)


def _read(path: Path, project: Project | None) -> tuple[str, float | None, int, Template | None]:
    hash = content_hash(path)[:HASH_DIGITS]
    bpb = None if project is None else _bits_per_byte(project, hash)
    return hash, bpb, disk_bytes(path), template_of(path)


def _bits_per_byte(project: Project, hash: str) -> float | None:
    """Of the artifact with this content, as it was measured last."""
    found = [served.bpb for served in project.all(KIND, Served) if served.hash == hash]
    return found[-1] if found else None
