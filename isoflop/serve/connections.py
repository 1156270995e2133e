"""Clients that hold a connection without using it.

uvicorn waits without end for a request's first line and headers, of any size, and for a client to read what
was sent to it. Here all three have an end; the guard has one for the body.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, ClassVar

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from isoflop.serve.settings import Settings

HEAD_BYTES = 65_536  # of a request's first line and headers
UNSENT_BYTES = 16_384  # that the system holds for a client


def bounded(settings: Settings) -> type[asyncio.Protocol]:
    """What `uvicorn.Config(http=)` takes."""

    class Bounded(Connection):
        seconds = settings.read_seconds

    return Bounded


class Connection(asyncio.Protocol):
    """uvicorn's own, and two clocks."""

    seconds: ClassVar[float]

    def __init__(self, **given: Any) -> None:
        uvicorns: Any = AutoHTTPProtocol
        self.inner = uvicorns(**given)
        self.head, self.reader = (
            Clock(),
            Clock(),
        )  # running while a head is to come, and while bytes wait to be read
        self.head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.inner.connection_made(transport)  # first: TLS may pause it at once
        # The system takes little ahead of the client, and what it does not take is waited for, however
        # little: so whether the client reads can be seen. A limit of 0 would never let TLS go on.
        transport.set_write_buffer_limits(1)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux and macOS
            option = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES
            transport.get_extra_info("socket").setsockopt(*option)
        self.head.start(self.seconds, transport.abort)

    def data_received(self, data: bytes) -> None:
        before = self.inner.cycle
        self.inner.data_received(data)
        if self.inner.cycle is not before:  # the head was complete
            self.head_bytes = 0
            self.head.stop()
        elif before is None or before.response_complete:
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES:
                self.transport.abort()
            elif not self.head.running:
                self.head.start(self.seconds, self.transport.abort)

    def eof_received(self) -> None:
        self.inner.eof_received()

    def pause_writing(self) -> None:
        self.inner.pause_writing()
        self.reader.start(self.seconds, self._look_at_reader, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self.reader.stop()
        self.inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self.head.stop()
        self.reader.stop()
        self.inner.connection_lost(exc)

    def _look_at_reader(self, waiting: int) -> None:
        """The client has had time to take some of the bytes that wait for it."""
        now = self.transport.get_write_buffer_size()
        if now < waiting:
            self.reader.start(self.seconds, self._look_at_reader, now)
        else:
            self.transport.abort()


class Clock:
    """Calls what it was started with, unless it is stopped before."""

    def __init__(self) -> None:
        self._handle: asyncio.TimerHandle | None = None

    @property
    def running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, then: Callable[..., None], *given: int) -> None:
        self._handle = asyncio.get_running_loop().call_later(seconds, then, *given)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
