"""In a server: follow what is deployed. The new engine is opened beside the one that serves, then all at once
calls go to it; those in flight keep the old one, which is closed when the last of them is over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self, TypeVar

from isoflop.errors import IsoflopError, ServeError
from isoflop.serve import gateway as held
from isoflop.serve.calls import CANARY, MAIN, SHADOW
from isoflop.serve.deploying.records import (
    BEAT,
    KIND,
    SERVER,
    Beside,
    Deployment,
    Placed,
    Server,
    Standing,
    place,
    same,
)
from isoflop.serve.gateway import ABILITIES, Gateway, Model
from isoflop.serve.opening import Opens, closed, key_variable, opened_model, opened_models
from isoflop.serve.protocol import EngineError, RequestError
from isoflop.served import now
from isoflop.store import Project

log = logging.getLogger(__name__)
T = TypeVar("T")

LOOK = 1.0  # seconds after which the ledger is read again
RETRY = 60.0  # seconds after which what failed is tried again
GONE = 86_400.0  # seconds after which a silent server's record is forgotten


class Follower:
    """While it is entered, the gateway's models are what the project's ledger says.

    It follows the names that `opening` was given, or all that are deployed; the server says what it does in
    a record of its own. Where the ledger cannot be read, or a new model cannot be opened, what serves serves
    on.
    """

    def __init__(self, project: Project, gateway: Gateway, how: Opens) -> None:
        self._project, self._gateway, self._how = project, gateway, how
        self.url = ""
        self._id, self._began = f"server-{secrets.token_hex(8)}", now()
        self._failed_at: dict[str, float] = {}  # by name
        self._retiring: dict[asyncio.Task[None], Model] = {}
        self._news = asyncio.Event()
        self._out_of_reach = False
        # A thread of its own: the event loop's may all be computing answers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="deployment")

    async def opening(self, typed: Mapping[str, str]) -> dict[str, Model]:
        """The models to begin with: of each name what is deployed, else what was typed for it.

        Raises ServeError where nothing was typed and nothing is deployed, and as `opened_model` does.
        """
        known = deployed(self._project)
        served = {name: known[name].main for name in typed or known if name in known}
        models: dict[str, Model] = {}
        try:
            for name, placed in served.items():
                models[name] = await self._open(name, placed)
            others = {name: where for name, where in typed.items() if name not in known}
            models |= await opened_models(others, self._project, self._how)
        except BaseException:
            await closed(models)
            raise
        for name, model in models.items():
            deployment = known.get(name)
            token = "" if deployment is None or deployment.canary or deployment.shadow else deployment.token
            version = deployment.version if deployment and token else 0
            self._gateway.standing[name] = Standing(version=version, token=token, main=_placed(model))
        return {name: models[name] for name in typed or known}

    async def __aenter__(self) -> Self:
        await self._aside(self._forget_silent)
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._tell())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (*self._tasks, *self._retiring):
            task.cancel()
        await asyncio.wait((*self._tasks, *self._retiring))
        beside = (*self._gateway.canaries.values(), *self._gateway.shadows.values())
        for model in (*self._retiring.values(), *(one.model for one in beside)):
            await self._close(model)
        with suppress(IsoflopError):  # then it is silent, and soon held to be gone
            await self._aside(lambda: self._project.delete(SERVER, self._id))
        self._thread.shutdown()

    # -- the ledger ---------------------------------------------------------------------------------------

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _reached(self, work: Callable[[], T]) -> T | None:
        """What the ledger says; None: it cannot be reached, which is told once."""
        try:
            found = await self._aside(work)
        except IsoflopError as error:
            if not self._out_of_reach:
                log.error("what is deployed cannot be read, and serves on as it is: %s", error.message)
            self._out_of_reach = True
            return None
        self._out_of_reach = False
        return found

    def _forget_silent(self) -> None:
        for server in self._project.all(SERVER, Server):
            if server.silence > GONE:
                self._project.delete(SERVER, server.id)

    async def _follow(self) -> None:
        while True:
            known = await self._reached(lambda: deployed(self._project))
            if known is not None:
                for name in self._gateway.models:
                    await self._heed(name, known.get(name))
            await asyncio.sleep(LOOK)

    async def _tell(self) -> None:
        """Say that it lives, and at once what has changed."""
        while True:
            self._news.clear()
            said = Server(
                id=self._id, url=self.url, host=socket.gethostname(), process=os.getpid(), began=self._began,
                seen=now(), names=dict(self._gateway.standing),
            )  # fmt: skip
            await self._reached(lambda said=said: self._project.put(SERVER, said))  # type: ignore[misc]
            with suppress(TimeoutError):
                async with asyncio.timeout(BEAT):
                    await self._news.wait()

    # -- changes ------------------------------------------------------------------------------------------

    async def _heed(self, name: str, wanted: Deployment | None) -> None:
        """Do what is deployed under a name, once; what failed is tried again after a while."""
        before = self._gateway.standing[name]
        if wanted is None:
            if before.token:  # it was taken back
                update = {"version": 0, "token": "", "state": "serving", "why": ""}
                self._stand(name, before.model_copy(update=update))
            return
        again = before.state == "failed" and time.monotonic() - self._failed_at[name] > RETRY
        if before.token == wanted.token and not again:
            return
        update = {"version": wanted.version, "token": wanted.token, "why": ""}
        self._stand(name, before.model_copy(update=update | {"state": "opening"}))
        try:
            await self._swap(wanted)
        except Exception as error:  # of any engine: what serves serves on
            self._failed_at[name] = time.monotonic()
            why = _said(error)
            log.error("%s stays as it was, version %d is not served: %s", name, wanted.version, why)
            self._stand(name, before.model_copy(update=update | {"state": "failed", "why": why}))
            return
        log.info("%s: version %d, %s", name, wanted.version, wanted.change)
        self._stand(name, Standing(
            version=wanted.version, token=wanted.token, main=wanted.main, canary=wanted.canary,
            shadow=wanted.shadow,
        ))  # fmt: skip

    def _stand(self, name: str, standing: Standing) -> None:
        self._gateway.standing[name] = standing
        self._news.set()

    async def _swap(self, wanted: Deployment) -> None:
        """All of a deployment or, where one of its models cannot be opened, nothing of it."""
        name, gateway = wanted.id, self._gateway
        roles: dict[str, Placed] = {MAIN: wanted.main}
        roles |= {CANARY: wanted.canary.artifact} if wanted.canary else {}
        roles |= {SHADOW: wanted.shadow.artifact} if wanted.shadow else {}
        left, fresh, models = self._open_now(name), list[Model](), dict[str, Model]()
        try:
            for role, placed in roles.items():
                kept = next((model for model in left if same(_placed(model), placed)), None)
                if kept is None:
                    kept = await self._open(name, placed)
                    fresh.append(kept)
                else:
                    left.remove(kept)
                models[role] = kept
                _check_able(kept, gateway.models[name])
        except BaseException:
            for model in fresh:
                await model.engine.close()
            raise
        gateway.models = {**gateway.models, name: models[MAIN]}
        gateway.canaries = _with(gateway.canaries, name, models.get(CANARY), wanted.canary)
        gateway.shadows = _with(gateway.shadows, name, models.get(SHADOW), wanted.shadow)
        for model in left:
            self._retire(model)

    def _open_now(self, name: str) -> list[Model]:
        gateway = self._gateway
        beside = (gateway.canaries.get(name), gateway.shadows.get(name))
        return [gateway.models[name], *(one.model for one in beside if one is not None)]

    async def _open(self, name: str, placed: Placed) -> Model:
        where = place(self._project, placed)
        variable = key_variable(name, ())  # of this name alone: no other server shall see its key
        return await opened_model(name, where, self._project, self._how, variable, hash=placed.hash)

    def _retire(self, model: Model) -> None:
        """Close it when its last call is over, at the latest after the seconds that answers have to end."""
        task = asyncio.create_task(self._retired(model))
        self._retiring[task] = model
        task.add_done_callback(lambda done: None if done.cancelled() else self._forget(done))

    def _forget(self, done: asyncio.Task[None]) -> None:
        model = self._retiring.pop(done)
        if (error := done.exception()) is not None:
            log.error("the engine of %s before did not close: %s", model.name, _said(error))

    async def _retired(self, model: Model) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._gateway.settings.drain_seconds):
                await self._gateway.in_use.free(model.engine)
        await self._close(model)

    async def _close(self, model: Model) -> None:
        await self._gateway.shadowing.end(model.engine)
        await model.engine.close()


def deployed(project: Project) -> dict[str, Deployment]:
    """What is deployed, by name."""
    return {known.id: known for known in project.all(KIND, Deployment)}


def _placed(model: Model) -> Placed:
    return Placed(
        path=model.path, hash=model.hash, bytes=model.bytes, bits_per_byte=model.bits_per_byte, since=now()
    )


def _with(
    beside: dict[str, held.Beside], name: str, model: Model | None, wanted: Beside | None
) -> dict[str, held.Beside]:
    others = {other: one for other, one in beside.items() if other != name}
    return others if model is None or wanted is None else others | {name: held.Beside(model, wanted.share)}


def _check_able(model: Model, serves: Model) -> None:
    """Raises ServeError for one that cannot do all that clients ask of the one that serves."""
    for ability, cannot in ABILITIES.items():
        if isinstance(serves.engine, ability) and not isinstance(model.engine, ability):
            raise ServeError(
                f"{model.path} {cannot}, as {serves.name} does", hint="deploy it under a name of its own"
            )


def _said(error: BaseException) -> str:
    """In a sentence."""
    if isinstance(error, IsoflopError | RequestError):
        return error.message
    if isinstance(error, EngineError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]
