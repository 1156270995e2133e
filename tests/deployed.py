"""For tests of deployments: artifacts that are texts, engines that say them, a server that follows."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from hearing import until
from judged import served
from serving import Echo, Witness

from isoflop.errors import CorruptError
from isoflop.serve.app import build_app
from isoflop.serve.deploying.changing import Deploying, followers
from isoflop.serve.deploying.following import Follower
from isoflop.serve.deploying.records import Deployment
from isoflop.serve.gateway import Gateway
from isoflop.serve.objectives import Objectives
from isoflop.serve.protocol import Ending, EngineError, Generation, Piece
from isoflop.serve.running import config
from isoflop.serve.settings import Settings
from isoflop.serve.watched import watched
from isoflop.served import KIND
from isoflop.store import HASH_DIGITS, Project, content_hash

NAME = "talker"


class Speaker(Echo):
    """Says its name before each word of the prompt; once closed it fails."""

    slots = 256

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said, self.held, self.broken = said, threading.Event(), False
        self.held.set()  # cleared, it waits before the second word

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        if self.broken:
            raise EngineError(f"{self.said} is broken")
        words = str(asked.prompt).split()
        for number, word in enumerate(words):
            await asyncio.sleep(0)
            while number and not self.held.is_set():
                await asyncio.sleep(0.005)
            if not self.started:
                raise EngineError(f"{self.said} is closed")
            yield Piece(f"{self.said}:{word} ", 1)
        yield Ending("stop", len(words), len(words), queued=0.0)


class Speakers:
    """Opens files as engines that say what is in them (an `Opening`)."""

    def __init__(self) -> None:
        self.opened: list[Speaker] = []

    async def engine(self, where: str | Path, key_variable: str = "") -> Speaker:
        said = Path(where).read_text()
        if said.startswith("damaged"):
            raise CorruptError(f"{where} is damaged", hint="restore it")
        engine = Speaker(said)
        await engine.start()
        self.opened.append(engine)
        return engine

    def of(self, said: str) -> Speaker:
        """The last that says so."""
        return [engine for engine in self.opened if engine.said == said][-1]


class Home:
    """A project with artifacts of these names; `bits` puts what was measured of one into the ledger."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.project = Project(folder)
        for name in names:
            self.artifact(name)

    def artifact(self, name: str, text: str | None = None) -> str:
        path = self.project.folder / name
        path.write_text(text or name)
        return str(path)

    def bits(self, name: str, bpb: float | None, **other: Any) -> None:
        hash = content_hash(self.project.folder / name)[:HASH_DIGITS]
        row = served(name, 1.0, 1e6, 1.0)
        self.project.put(KIND, row.model_copy(update={"hash": hash, "bpb": bpb, **other}))

    def change(self, **given: Any) -> Deploying:
        return Deploying(self.project, **{"name": NAME, "force": True, **given})

    def deploy(self, name: str, **given: Any) -> Deployment:
        return self.change(**given).deploy(str(self.project.folder / name), NAME)


class Running:
    """A server that follows the project's ledger, and its client."""

    def __init__(self, home: Home, url: str, gateway: Gateway, speakers: Speakers, witness: Witness) -> None:
        self.home, self.url, self.gateway = home, url, gateway
        self.speakers, self.witness = speakers, witness
        self.client = httpx.Client(base_url=url, timeout=60)

    def ask(self, prompt: str = "word", **more: Any) -> httpx.Response:
        document = {"model": NAME, "prompt": prompt, "max_tokens": 50, **more}
        return self.client.post("/v1/completions", json=document)

    def says(self) -> str:
        """Which artifact answers."""
        return str(self.ask().json()["choices"][0]["text"]).partition(":")[0]

    def told(self) -> Any:
        (model,) = self.client.get("/admin/deployment").json()["models"]
        return model

    def follows(self, deployment: Deployment) -> None:
        """Returns once it has come to an end with it, well or not."""
        until(lambda: self._standing(deployment) not in ("", "opening"), 60)

    def _standing(self, deployment: Deployment) -> str:
        standing = self.gateway.standing[deployment.id]
        return standing.state if standing.token == deployment.token else ""


@contextmanager
def following(home: Home, *, settings: Settings | None = None, typed: str = "") -> Iterator[Running]:
    """The server, in a thread; `typed` is the artifact that it was started with, if any."""
    speakers, witness = Speakers(), Witness()
    gateway = Gateway({}, settings or Settings(open=True, concurrent=1000))
    around = watched(gateway, home.project, None, Objectives(), None)
    gateway.observers = [*around.observers, witness]
    follower = Follower(home.project, gateway, speakers)
    server = uvicorn.Server(config(build_app(gateway, around.routers), gateway.settings))

    async def work(taken: socket.socket) -> None:
        gateway.models = await follower.opening({NAME: str(home.project.folder / typed)} if typed else {})
        try:
            async with follower:
                await server.serve(sockets=[taken])
        finally:
            for model in gateway.models.values():
                await model.engine.close()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        follower.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        thread = threading.Thread(target=lambda: asyncio.run(work(taken)))
        thread.start()
        try:
            until(lambda: server.started and followers(home.project), 60)
            running = Running(home, follower.url, gateway, speakers, witness)
            with running.client:
                yield running
        finally:
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()
    assert not any(engine.started for engine in speakers.opened)
