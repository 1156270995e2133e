"""An answer from a server at a socket of this machine, as it comes.

All that aiohttp does for a request takes longer than a small model does for a token.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from httptools import HttpParserError, HttpResponseParser

BUSY_SECONDS = 0.002  # after which to knock again: llama.cpp lets five wait


class Answer(asyncio.Protocol):
    """Of one request, on a connection of its own. `status` is of HTTP, 0 before it is known."""

    def __init__(self) -> None:
        self.status = 0
        self._parser = HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._whole = self._lost = False
        self._came = asyncio.Event()

    async def more(self) -> bytes:
        """What has come since the last; empty at its end. Raises ConnectionError where it is cut."""
        while not (self._parts or self._whole or self._lost):
            self._came.clear()
            await self._came.wait()
        if not self._parts and not self._whole:
            raise ConnectionResetError("an answer was cut")
        found, self._parts = b"".join(self._parts), []
        return found

    async def rest(self) -> bytes:
        """All that is to come."""
        found = b""
        while part := await self.more():
            found += part
        return found

    async def beat(self, seconds: float) -> None:
        """Leave what comes in the socket until a beat of so many seconds ends, for all the same one."""
        self.transport.pause_reading()
        await asyncio.sleep(seconds - asyncio.get_running_loop().time() % seconds)
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self.transport.abort()
        self._came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._came.set()

    # What the parser calls.

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        self._whole = True


@asynccontextmanager
async def answer_at(path: str, request: bytes, seconds: float) -> AsyncIterator[Answer]:
    """The answer to a request at a socket. The connection ends with the block, and with it the generation.

    Raises OSError where nobody takes it within so many seconds.
    """
    async with asyncio.timeout(seconds):
        connected = await _connected(path)
    transport, answer = await asyncio.get_running_loop().create_unix_connection(Answer, sock=connected)
    try:
        transport.write(request)
        yield answer
    finally:
        transport.abort()


async def _connected(path: str) -> socket.socket:
    """At once, or as soon as there is room among those who wait."""
    while True:
        made = socket.socket(socket.AF_UNIX)
        made.setblocking(False)
        try:
            made.connect(path)
        except BlockingIOError:
            made.close()
            await asyncio.sleep(BUSY_SECONDS)
        except BaseException:
            made.close()
            raise
        else:
            return made
