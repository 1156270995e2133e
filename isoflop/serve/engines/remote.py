"""A server elsewhere that speaks as OpenAI's does: vLLM, llama.cpp's own, and others as far as they can."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from isoflop.errors import IsoflopError
from isoflop.serve.engines.http import (
    ALIVE_SECONDS,
    LLAMA_CPP,
    OTHER,
    SPARE,
    UNABLE_STATUS,
    VLLM,
    Http,
    OverHttp,
    no_room,
    sampling,
    tokens_of,
)
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Token

ADDED = 16  # tokens that a server may put before a prompt, and more
WHOLE = {"add_special_tokens": True}  # asks for the tokens of a prompt, as it would be read
DIALECTS = {"vllm": VLLM, "llamacpp": LLAMA_CPP}  # by owned_by of the server's list of models


class Remote(OverHttp):
    """Writes, at a server's address with or without `/v1`; its key is in the environment, or it needs none.

    The server says itself what its model is called and how long its context is; `model` chooses one of
    several. start() raises IsoflopError where no such server answers. A piece is taken for one token where
    the server does not count them as it goes.
    """

    name = OTHER.name
    schemas = False  # before it has said what it is

    def __init__(
        self, url: str, *, model: str | None = None, slots: int = 64, context: int | None = None,
        key_variable: str = "",
    ) -> None:  # fmt: skip
        super().__init__(slots, context)
        self._url, self._wanted, self._key_variable = url.rstrip("/").removesuffix("/v1"), model, key_variable
        self._shown = without_password(self._url)
        self._said_context = context

    async def _begin(self) -> None:
        key = os.environ.get(self._key_variable)
        address = self._url if key is None else self._shown  # one of both: they are sent in the same header
        self._http = Http(address, self._shown, key=key, connections=self.slots + SPARE)
        self._ends.push_async_callback(self._http.close)
        try:
            about = self._chosen((await self._http.get("/v1/models", seconds=ALIVE_SECONDS))["data"])
        except (EngineError, RequestError) as error:
            secret = f" and the key in {self._key_variable}" if self._key_variable else ""
            hint = f"start it, or look at its address{secret}"
            raise IsoflopError(str(error), hint=hint) from None
        meta = about.get("meta") or {}
        self._model, self._vocabulary = about["id"], meta.get("n_vocab")
        self._dialect = DIALECTS.get(about.get("owned_by", ""), OTHER)
        self.name, self.schemas = self._dialect.name, self._dialect.schema is not None
        self.context = self._said_context or about.get("max_model_len") or meta.get("n_ctx") or 0
        if not self.context:
            raise IsoflopError(f"{self._shown} does not say how long its context is", hint="add --context")
        self._http.name = f"the {self.name} server"  # from here on clients hear of it: not of its address

    def _chosen(self, models: list[dict[str, Any]]) -> dict[str, Any]:
        named = [about for about in models if self._wanted in (None, about["id"])]
        if len(named) != 1:
            names = ", ".join(about["id"] for about in models) or "none"
            raise IsoflopError(
                f"{self._shown} has these models: {names}", hint=f"name one of them: {self._shown}#MODEL"
            )
        return named[0]

    def _ended(self) -> bool:
        return False  # it is not ours to begin

    async def alive(self) -> bool:
        return await self._answers("/v1/models")

    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        since = time.monotonic()
        async with self._free:
            queued = time.monotonic() - since
            counted, pending, tokens, reason = 0, 0, tuple[Token, ...](), None
            usage: Mapping[str, Any] | None = None
            body = self._body(asked) | {"max_tokens": await self._most(asked)}
            async with aclosing(self._http.events("/v1/completions", body, body["max_tokens"])) as parts:
                async for part in parts:
                    for event in part:
                        usage = event.get("usage") or usage
                        for choice in event["choices"]:
                            reason = choice.get("finish_reason") or reason
                            tokens += _told_tokens(choice.get("logprobs"), asked.logprobs)
                            pending += 1
                            if text := choice["text"]:
                                size = usage["completion_tokens"] - counted if usage else pending
                                yield Piece(text, size, tokens)
                                counted, pending, tokens = counted + size, 0, ()
            if reason is None or usage is None:
                raise EngineError(f"{self._http.name} ended in the middle of an answer")
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            yield Ending(
                LENGTH if reason == "length" else STOP,
                usage["prompt_tokens"], usage["completion_tokens"], queued, cached,
            )  # fmt: skip

    async def _most(self, asked: Generation) -> int:
        """Tokens that the answer may have: vLLM refuses more than the context has room for.

        The server is asked how many the prompt has, unless they cannot be too many (each is a byte or more).
        Where it cannot tell it is trusted to end at the end of its context, as llama.cpp does.
        """
        prompt = asked.prompt
        if self._dialect is LLAMA_CPP:
            return asked.max_tokens
        if isinstance(prompt, tuple):
            tokens = len(prompt)
        elif asked.max_tokens + len(prompt.encode(errors="replace")) + ADDED <= self.context:
            return asked.max_tokens
        else:
            try:
                tokens = len(await self._tokens(prompt, WHOLE))
            except RequestError as error:
                if error.status != UNABLE_STATUS:
                    raise
                return asked.max_tokens
        if tokens >= self.context:
            raise no_room(tokens, self.context)
        return min(asked.max_tokens, self.context - tokens)

    def _body(self, asked: Generation) -> dict[str, Any]:
        body = {
            "model": self._model, "prompt": asked.prompt, "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": self._dialect is VLLM},
            **sampling(asked, self._dialect),
        }  # fmt: skip
        if asked.stop:
            body["stop"] = asked.stop
        if asked.logprobs is not None:
            body["logprobs"] = asked.logprobs
        if asked.schema is not None:
            if self._dialect.schema is None:
                raise RequestError("the model's server cannot keep to a schema", param="response_format")
            body |= self._dialect.schema(asked.schema)
        return body


def without_password(url: str) -> str:
    """An address as it may be shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _told_tokens(told: Mapping[str, Any] | None, alternatives: int | None) -> tuple[Token, ...]:
    """Of a piece of /v1/completions: OpenAI's lists, or llama.cpp's as of a chat."""
    if told is None or alternatives is None:
        return ()
    if "content" in told:
        return tokens_of(told["content"], alternatives)
    tops = told.get("top_logprobs") or [None] * len(told["tokens"])
    return tuple(
        Token(text, logprob, _likeliest(top or {}, alternatives))
        for text, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True)
    )


def _likeliest(top: Mapping[str, float], count: int) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(top.items(), key=lambda one: -one[1])[:count])
