"""Text that an engine writes, as an answer: several generations at once, whole or streamed, masked or not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Send

from isoflop.serve.answering import Answering, Together, sent
from isoflop.serve.calls import Call
from isoflop.serve.errors import described, failure
from isoflop.serve.forms import Form
from isoflop.serve.gateway import Masker
from isoflop.serve.masked import Screen, aside
from isoflop.serve.protocol import STOP, Ending, Generation, Piece, Token, Writes
from isoflop.serve.sse import DONE, START, event

PARTING_SECONDS = 1.0  # in which a client takes the error that ends its stream
SEEDS = 1 << 31  # engines take no larger ones


@dataclass
class Writing:
    """What one request asks for: `answers` of each prompt."""

    call: Call
    engine: Writes
    prepared: Callable[[], Awaitable[Sequence[Generation]]]  # the prompts
    answers: int
    form: Form
    seconds: float
    masker: Masker | None
    stops: Sequence[str]  # of the client, which the engine does not know where there is a masker
    audited: bool  # whether the call keeps the text
    prompts: Sequence[Generation] = field(init=False)
    screens: list[Screen] = field(init=False)  # of the answers, where they are masked
    together: Together[Piece | Ending] = field(init=False)
    sizes: dict[int, int] = field(init=False)  # tokens of each answer's pieces
    over: set[int] = field(init=False)  # answers that have ended

    def answer(self, *, stream: bool) -> Answering:
        self.call.stream = stream
        self.sizes, self.over = defaultdict(int), set()
        return Answering(self.call, self._streamed if stream else self._whole)

    @asynccontextmanager
    async def _begun(self) -> AsyncIterator[None]:
        """All answers are being written, for the seconds that this may take."""
        async with asyncio.timeout(self.seconds):
            self.prompts = await self.prepared()
            asked = [
                each if each.seed is None else replace(each, seed=(each.seed + i) % SEEDS)
                for each in self.prompts
                for i in range(self.answers)
            ]
            self.screens = [Screen(self.masker, self.stops) for _ in asked] if self.masker else []
            try:
                async with Together([self.engine.generate(each) for each in asked]) as self.together:
                    yield
            except asyncio.CancelledError:
                self._estimate()
                raise

    async def _whole(self, send: Send) -> None:
        texts: dict[int, list[str]] = defaultdict(list)
        tokens: dict[int, list[Token]] = defaultdict(list)
        reasons: dict[int, str] = {}
        async with self._begun():
            while batch := await self.together.batch():
                async for index, text, told, ending in self._masked(batch):
                    texts[index].append(text)
                    tokens[index].extend(told)
                    if ending:
                        reasons[index] = ending.reason
        probable = self.prompts[0].logprobs is not None
        choices = [
            self.form.whole(i, "".join(texts[i]), tokens[i] if probable else None, reasons[i])
            for i in sorted(reasons)
        ]
        await sent(JSONResponse(self.form.document(choices, self._usage())), send)

    async def _streamed(self, send: Send) -> None:
        started = False
        try:
            async with self._begun():
                while batch := await self.together.batch():
                    if not started:
                        started = True
                        await send(START)
                    if data := await self._events(batch):
                        await send(_body(data))
                last = self.form.last(self._usage()) + DONE
                await send(_body(last, more=False))
        except Exception as error:
            if not started:
                raise
            await self._broken(error, send)

    async def _broken(self, error: Exception, send: Send) -> None:
        """End a stream that has begun with an error. A client that does not read is not waited for."""
        found = described(error)
        self.call.error = found.code or "failed"
        document = failure(found.message, status=found.status, code=found.code, param=found.param)
        with suppress(TimeoutError):
            async with asyncio.timeout(PARTING_SECONDS):
                await send(_body(event(document), more=False))

    async def _events(self, batch: list[tuple[int, Piece | Ending]]) -> str:
        out = []
        async for index, text, tokens, ending in self._masked(batch):
            if text:
                out.append(self.form.piece(index, text, tokens))
            if ending:
                out.append(self.form.ending(index, ending.reason))
        return "".join(out)

    async def _masked(
        self, batch: list[tuple[int, Piece | Ending]]
    ) -> AsyncIterator[tuple[int, str, Sequence[Token], Ending | None]]:
        """Each answer's new text as it may go out, what is known of its tokens, and its end."""
        self.call.piece()
        for index, pieces, ending in _by_answer(batch):
            if index in self.over:
                continue
            size = sum(piece.size for piece in pieces)
            self.sizes[index] += size
            self.call.completion_tokens += size
            text = pieces[0].text if len(pieces) == 1 else "".join(piece.text for piece in pieces)
            if self.screens:
                text, ending = await self._screened(index, text, ending)
            if ending:
                self._note(index, ending)
            if self.call.traces:
                self.call.traces.said(index, text)
            if self.audited:
                self.call.answered[index] = self.call.answered.get(index, "") + text
            yield index, text, [token for piece in pieces for token in piece.tokens], ending

    async def _screened(self, index: int, text: str, ending: Ending | None) -> tuple[str, Ending | None]:
        """What may go out, and the answer's end, which one of the client's stops may be."""
        screen = self.screens[index]
        text = await aside(partial(screen.push, reason=ending.reason if ending else None), text)
        if screen.stopped and ending is None:
            self.together.end(index)
            prompt = self.prompts[index // self.answers].prompt
            ids = await self.engine.tokenize(prompt) if isinstance(prompt, str) else prompt
            ending = Ending(STOP, len(ids), self.sizes[index])
        elif screen.stopped and ending:
            ending = ending._replace(reason=STOP)
        if ending:
            self.call.masked.update(screen.found)
        return text, ending

    def _estimate(self) -> None:
        """Count the prompts of answers that end early, though the engine has not said their tokens.

        Texts count one for four bytes; also where the engine had not come to them yet.
        """
        for number, asked in enumerate(self.prompts):
            if number * self.answers not in self.over:
                prompt = asked.prompt
                size = -(-len(prompt.encode()) // 4) if isinstance(prompt, str) else len(prompt)
                self.call.prompt_tokens += size

    def _note(self, index: int, ending: Ending) -> None:
        """What the call is told of an answer's end."""
        self.over.add(index)
        call = self.call
        call.finish = ending.reason
        call.completion_tokens += ending.completion_tokens - self.sizes[index]
        if index % self.answers == 0:  # a prompt is counted once
            call.prompt_tokens += ending.prompt_tokens
            call.cached_tokens += ending.cached
        if ending.writing is not None:
            call.wrote(ending.writing)
        if ending.queued is not None:
            call.queued = max(call.queued or 0.0, ending.queued)

    def _usage(self) -> dict[str, Any]:
        call = self.call
        return {
            "prompt_tokens": call.prompt_tokens,
            "completion_tokens": call.completion_tokens,
            "total_tokens": call.prompt_tokens + call.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": call.cached_tokens},
        }


def _by_answer(
    batch: list[tuple[int, Piece | Ending]],
) -> Iterable[tuple[int, list[Piece], Ending | None]]:
    """What belongs together of a batch."""
    pieces: dict[int, list[Piece]] = {}
    endings: dict[int, Ending] = {}
    for index, item in batch:
        of_answer = pieces.setdefault(index, [])
        if isinstance(item, Piece):
            of_answer.append(item)
        else:
            endings[index] = item
    return ((index, of_answer, endings.get(index)) for index, of_answer in pieces.items())


def _body(data: str, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data.encode(), "more_body": more}
