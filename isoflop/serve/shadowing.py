"""Shadow traffic: what a model was asked is asked of another too, whose answer nobody gets.

The copy is sent once the answer is whole: it takes no slot from it, cannot delay it nor make it fail, and is
sent in vain to nobody who left. It goes through the same masks and limits, and counts for no key.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from isoflop.serve.answering import Answering
from isoflop.serve.calls import SHADOW, Call, Observer
from isoflop.serve.errors import described

if TYPE_CHECKING:
    from isoflop.serve.gateway import Beside, Model
    from isoflop.serve.protocol import Engine

Made = Callable[[Call, "Model", Any], Answering]  # the answer of an engine to what the client asked

SAME, DIFFERS, ANSWERED, FAILED, DROPPED = "same", "differs", "answered", "failed", "dropped"
RESULTS = (SAME, DIFFERS, ANSWERED, FAILED, DROPPED)  # `answered`: where chance, or no words, decide


class Running(NamedTuple):
    engine: Engine
    task: asyncio.Task[None]


class Shadowing:
    """`observers` hear of the copies' ends, as calls of the role shadow; `listeners` what came of each."""

    def __init__(self) -> None:
        self.observers: Sequence[Observer] = ()
        self.listeners: Sequence[Callable[[str, str], None]] = ()  # of a model's name, one of RESULTS
        self._running: list[Running] = []

    def copy(self, to: Beside, call: Call, made: Made) -> None:
        """Send what a call asked to the shadow; not where that is busy: it has no queue."""
        engine = to.model.engine
        if sum(one.engine is engine for one in self._running) >= engine.slots:
            self._tell(call.model, DROPPED)
            return
        running = Running(engine, asyncio.create_task(self._copied(to.model, call, made)))
        self._running.append(running)
        running.task.add_done_callback(lambda _: self._running.remove(running))

    async def end(self, engine: Engine) -> None:
        """Give up what the engine is asked."""
        tasks = [one.task for one in self._running if one.engine is engine]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _copied(self, model: Model, main: Call, made: Made) -> None:
        call = Call(
            main.path, key=main.key, id=f"{main.id}-shadow", route=main.route, model=main.model,
            model_hash=model.hash, engine=model.engine.name, role=SHADOW, compared=main.compared,
        )  # fmt: skip
        with suppress(asyncio.CancelledError):  # the shadow has ended: there is nobody to tell
            try:
                await made(call, model, model.engine).work(_nowhere)
                call.status = 200
            except Exception as error:  # of any engine: it is the shadow's alone
                found = described(error)
                call.status, call.error = found.status, found.code or FAILED
            call.ended = time.monotonic()
            self._tell(call.model, _result(call, main))
            call.asked, call.answered = [], {}  # thrown away
            for observer in self.observers:
                observer.ended(call)

    def _tell(self, name: str, result: str) -> None:
        for tell in self.listeners:
            tell(name, result)


def _result(call: Call, main: Call) -> str:
    if call.error:
        return FAILED
    if not main.compared:
        return ANSWERED
    return SAME if call.answered == main.answered else DIFFERS


async def _nowhere(message: Any) -> None: ...
