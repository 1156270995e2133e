"""A server with replicas for tests, in a process of its own: an engine that says in whose process it is."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

from serving import Echo

from isoflop.errors import CorruptError
from isoflop.progress import Silent
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.keys import Keys
from isoflop.serve.objectives import Objectives
from isoflop.serve.opening import Opening
from isoflop.serve.protocol import Ending, Engine, EngineError, Generation, Piece
from isoflop.serve.replicas.cluster import Fleet
from isoflop.serve.running import serve
from isoflop.serve.screen import screen
from isoflop.serve.settings import Settings
from isoflop.serve.watched import watched
from isoflop.store import Project


class Signed(Echo):
    """Says first in which process it is, what runs there, and what was left unfinished."""

    name, slots = "signed", 2

    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        if asked.prompt == "break":
            raise EngineError("it broke")
        words = "" if asked.prompt == "who" else f" {asked.prompt}"
        prompt = f"{os.getpid()} {self.running} {self.cancelled}{words}"
        async for found in super().generate(Generation(prompt, asked.max_tokens)):
            yield found


class Broken(Signed):
    async def start(self) -> None:
        raise CorruptError("the file is torn", hint="export it again")


def made(where: str, key_variable: str) -> Engine:
    return Broken() if where == "broken" else Signed(0.02)


def main(settings: Settings, folder: str) -> None:
    assert settings.replicas
    home = Project(Path(folder))
    gateway = Gateway({}, settings, Keys(home))
    around = watched(gateway, home, None, Objectives(), None)
    gateway.observers = around.observers
    with Fleet(Opening(1, 4, None), settings.replicas, Silent(), seconds=30, made=made) as fleet:

        async def models() -> dict[str, Model]:
            try:
                await fleet.engine("broken")
            except CorruptError as error:
                print(f"refused  {error.message}; {error.hint}")
            return {"echo": Model("echo", await fleet.engine("whole"))}

        serve(gateway, models, lambda url: print(screen(gateway, url), flush=True), more=around.routers)
    print("closed", flush=True)


if __name__ == "__main__":
    import replicating  # under its name, by which replicas know it

    replicating.main(Settings.from_json(sys.argv[1]), *sys.argv[2:])
