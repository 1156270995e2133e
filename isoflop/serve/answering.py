"""Answers that end with whoever asked for them: when the client leaves, or time is up, work is cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from isoflop.serve.calls import DISCONNECTED, Call
from isoflop.serve.errors import described

T = TypeVar("T")


class Answering(Response):
    """Answers by `work(send)`, which is cancelled when the client leaves; `after` a whole answer is more."""

    def __init__(self, call: Call, work: Callable[[Send], Coroutine[Any, Any, None]]) -> None:
        super().__init__()
        self.call, self.work = call, work
        self.after: Callable[[], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self.work(send))
        gone = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.call.error = DISCONNECTED
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.wait((work, gone))
        if not work.cancelled() and (error := work.exception()) is not None:
            raise described(error) if isinstance(error, Exception) else error
        if self.after is not None and not self.call.error:
            self.after()


def answered(call: Call, seconds: float, made: Callable[[], Awaitable[Response]]) -> Answering:
    """The answer that `made` gives, which may take so long."""

    async def work(send: Send) -> None:
        async with asyncio.timeout(seconds):
            response = await made()
        await sent(response, send)

    return Answering(call, work)


async def sent(response: Response, send: Send) -> None:
    """Send an answer that is whole."""
    start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
    await send(start)
    await send({"type": "http.response.body", "body": response.body})


async def _left(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Together(Generic[T]):
    """Reads several sources at the same time, for an `async with` that cancels them at its end."""

    def __init__(self, sources: Sequence[AsyncIterator[T]]) -> None:
        self.sources = sources

    async def __aenter__(self) -> Self:
        self.ready: list[tuple[int, T]] = []
        self.came = asyncio.Event()
        self.failed: Exception | None = None
        self.running = len(self.sources)
        self.tasks = [asyncio.create_task(self._read(i, each)) for i, each in enumerate(self.sources)]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)

    def end(self, number: int) -> None:
        """Read no more of a source."""
        self.tasks[number].cancel()

    async def batch(self) -> list[tuple[int, T]]:
        """What has come since the last, with the numbers of its sources; empty when all have ended.

        Raises what a source raised, once what came before has been taken.
        """
        while not self.ready and self.running and self.failed is None:
            self.came.clear()
            await self.came.wait()
        if not self.ready and self.failed is not None:
            raise self.failed
        taken, self.ready = self.ready, []
        return taken

    async def _read(self, number: int, source: Any) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    self.ready.append((number, item))
                    self.came.set()
        except Exception as error:
            self.failed = error
        finally:
            self.running -= 1
            self.came.set()
