"""What completions and chats do alike: limits, masks, sampling."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request

from isoflop.serve.answering import Answering
from isoflop.serve.calls import Call
from isoflop.serve.drift import characters
from isoflop.serve.forms import Form
from isoflop.serve.gateway import Gateway, Masker, Model
from isoflop.serve.masked import asked_of, check_schema, masked_turns, masker_of, noted
from isoflop.serve.protocol import Generation, RequestError, Writes
from isoflop.serve.routes import answered_by, check_texts, held
from isoflop.serve.schemas import ObjectFormat, Sampled, SchemaFormat
from isoflop.serve.traces import Prompt as Asked
from isoflop.serve.traces import Turn
from isoflop.serve.writing import SEEDS, Writing

Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class Asking:
    """A request for text, and what will answer it."""

    gateway: Gateway
    call: Call
    asked: Sampled
    model: Model
    engine: Writes
    masker: Masker | None

    async def masked(self, text: str) -> str:
        """The prompt as the engine may see it; what is watched and audited of it is noted."""
        found = await asked_of(self.gateway, self.call, self.masker, text)
        self._count(found)
        return found

    async def masked_turns(self, turns: Sequence[Turn]) -> list[Turn]:
        """As `masked`, a whole chat."""
        found = await masked_turns(self.call, self.masker, turns)
        noted(self.gateway, self.call, *(text for _, text in found))
        self._count(found[-1][1])
        return found

    def _count(self, text: str) -> None:
        if self.call.characters is not None:
            self.call.characters = characters(text)

    async def masked_ids(self, ids: Sequence[int]) -> Prompt:
        """Token ids, or what is left of their text when something in it was masked."""
        if self.masker is None and not self.gateway.settings.audit_text:
            return tuple(ids)
        text = await self.engine.detokenize(ids)
        left = await self.masked(text)
        return tuple(ids) if left == text else left

    def trace(self, prompts: Sequence[Asked | None]) -> None:
        """Note the prompts as the client knows them, to recognise them in its feedback."""
        if self.call.traces:
            self.call.traces.asked(prompts, self.asked.n or 1)

    def answer(
        self, prompts: Callable[[], Awaitable[Sequence[Prompt]]], form: type[Form], *, texts: int,
        most: int | None, logprobs: int | None, stop: tuple[str, ...] = (), param: str = "prompt",
    ) -> Answering:  # fmt: skip
        """The answer to so many texts, which are made ready (masked, counted) within the time for it.

        Raises RequestError for what is beyond the server's limits.
        """
        asked, settings = self.asked, self.gateway.settings
        answers = asked.n or 1
        if answers > settings.answers:
            raise RequestError(f"n is {answers}, and this server gives {settings.answers} answers", param="n")
        check_texts(settings, answers * texts, param)
        if logprobs is not None and self.masker is not None:
            raise RequestError("log-probabilities tell what is masked: leave them out", param="logprobs")
        stops = (asked.stop,) if isinstance(asked.stop, str) else tuple(asked.stop or ())
        plan = self._plan(most, logprobs, stop if self.masker else (*stops, *stop))
        # Behind a mask the client's stops are found here, in pieces: after one nothing more is written.
        plan = replace(plan, whole=not asked.stream and not (self.masker and stops))

        async def ready() -> list[Generation]:
            if self.masker and plan.schema:
                await asyncio.to_thread(check_schema, self.masker, plan.schema)
            found = await prompts()
            await self.check_sizes(found, param)
            return [replace(plan, prompt=prompt) for prompt in found]

        if asked.temperature != 0:  # chance decides
            self.call.compared = False
        usage = asked.stream_options is not None and asked.stream_options.include_usage
        writing = Writing(
            self.call, self.engine, ready, answers, form(self.model.name, usage=usage), settings.seconds,
            self.masker, stops, settings.audit_text or self.call.compared,
        )  # fmt: skip
        return writing.answer(stream=bool(asked.stream))

    def _plan(self, most: int | None, logprobs: int | None, stop: tuple[str, ...]) -> Generation:
        """How every text of the request is written; its prompt is still empty."""
        asked, limit = self.asked, self.gateway.settings.completion_tokens
        context = self.model.engine.context
        if most and limit and most > limit:
            raise RequestError(f"this server writes {limit} tokens at most, not {most}", param="max_tokens")
        return Generation(
            prompt="",
            max_tokens=min(most or limit or context, context),
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            stop=stop,
            seed=None if asked.seed is None else asked.seed % SEEDS,
            logprobs=logprobs,
            schema=self._schema(),
        )

    def _schema(self) -> Mapping[str, Any] | None:
        match self.asked.response_format:
            case SchemaFormat(json_schema=named):
                schema = named.schema_
            case ObjectFormat():
                schema = {"type": "object"}
            case _:
                return None
        if not self.engine.schemas:
            raise RequestError(
                f"the engine of {self.model.name}, {self.model.engine.name}, cannot keep to a JSON schema",
                code="unsupported_parameter", param="response_format",
            )  # fmt: skip
        return schema

    async def check_sizes(self, prompts: Sequence[Prompt], param: str) -> None:
        """Raises RequestError for one that is longer than this server takes."""
        limit = self.gateway.settings.prompt_tokens
        if limit is None:
            return  # the engine says what it cannot hold
        for prompt in prompts:
            size = len(await self.engine.tokenize(prompt) if isinstance(prompt, str) else prompt)
            if size > limit:
                raise RequestError(
                    f"{param} has {size} tokens, and this server takes {limit} at most",
                    code="context_length_exceeded", param=param,
                )  # fmt: skip


def asked_of_model(
    request: Request, asked: Sampled, answer: Callable[[Asking], Answering], ability: Any = Writes
) -> Answering:
    """The answer of the model that a request names. Raises RequestError for one that is not there or does
    not have that ability, and what `answer` raises."""
    gateway, _ = held(request)

    def made(call: Call, model: Model, engine: Writes) -> Answering:
        return answer(Asking(gateway, call, asked, model, engine, masker_of(gateway, asked.mask)))

    return answered_by(request, asked.model, ability, made)
