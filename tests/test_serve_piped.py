"""Answers read from a socket: cut ones, wrong ones, a server that is busy; and what is held for a beat."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from isoflop.serve.engines.http import BEAT, HELD_SHARE, Http, beat
from isoflop.serve.engines.piped import answer_at
from isoflop.serve.protocol import EngineError, RequestError

HEAD = b"HTTP/1.1 %s\r\nTransfer-Encoding: chunked\r\n\r\n"
Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(
        prefix="isoflop-"
    ) as folder:  # pytest's are too long for a socket's path
        yield str(Path(folder) / "s.sock")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(number: int) -> bytes:
    return b"data: " + json.dumps({"n": number}).encode() + b"\n\n"


def serves(*sent: bytes) -> Served:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in sent:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
        writer.close()

    return served


async def told(path: str, *sent: bytes) -> list[int]:
    """The numbers of the events that a server's answer has."""
    async with await asyncio.start_unix_server(serves(*sent), path):
        http = Http("http://localhost", "it", key="secret", connections=1, socket=path)
        try:
            return [each["n"] async for part in http.events("/x", {"a": 1}, 9) for each in part]
        finally:
            await http.close()


def test_events_are_whole_however_they_come(path: str) -> None:
    data = chunk(event(1)) + chunk(event(2)[:9]) + chunk(event(2)[9:] + event(3)) + b"0\r\n\r\n"
    parts = [HEAD % b"200 OK", *(data[at : at + 7] for at in range(0, len(data), 7))]
    assert asyncio.run(told(path, *parts)) == [1, 2, 3]


def test_an_answer_without_its_end_is_an_error(path: str) -> None:
    with pytest.raises(EngineError, match="it does not answer"):
        asyncio.run(told(path, HEAD % b"200 OK", chunk(event(1))))
    with pytest.raises(EngineError, match="it does not answer"):
        asyncio.run(told(path, b"no HTTP at all"))


def test_a_refusal_is_told(path: str) -> None:
    why = json.dumps({"error": {"message": "too hot"}}).encode()
    with pytest.raises(RequestError, match="too hot"):
        asyncio.run(told(path, HEAD % b"400 Bad", chunk(why[:9]), chunk(why[9:]) + b"0\r\n\r\n"))


def test_nobody_there_is_an_error(path: str) -> None:
    async def ask() -> None:
        async with answer_at(path, b"", 1.0):
            pass

    with pytest.raises(FileNotFoundError):
        asyncio.run(ask())


def test_who_finds_no_room_waits(path: str) -> None:
    """As many as may wait already do; one of them is let in, and so the next one is."""

    async def ask() -> bytes:
        async with answer_at(path, b"hello", 10.0):
            return (await asyncio.to_thread(listener.accept))[0].recv(5)

    async def main() -> bytes:
        asked = asyncio.create_task(ask())
        await asyncio.sleep(0)  # it has knocked
        listener.accept()[0].close()
        return await asked

    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        assert asyncio.run(main()) == b"hello"


def test_tokens_are_held_for_as_long_as_it_gains() -> None:
    assert beat(1.0, 200, 50) == BEAT
    assert beat(0.1, 100, 50) == pytest.approx(0.1 * HELD_SHARE)
    assert beat(1.0, 200, 3) == pytest.approx(3 / 200)  # the end is foreseen
    assert beat(1.0, 200, 1) == beat(1.0, 40, 50) == beat(0.1, 10, 50) == beat(0.0, 0, 50) == 0.0
