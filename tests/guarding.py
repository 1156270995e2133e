"""A guarded app for tests: what asks it, with and without a socket, and what hears of its calls."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from hearing import until
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router

from isoflop.serve.calls import Call
from isoflop.serve.connections import bounded
from isoflop.serve.exchange import App, Message
from isoflop.serve.guard import Guard
from isoflop.serve.keys import Keys
from isoflop.serve.settings import Settings

SECRET = "my diary says"  # is in what a client sends, and shall be in nothing that is kept


async def plain(request: Request) -> PlainTextResponse:
    return PlainTextResponse("the app's own words", headers={"x-app": "yes", "cache-control": "public"})


async def size(request: Request) -> JSONResponse:
    """Of the body; as many tokens as bytes."""
    call: Call = request.state.call
    call.prompt_tokens = len(await request.body())
    return JSONResponse({"bytes": call.prompt_tokens})


async def fails(request: Request) -> JSONResponse:
    raise KeyError(f"{SECRET} {(await request.body()).decode()}")


async def fails_late(request: Request) -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        yield "one"
        raise ExceptionGroup("both", [KeyError(SECRET)])

    return StreamingResponse(pieces())


def example() -> Router:
    """Routes of every kind that a gateway has."""
    return Router(
        routes=[
            Route("/health/live", plain),
            Route("/health/ready", plain),
            Route("/", plain),
            Route("/metrics", plain),
            Route("/v1/models", plain),
            Route("/v1/models/{name:path}", plain),
            Route("/v1/size", size, methods=["POST"]),
            Route("/v1/audio/size", size, methods=["POST"]),
            Route("/v1/fails", fails, methods=["POST"]),
            Route("/v1/fails-late", fails_late, methods=["POST"]),
            Mount("/admin", routes=[Route("/models", plain, methods=["GET", "PUT", "DELETE"])]),
        ]
    )


class Heard:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.begun: list[Call] = []
        self.over: list[Call] = []

    def began(self, call: Call) -> None:
        self.begun.append(call)

    def ended(self, call: Call) -> None:
        assert call.ended is not None
        self.over.append(call)


class Answer:
    """What an app sent."""

    def __init__(self, messages: Sequence[Message]) -> None:
        start = messages[0]
        self.status: int = start["status"]
        self.pairs = [(n.decode().lower(), v.decode()) for n, v in start["headers"]]
        self.headers = dict(self.pairs)
        self.body = b"".join(m.get("body", b"") for m in messages[1:])
        self.whole = not messages[-1].get("more_body", False) and len(messages) > 1

    @property
    def error(self) -> dict[str, Any]:
        """What OpenAI's clients read."""
        found: dict[str, Any] = json.loads(self.body)["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found


async def ask(
    app: App,
    path: str,
    *,
    key: str | None = None,
    method: str = "GET",
    body: Sequence[bytes] = (),
    headers: Mapping[str, str] | None = None,
    heard: Callable[[Message], object] = lambda _: None,
) -> Answer:
    """Call an app as a server does; `heard` is told each message as it comes."""
    named = {"host": "localhost", **({"authorization": f"Bearer {key}"} if key else {}), **(headers or {})}
    if body and "content-length" not in named:
        named["transfer-encoding"] = "chunked"
    parts = [{"type": "http.request", "body": b, "more_body": True} for b in body[:-1]]
    parts.append({"type": "http.request", "body": body[-1] if body else b"", "more_body": False})
    sent: list[Message] = []

    async def receive() -> Message:
        if parts:
            return parts.pop(0)
        return {"type": "http.disconnect"} if sent and Answer(sent).whole else await asyncio.Future()

    async def send(message: Message) -> None:
        sent.append(message)
        heard(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "state": {},
        "headers": [(n.encode(), v.encode()) for n, v in named.items()],
    }  # fmt: skip
    await app(scope, receive, send)
    return Answer(sent)


def guarded(
    keys: Keys | None = None, settings: Settings | None = None, observers: Sequence[Any] = (), app: Any = None
) -> Guard:
    """Open without keys."""
    return Guard(app or example(), settings or Settings(open=keys is None), keys, observers)


@contextmanager
def serving(app: Any, settings: Settings, loop: str = "auto") -> Iterator[tuple[str, int]]:
    """The app behind uvicorn in a thread; the address to connect to."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=bounded(settings), loop=loop, ws="none", log_level="critical", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    until(lambda: server.started, 30)
    try:
        yield listening.getsockname()
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
