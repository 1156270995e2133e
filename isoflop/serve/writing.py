"""Text that an engine writes, as an answer: several generations at once, whole or streamed, masked or not."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Send

from isoflop.serve.answering import Answering, Together, sent
from isoflop.serve.calls import Call
from isoflop.serve.errors import described, failure
from isoflop.serve.forms import Form
from isoflop.serve.gateway import Masker, MaskStream
from isoflop.serve.masked import masking_fails
from isoflop.serve.protocol import Ending, Generation, Piece, Token, Writes
from isoflop.serve.sse import DONE, START, event

PARTING_SECONDS = 1.0  # in which a client takes the error that ends its stream
SEEDS = 1 << 31  # engines take no larger ones


@dataclass
class Writing:
    """What one request asks for: `answers` of each prompt."""

    call: Call
    engine: Writes
    prompts: Sequence[Generation]
    answers: int
    form: Form
    seconds: float
    masker: Masker | None
    audited: bool  # whether the call keeps the text
    streams: list[MaskStream] = field(init=False)  # of the answers, where they are masked
    sizes: dict[int, int] = field(init=False)  # tokens of each answer's pieces

    def answer(self, *, stream: bool) -> Answering:
        self.call.stream = stream
        count = len(self.prompts) * self.answers
        self.streams = [self.masker.stream() for _ in range(count)] if self.masker else []
        self.sizes = defaultdict(int)
        return Answering(self.call, self._streamed if stream else self._whole)

    def _together(self) -> Together[Piece | Ending]:
        asked = [
            each if each.seed is None else replace(each, seed=(each.seed + i) % SEEDS)
            for each in self.prompts
            for i in range(self.answers)
        ]
        return Together([self.engine.generate(each) for each in asked])

    async def _whole(self, send: Send) -> None:
        texts: dict[int, list[str]] = defaultdict(list)
        tokens: dict[int, list[Token]] = defaultdict(list)
        reasons: dict[int, str] = {}
        async with asyncio.timeout(self.seconds), self._together() as together:
            while batch := await together.batch():
                for index, text, told, ending in self._masked(batch):
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
            async with asyncio.timeout(self.seconds), self._together() as together:
                while batch := await together.batch():
                    if not started:
                        started = True
                        await send(START)
                    if data := self._events(batch):
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

    def _events(self, batch: list[tuple[int, Piece | Ending]]) -> str:
        out = []
        for index, text, tokens, ending in self._masked(batch):
            if text:
                out.append(self.form.piece(index, text, tokens))
            if ending:
                out.append(self.form.ending(index, ending.reason))
        return "".join(out)

    def _masked(
        self, batch: list[tuple[int, Piece | Ending]]
    ) -> Iterable[tuple[int, str, Sequence[Token], Ending | None]]:
        """Each answer's new text as it may go out, what is known of its tokens, and its end."""
        self.call.piece()
        for index, pieces, ending in _by_answer(batch):
            size = sum(piece.size for piece in pieces)
            self.sizes[index] += size
            self.call.completion_tokens += size
            text = pieces[0].text if len(pieces) == 1 else "".join(piece.text for piece in pieces)
            if self.streams:
                text = self._mask(index, text, ending is not None)
            if ending:
                self._note(index, ending)
            if self.audited:
                self.call.answered += text
            yield index, text, [token for piece in pieces for token in piece.tokens], ending

    def _mask(self, index: int, text: str, ended: bool) -> str:
        stream = self.streams[index]
        with masking_fails():
            out = stream.push(text) + (stream.end() if ended else "")
        if ended:
            self.call.masked.update(stream.found)
        return out

    def _note(self, index: int, ending: Ending) -> None:
        """What the call is told of an answer's end."""
        call = self.call
        call.finish = ending.reason
        call.completion_tokens += ending.completion_tokens - self.sizes[index]
        if index % self.answers == 0:  # a prompt is counted once
            call.prompt_tokens += ending.prompt_tokens
            call.cached_tokens += ending.cached
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
