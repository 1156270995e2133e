"""A client that asks a server many things at once and does little else: a process of its own.

One line of JSON comes on its standard input for each round, one goes out. It takes apart nothing of an
answer until the round is over, and says which share of a core it used.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import uvloop

DONE = b"data: [DONE]"
DATA = b"data: {"


class Answer(asyncio.Protocol):
    """One request on a connection of its own; times are seconds since it was sent."""

    def __init__(self, request: bytes, leave: int | None) -> None:
        self.request, self.leave = request, leave
        self.parts: list[bytes] = []
        self.first = self.last = 0.0
        self.streamed = False
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.request)
        self.began = time.perf_counter()

    def data_received(self, data: bytes) -> None:
        self.last = time.perf_counter() - self.began
        if not self.streamed and DATA in data:
            self.first, self.streamed = self.last, True
        self.parts.append(data)
        if self.leave is not None and len(self.parts) > self.leave:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def answers(asked: dict[str, Any]) -> dict[str, Any]:
    """`streams` at a time of the bodies; each body may have `leave`, parts after which the client goes."""
    where = urlsplit(asked["url"])
    waiting = list(enumerate(asked["bodies"]))[::-1]
    found: list[dict[str, Any] | None] = [None] * len(waiting)
    loop = asyncio.get_running_loop()

    async def one_after_another() -> None:
        while waiting:
            number, body = waiting.pop()
            leave = body.pop("leave", None)
            sent = _request(where, asked["path"], asked["key"], body)
            with suppress(OSError):
                made = partial(Answer, sent, leave)
                _, answer = await loop.create_connection(made, where.hostname, where.port)
                await answer.over
                found[number] = {"answer": answer, "left": leave is not None}

    began, used = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one_after_another() for _ in range(asked["streams"])))
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "client_share": used / seconds, "answers": [_read(each) for each in found]}


def _request(where: Any, path: str, key: str, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def _read(found: dict[str, Any] | None) -> dict[str, Any]:
    """Times, tokens and text of an answer; of one without its end only what is known."""
    if found is None:
        return {"error": "no connection"}
    answer: Answer = found["answer"]
    head, _, body = b"".join(answer.parts).partition(b"\r\n\r\n")
    if found["left"]:
        return {"left": True}
    if b" 200 " not in head[:16]:
        return {"error": (head[:40] + body[:300]).decode(errors="replace")}
    if b"chunked" in head.lower():
        body = unchunked(body)
    if not answer.streamed:
        document = json.loads(body)
        text, usage = document["choices"][0]["text"], document["usage"]
    else:
        if DONE not in body:
            return {"error": f"cut: {body[-200:].decode(errors='replace')}"}
        events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(DATA)]
        if wrong := [event for event in events if "error" in event]:
            return {"error": json.dumps(wrong[0])}
        text = "".join(choice.get("text") or "" for event in events for choice in event["choices"])
        usage = next(event["usage"] for event in reversed(events) if event.get("usage"))
    return {
        "first": answer.first, "last": answer.last, "text": text, "tokens": usage["completion_tokens"],
        "prompt_tokens": usage["prompt_tokens"],
    }  # fmt: skip


def unchunked(body: bytes) -> bytes:
    """The content of what came in chunks."""
    parts, at = [], 0
    while (end := body.find(b"\r\n", at)) > 0 and (size := int(body[at:end], 16)):
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(parts)


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(uvloop.run(answers(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
