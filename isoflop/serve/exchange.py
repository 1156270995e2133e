"""One request and its answer on their way through the guard: headers, sizes, times."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from isoflop.serve.calls import Call
from isoflop.serve.errors import failure
from isoflop.serve.protocol import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# Of every answer, whatever the app says: none is kept by a cache, framed, guessed at or told to other sites,
# and a page has what this server gives it. No header lets pages of other sites read anything.
SECURITY: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy",
     b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]  # fmt: skip
OURS = frozenset(name for name, _ in SECURITY)
GONE: Message = {"type": "http.disconnect"}


class Refusal(RequestError):
    """What the guard answers in the app's place."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        kind: str | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, status=status, code=code)
        self.kind = kind
        self.headers: Headers = [(name.encode(), value.encode()) for name, value in headers]

    def body(self) -> bytes:
        """In OpenAI's shape."""
        told = failure(self.message, status=self.status, code=self.code, param=self.param, kind=self.kind)
        return json.dumps(told).encode()


class Exchange:
    """`receive` and `send` of one request, within its limits. Nothing is held back or copied."""

    def __init__(
        self, scope: Message, receive: Receive, send: Send, call: Call, *, most: int, seconds: float
    ) -> None:
        self.scope, self.call = scope, call
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.told: Headers = []  # headers of the answer, besides the same for all
        self._receive, self._send = receive, send
        self._most, self._seconds = most, seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._size, self._announced = 0, self.headers.get(b"content-length", b"0")
        self._unread = self._announced != b"0" or b"transfer-encoding" in self.headers
        self.over = False  # refused, or the client has gone: the app has nobody to answer
        self.error = ""  # which is why, whatever the app made of it
        self._begun = self._complete = False

    def check_announced(self) -> None:
        """Raises Refusal for a body that is too large by its own account."""
        if self._announced.isdigit() and int(self._announced) > self._most:
            raise self._too_large()

    async def receive(self) -> Message:
        """The next part of the request. One that breaks a limit is answered here, and gone for the app."""
        if self.over:
            return GONE
        try:
            async with asyncio.timeout_at(self._deadline if self._unread else None):
                message = await self._receive()
        except TimeoutError:
            await self.refuse(
                Refusal(408, "request_timeout", f"the request took over {self._seconds:g} s to arrive")
            )
            return GONE
        if message["type"] == "http.disconnect":
            self.over = True
            if not self._complete:
                self.error = self.error or "disconnected"
            return message
        self._size += len(message.get("body", b""))
        if self._size > self._most:
            await self.refuse(self._too_large())
            return GONE
        self._unread = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Some of the app's answer."""
        if self.over:
            return
        if message["type"] == "http.response.start":
            self._begun, self.call.status = True, message["status"]
            message = {**message, "headers": self._with_ours(message.get("headers", ()))}
        elif not message.get("more_body", False):
            self._complete = True
        await self._send(message)

    async def refuse(self, why: Refusal) -> None:
        """Answer in the app's place. Where the app has begun to, the server finds its answer unfinished, and
        closes the connection."""
        self.error = why.code or ""
        if self._begun or self.over:
            return
        self.over, self.call.status, body = True, why.status, why.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *why.headers,
        ]
        await self._send(
            {"type": "http.response.start", "status": why.status, "headers": self._with_ours(headers)}
        )
        await self._send({"type": "http.response.body", "body": body})

    def _with_ours(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        # What has not been read of a request would be read as the next one.
        end = [(b"connection", b"close")] if self._unread else []
        kept = [pair for pair in headers if pair[0].lower() not in OURS]
        hash = self.call.model_hash
        by = [(b"x-model-hash", hash.encode())] if hash else []
        return [*kept, *SECURITY, (b"x-request-id", self.call.id.encode()), *by, *self.told, *end]

    def _too_large(self) -> Refusal:
        return Refusal(413, "request_too_large", f"the request is larger than {self._most:,} bytes")
