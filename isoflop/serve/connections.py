"""Clients that hold a connection without using it.

uvicorn waits without end for a request's first line and headers, of any size, and for a client to read what
was sent to it. Here all three have an end; the guard has one for the body. Where a body is answered before it
is read, uvicorn closes the connection at once, and a client that is still sending finds it reset: here it is
heard out for a while, so that it comes to read its answer.
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
HEARD_OUT_BYTES = 64_000_000  # of a body that is answered already


def bounded(settings: Settings) -> type[asyncio.Protocol]:
    """What `uvicorn.Config(http=)` takes."""

    class Bounded(Connection):
        seconds = settings.read_seconds

    return Bounded


class Connection(asyncio.Protocol):
    """uvicorn's own, and three clocks."""

    seconds: ClassVar[float]

    def __init__(self, **given: Any) -> None:
        uvicorns: Any = AutoHTTPProtocol
        self.inner = uvicorns(**given)
        # Running while a head is to come, while bytes wait to be read, and while a client is heard out.
        self.head, self.reader, self.parting = Clock(), Clock(), Clock()
        self.head_bytes = self.heard_bytes = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.inner.connection_made(Parting(transport, self))
        self.head.start(self.seconds, transport.abort)
        # The system takes little ahead of the client, and what it does not take is waited for, however
        # little: so whether the client reads can be seen.
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # Linux and macOS
            option = socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES
            transport.get_extra_info("socket").setsockopt(*option)
        transport.set_write_buffer_limits(1)

    def data_received(self, data: bytes) -> None:
        if self.parting.running:
            self.heard_bytes += len(data)
            if self.heard_bytes > HEARD_OUT_BYTES:
                self.transport.close()
            return
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
        self.parting.stop()
        self.inner.connection_lost(exc)

    def close(self) -> None:
        """At once, unless a client that has its whole answer may still be sending."""
        cycle, transport = self.inner.cycle, self.transport
        sends = cycle is not None and cycle.more_body and cycle.response_complete
        if not sends or self.parting.running or transport.is_closing():
            transport.close()
            return
        self.parting.start(self.seconds, transport.close)
        if transport.can_write_eof():  # not by TLS
            transport.write_eof()
        transport.resume_reading()

    def _look_at_reader(self, waiting: int) -> None:
        """The client has had time to take some of the bytes that wait for it."""
        now = self.transport.get_write_buffer_size()
        if now < waiting:
            self.reader.start(self.seconds, self._look_at_reader, now)
        else:
            self.transport.abort()


class Parting:
    """A transport that its connection closes."""

    def __init__(self, transport: Any, connection: Connection) -> None:
        self.transport, self.connection = transport, connection
        self.write, self.close = transport.write, connection.close

    def is_closing(self) -> bool:
        closing: bool = self.connection.parting.running or self.transport.is_closing()
        return closing

    def __getattr__(self, name: str) -> Any:
        return getattr(self.transport, name)


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
