"""For tests of the gateway: an engine that can do all, at once, and whose words can be foretold; one who
listens to calls; a masker of given words; a server of an application on a real socket.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import uvicorn
from starlette.types import ASGIApp

from isoflop.serve.calls import Call
from isoflop.serve.protocol import (
    LENGTH,
    STOP,
    Ending,
    Generation,
    Heard,
    Label,
    Piece,
    RequestError,
    Span,
    Token,
)
from isoflop.serve.running import config
from isoflop.serve.settings import Settings

CHARACTERS = range(0xD800)  # code points below those that are none


class Echo:
    """Says the prompt's words again, one a token; ids are the characters' code points."""

    name, context, slots, schemas = "echo", 1024, 4, True

    def __init__(self, pause: float = 0.0) -> None:
        self.pause, self.running, self.started, self.cancelled = pause, 0, False, 0

    async def start(self) -> None:
        self.started = True

    async def alive(self) -> bool:
        return self.started

    async def close(self) -> None:
        self.started = False

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        return [ord(c) for c in text]

    async def detokenize(self, ids: Sequence[int]) -> str:
        if not all(id in CHARACTERS for id in ids):
            raise RequestError("there is no such token id", param="tokens")
        return "".join(map(chr, ids))

    async def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        prompt = asked.prompt if isinstance(asked.prompt, str) else await self.detokenize(asked.prompt)
        if len(prompt) > self.context:
            raise RequestError(f"the prompt has {len(prompt)} tokens", code="context_length_exceeded")
        self.running += 1
        said, reason = 0, STOP
        try:
            for word in prompt.split():
                if said == asked.max_tokens:
                    reason = LENGTH
                    break
                await asyncio.sleep(self.pause)
                if word in asked.stop:
                    break
                text = word if said == 0 else " " + word
                said += 1
                told = () if asked.logprobs is None else (Token(text, -0.5, ((text, -0.5),)),)
                yield Piece(text, 1, told)
            yield Ending(reason, len(prompt), said, queued=0.0)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def score(self, ids: Sequence[int], alternatives: int = 0) -> list[Token]:
        if len(ids) > self.context + 1:
            raise RequestError(f"the prompt has {len(ids)} tokens", code="context_length_exceeded")
        words = [await self.detokenize([id]) for id in ids[1:]]
        return [Token(word, -0.5, ((word, -0.5),)[:alternatives]) for word in words]

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        return [[float(len(t)), 1.0] for t in texts], sum(map(len, texts))

    async def classify(self, texts: Sequence[str]) -> tuple[list[list[Label]], int]:
        return [[Label("long" if len(t) > 9 else "short", 0.75)] for t in texts], sum(map(len, texts))

    async def tag(self, texts: Sequence[str]) -> tuple[list[list[Span]], int]:
        return [[Span("FIRST", 0, len(t.split(" ")[0]))] for t in texts], sum(map(len, texts))

    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        if not sound:
            raise RequestError("the sound is empty", param="file")
        return Heard(f"{len(sound)} bytes", 1.0)


class Witness:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.heard: list[Call] = []
        self.ends: list[Call] = []
        self.silence = threading.Condition()  # told of each end

    def began(self, call: Call) -> None:
        self.heard.append(call)

    def ended(self, call: Call) -> None:
        with self.silence:
            self.ends.append(call)
            self.silence.notify_all()

    def wait(self, ends: int) -> None:
        """Until so many calls have ended."""
        with self.silence:
            assert self.silence.wait_for(lambda: len(self.ends) >= ends, timeout=30)


@dataclass
class MaskedText:
    text: str
    found: Counter[str]


class Words:
    """Masks the words that are its kinds, as [WORD]; the word "fail" breaks it."""

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = kinds

    def mask(self, text: str) -> MaskedText:
        found: Counter[str] = Counter()
        words = text.split(" ")
        if "fail" in words:
            raise LookupError(text)
        for i, word in enumerate(words):
            if word in self.kinds:
                words[i], found[word] = self.placeholder(word, word), found[word] + 1
        return MaskedText(" ".join(words), found)

    def items(self, text: str) -> list[Span]:
        words, ends = text.split(" "), accumulate(len(word) + 1 for word in text.split(" "))
        return [
            Span(word, end - 1 - len(word), end - 1)
            for word, end in zip(words, ends, strict=True)
            if word in self.kinds
        ]

    def placeholder(self, kind: str, value: str) -> str:
        return f"[{kind.upper()}]"

    def stream(self) -> WordStream:
        return WordStream(self)


class WordStream:
    """Holds back the last word, which may go on."""

    def __init__(self, masker: Words) -> None:
        self.masker, self.held, self.found = masker, "", Counter[str]()

    def push(self, text: str) -> str:
        whole, space, self.held = (self.held + text).rpartition(" ")
        return self._masked(whole) + space

    def end(self) -> str:
        return self._masked(self.held)

    def cut(self) -> str:
        return ""

    def _masked(self, text: str) -> str:
        masked = self.masker.mask(text)
        self.found.update(masked.found)
        return masked.text


@contextmanager
def on_a_socket(app: ASGIApp, settings: Settings | None = None) -> Iterator[str]:
    """Serve an application as `isoflop serve` does, from a thread; yields its URL."""
    server = uvicorn.Server(config(app, settings or Settings()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
