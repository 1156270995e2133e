"""Bad clients on real sockets: slow ones, large ones, and those that do not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from guarding import Heard, example, guarded, serving
from hearing import until
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, Router
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from isoflop.serve import connections
from isoflop.serve.guard import Guard
from isoflop.serve.keys import Keys
from isoflop.serve.settings import Settings
from isoflop.store import Project

HASTY = Settings(open=True, read_seconds=0.3, body_bytes=100_000)
PIECE = b"x" * 65_536
Address = tuple[str, int]


class Streams:
    """An app whose answer has this many pieces, and how its streams ended."""

    def __init__(self, pieces: int) -> None:
        self.pieces, self.sent, self.closed = pieces, 0, 0
        self.app = Router([Route("/v1/stream", self.stream), *example().routes])

    async def stream(self, request: Request) -> StreamingResponse:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                for _ in range(self.pieces):
                    self.sent += 1
                    await asyncio.sleep(0)
                    yield PIECE
            finally:
                self.closed += 1

        return StreamingResponse(pieces())


class Served:
    """A server, and what it heard of."""

    def __init__(self, guard: Guard, heard: Heard, address: Address) -> None:
        self.guard, self.heard, self.address = guard, heard, address

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, 30)


def small_window(address: Address) -> socket.socket:
    """A client whose system takes little before it reads."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(30)
    client.connect(address)
    return client


@pytest.fixture(params=[(HttpToolsProtocol, "auto"), (H11Protocol, "asyncio")])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """Over each of uvicorn's parsers, and on uvloop where it is installed."""
    parser, loop = request.param
    monkeypatch.setattr(connections, "AutoHTTPProtocol", parser)
    heard = Heard()
    guard = guarded(settings=HASTY, observers=[heard])
    with serving(guard, HASTY, loop) as address:
        yield Served(guard, heard, address)


def request(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def rest(client: socket.socket) -> bytes:
    """All that comes until the server ends the connection, which it does."""
    found = b""
    try:
        while data := client.recv(65_536):
            found += data
    except ConnectionResetError:
        pass
    return found


def drip(client: socket.socket, data: bytes, pause: float = 0.02) -> None:
    """Send a byte at a time, for as long as the server takes them."""
    try:
        for i in range(len(data)):
            client.sendall(data[i : i + 1])
            time.sleep(pause)
    except (BrokenPipeError, ConnectionResetError):
        return
    raise AssertionError("the server took everything")


def test_a_head_that_does_not_come(served: Served) -> None:
    with served.connect() as silent, served.connect() as slow, served.connect() as second:
        second.sendall(request("/v1/models"))
        assert second.recv(65_536).startswith(b"HTTP/1.1 200")
        drip(slow, request("/v1/models", "X-Long: " + "x" * 1000))
        assert rest(slow) == rest(silent) == b""
        drip(second, request("/v1/models", "X-Long: " + "x" * 1000))
    with served.connect() as good:  # the others are served meanwhile
        good.sendall(request("/v1/models", "Connection: close"))
        assert rest(good).startswith(b"HTTP/1.1 200")


def test_a_head_without_end(served: Served) -> None:
    with served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\n")
        try:
            for i in range(10_000):
                client.sendall(b"X-%d: %s\r\n" % (i, b"x" * 1000))
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            raise AssertionError("the server took 10 MB of headers")
    assert served.heard.over == []


def test_a_connection_serves_many_requests(served: Served) -> None:
    with served.connect() as client:
        for _ in range(3):
            client.sendall(request("/v1/size", "Content-Length: 3", method="POST") + b"abc")
            answer = b""
            while not answer.endswith(b'{"bytes":3}'):
                answer += client.recv(65_536)
        client.sendall(request("/v1/models") * 2 + request("/v1/models", "Connection: close"))
        assert rest(client).count(b"the app's own words") == 3


def test_a_body_that_does_not_come(served: Served) -> None:
    with served.connect() as client:
        client.sendall(request("/v1/size", "Content-Length: 1000", method="POST"))
        drip(client, b"x" * 1000)
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.rpartition(b"\r\n")[2])["error"]["code"] == "request_timeout"
    until(lambda: served.heard.over)
    assert [(c.status, c.error) for c in served.heard.over] == [(408, "request_timeout")]
    assert served.guard.running == 0


def test_a_gigabyte_that_is_announced(served: Served) -> None:
    with served.connect() as client:
        client.sendall(
            request("/v1/size", "Content-Length: 1000000000", "Expect: 100-continue", method="POST")
        )
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 413")  # and not 100
    assert b"100,000 bytes" in answer
    assert b"connection: close" in answer


@pytest.fixture(params=[(HttpToolsProtocol, "auto"), (H11Protocol, "asyncio")])
def patient(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """A server with a limit of 1 MB that has time."""
    parser, loop = request.param
    monkeypatch.setattr(connections, "AutoHTTPProtocol", parser)
    settings = Settings(open=True, read_seconds=60)
    with serving(guarded(settings=settings), settings, loop) as address:
        yield address


@pytest.mark.parametrize("announced", [True, False])
def test_a_client_that_sends_too_much_reads_why(patient: Address, announced: bool) -> None:
    with socket.create_connection(patient, 60) as client:
        header = "Content-Length: 50000000" if announced else "Transfer-Encoding: chunked"
        client.sendall(request("/v1/size", header, method="POST"))
        client.sendall(b"x" * 50_000_000 if announced else (b"f4240\r\n%s\r\n" % (b"x" * 10**6)) * 50)
        answer = rest(client)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer
    assert json.loads(answer.rpartition(b"\r\n")[2])["error"]["code"] == "request_too_large"


def test_a_client_that_is_not_heard_out_to_the_end(patient: Address) -> None:
    with socket.create_connection(patient, 60) as client:
        client.sendall(request("/v1/size", "Content-Length: 1000000000", method="POST"))
        sent = 0
        try:
            while sent < 10**9:
                client.sendall(PIECE)
                sent += len(PIECE)
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert sent < connections.HEARD_OUT_BYTES + 20_000_000  # what the systems' buffers hold


def test_a_gigabyte_in_chunks(served: Served) -> None:
    sent = 0
    with served.connect() as client:
        client.sendall(request("/v1/size", "Transfer-Encoding: chunked", method="POST"))
        try:
            while sent < 10**9:
                client.sendall(b"%x\r\n%s\r\n" % (len(PIECE), PIECE))
                sent += len(PIECE)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert rest(client)[:12] in (b"HTTP/1.1 413", b"")  # what was not read yet resets the connection
    assert sent < connections.HEARD_OUT_BYTES + 20_000_000  # what the system's buffers hold
    until(lambda: served.heard.over)
    assert [(c.status, c.error) for c in served.heard.over] == [(413, "request_too_large")]


def test_a_client_that_leaves_in_mid_body(served: Served) -> None:
    with served.connect() as client:
        client.sendall(request("/v1/size", "Content-Length: 1000", method="POST") + b"x")
        until(lambda: served.guard.running)
    until(lambda: served.heard.over)
    assert [c.error for c in served.heard.over] == ["disconnected"]


@pytest.mark.parametrize("loop", ["auto", "asyncio"])
def test_a_client_that_never_reads(loop: str) -> None:
    heard, streams = Heard(), Streams(10**9)
    with serving(guarded(settings=HASTY, observers=[heard], app=streams.app), HASTY, loop) as address:
        with small_window(address) as client:
            client.sendall(request("/v1/stream"))
            until(lambda: heard.over)
        assert streams.closed == 1
        assert [c.error for c in heard.over] == ["disconnected"]
        assert streams.sent * len(PIECE) < 10_000_000  # what the systems' buffers hold


def test_a_client_that_reads_slowly_gets_everything() -> None:
    heard, streams = Heard(), Streams(40)
    with serving(guarded(settings=HASTY, observers=[heard], app=streams.app), HASTY) as address:
        with small_window(address) as client:
            client.sendall(request("/v1/stream", "Connection: close"))
            found, began = 0, time.monotonic()
            while data := client.recv(65_536):
                found += data.count(b"x")
                if time.monotonic() - began < 4 * HASTY.read_seconds:
                    time.sleep(0.02)
        assert found >= 40 * len(PIECE)
        until(lambda: heard.over)
        assert [c.error for c in heard.over] == [""]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A server that wants keys."""
    keys = Keys(Project(tmp_path_factory.mktemp("keys") / "p"))
    with serving(guarded(keys), HASTY) as address:
        yield address


@pytest.mark.parametrize(
    "target",
    ["/v1/models", "//v1/models", "/health/live/../../v1/models", "/health/live/%2e%2e/%2E%2E/v1/models",
     "/health%2flive/..", "/health/live?x=/../v1/models", "/health/live/", "/health/live%00", "/HEALTH/LIVE",
     "http://localhost/v1/models", "http://localhost/health/live", "*", "/%76%31/models", "/health/live;/v1",
     "/v1/models#/health/live", "\\health\\live", "/health/live%0d%0aX: y"],
)  # fmt: skip
def test_however_a_socket_asks(target: str, closed: Address) -> None:
    """What answers is the guard, or the server's own 400; the app does at /health/live alone."""
    live = target.split("?")[0] in ("/health/live", "http://localhost/health/live")
    for method in ("GET", "OPTIONS", "POST"):
        with socket.create_connection(closed, 30) as client:
            client.sendall(request(target, "Connection: close", method=method))
            answer = rest(client)
        status = answer.split()[1]
        assert status in ((b"200", b"405") if live else (b"400", b"401")), answer
        assert (b"x-app" in answer) == (status == b"200")
