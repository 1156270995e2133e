"""An engine for tests of the gateway: it can do all, at once, and what it says can be foretold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

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

    async def tokenize(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    async def detokenize(self, ids: Sequence[int]) -> str:
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
        except GeneratorExit:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

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
