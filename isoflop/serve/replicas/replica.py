"""What runs in a replica's process: one engine.

Nothing is raised to Ray Serve: it would write the error, and what the error quotes, into its log.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple

from isoflop.errors import IsoflopError
from isoflop.serve.answering import Together
from isoflop.serve.engines.opening import started
from isoflop.serve.errors import described
from isoflop.serve.protocol import (
    Classifies,
    Embeds,
    Ending,
    Engine,
    Generation,
    Hears,
    Piece,
    RequestError,
    Scores,
    Tags,
    Tokenizes,
    Writes,
)

ABILITIES: Mapping[str, Any] = {
    kind.__name__: kind for kind in (Tokenizes, Writes, Scores, Embeds, Classifies, Tags, Hears)
}
CANNOT_OPEN = "isoflop cannot open the engine: "  # before the error in JSON, where Ray Serve tells of it


class About(NamedTuple):
    """What does not change of an engine."""

    name: str
    context: int
    schemas: bool
    abilities: tuple[str, ...]


class Failed(NamedTuple):
    """What a client is told of an error."""

    message: str
    status: int
    code: str | None
    param: str | None

    def error(self) -> RequestError:
        return RequestError(self.message, status=self.status, code=self.code, param=self.param)


class Some(NamedTuple):
    """What had come of an answer since the last."""

    seconds: float  # since this replica took it up
    items: list[Piece | Ending]
    failed: Failed | None = None


class Replica:
    """Holds the engine that `made` gives."""

    async def __init__(self, made: Callable[[], Engine]) -> None:  # type: ignore[misc]
        _only_here()
        try:
            self.engine = await started(made())
        except IsoflopError as error:
            told = json.dumps([type(error).__name__, error.message, error.hint])
            raise RuntimeError(CANNOT_OPEN + told) from None

    async def __del__(self) -> None:  # Ray Serve calls it, and waits for it
        await self.engine.close()

    async def about(self) -> About:
        engine: Any = self.engine
        abilities = tuple(name for name, kind in ABILITIES.items() if isinstance(engine, kind))
        return About(engine.name, engine.context, getattr(engine, "schemas", False), abilities)

    async def check_health(self) -> None:
        """Ray Serve asks, and starts another where this raises."""
        if not await self.engine.alive():
            raise RuntimeError(f"{self.engine.name} does not answer")

    async def ask(self, what: str, *given: Any) -> Any:
        """What that method of the engine says, or Failed."""
        try:
            return await getattr(self.engine, what)(*given)
        except Exception as error:
            return _failed(error)

    async def write(self, asked: Generation) -> AsyncIterator[Some]:
        """What has come, whenever something has."""
        engine: Any = self.engine
        began = time.monotonic()
        try:
            async with Together([engine.generate(asked)]) as together:
                while batch := await together.batch():
                    yield Some(time.monotonic() - began, [item for _, item in batch])
        except Exception as error:
            yield Some(time.monotonic() - began, [], _failed(error))


def _failed(error: Exception) -> Failed:
    found = described(error)
    return Failed(found.message, found.status, found.code, found.param)


def _only_here() -> None:
    """Keep the port for calls from other deployments, which Ray Serve opens on all networks, to this machine.

    There is no setting for it; whoever calls there needs the cluster's token, too.
    """
    replica: Any = import_module("ray.serve._private.replica")
    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add(server, "127.0.0.1:0")
