"""A server elsewhere that speaks as OpenAI's does: vLLM, llama.cpp's own, and others as far as they can."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from isoflop.errors import IsoflopError
from isoflop.serve.engines.http import (
    ALIVE_SECONDS,
    LLAMA_CPP,
    OTHER,
    SPARE,
    VLLM,
    Embedding,
    Http,
    Tokenizing,
    sampling,
    tokens_of,
)
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Token

KEY_VARIABLE = "ISOFLOP_ENGINE_KEY"
DIALECTS = {"vllm": VLLM, "llamacpp": LLAMA_CPP}  # by owned_by of the server's list of models


class _Elsewhere(Tokenizing):
    """A server's address, with or without `/v1`; its key is in the environment.

    It says itself what its model is called and how long its context is; `model` chooses one of several.
    """

    name = OTHER.name

    def __init__(
        self, url: str, *, model: str | None = None, slots: int = 64, context: int | None = None,
        key_variable: str = KEY_VARIABLE,
    ) -> None:  # fmt: skip
        self._url, self._wanted, self._key_variable = url.rstrip("/").removesuffix("/v1"), model, key_variable
        self.slots, self.context, self._said_context = slots, context or 0, context
        self._free = asyncio.Semaphore(slots)

    async def start(self) -> None:
        """Raises IsoflopError where no such server answers."""
        self._http = Http(
            self._url, self._url, key=os.environ.get(self._key_variable), connections=self.slots + SPARE
        )
        try:
            about = self._chosen((await self._http.get("/v1/models", seconds=ALIVE_SECONDS))["data"])
        except (EngineError, RequestError) as error:
            await self.close()
            hint = f"start it, or look at its address and the key in {self._key_variable}"
            raise IsoflopError(str(error), hint=hint) from None
        except BaseException:
            await self.close()
            raise
        meta = about.get("meta") or {}
        self._model, self._vocabulary = about["id"], meta.get("n_vocab")
        self._dialect = DIALECTS.get(about.get("owned_by", ""), OTHER)
        self.name, self.schemas = self._dialect.name, self._dialect.schema is not None
        self.context = self._said_context or about.get("max_model_len") or meta.get("n_ctx") or 0
        if not self.context:
            await self.close()
            raise IsoflopError(f"{self._url} does not say how long its context is", hint="say it")

    def _chosen(self, models: list[dict[str, Any]]) -> dict[str, Any]:
        named = [about for about in models if self._wanted in (None, about["id"])]
        if len(named) != 1:
            names = ", ".join(about["id"] for about in models) or "none"
            raise IsoflopError(f"{self._url} has these models: {names}", hint="name one of them")
        return named[0]

    async def alive(self) -> bool:
        try:
            await self._http.get("/v1/models", seconds=ALIVE_SECONDS)
        except (EngineError, RequestError):
            return False
        return True

    async def close(self) -> None:
        await self._http.close()


class Remote(_Elsewhere):
    """Writes. A piece is taken for one token where the server does not count them as it goes."""

    schemas = False  # before it has said what it is

    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        since = time.monotonic()
        async with self._free:
            queued = time.monotonic() - since
            counted, pending, tokens, reason = 0, 0, tuple[Token, ...](), None
            usage: Mapping[str, Any] | None = None
            async with aclosing(self._http.events("/v1/completions", self._body(asked))) as events:
                async for event in events:
                    usage = event.get("usage") or usage
                    for choice in event["choices"]:
                        reason = choice.get("finish_reason") or reason
                        tokens += _tokens(choice.get("logprobs"), asked.logprobs)
                        pending += 1
                        if text := choice["text"]:
                            size = usage["completion_tokens"] - counted if usage else pending
                            yield Piece(text, size, tokens)
                            counted, pending, tokens = counted + size, 0, ()
            if reason is None or usage is None:
                raise EngineError(f"{self._url} ended in the middle of an answer")
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            yield Ending(
                LENGTH if reason == "length" else STOP,
                usage["prompt_tokens"], usage["completion_tokens"], queued, cached,
            )  # fmt: skip

    def _body(self, asked: Generation) -> dict[str, Any]:
        body = {
            "model": self._model, "prompt": asked.prompt, "max_tokens": asked.max_tokens, "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": self._dialect is VLLM},
            **sampling(asked, self._dialect),
        }  # fmt: skip
        if asked.stop:
            body["stop"] = asked.stop
        if asked.logprobs is not None:
            body["logprobs"] = asked.logprobs
        if asked.schema is not None and self._dialect.schema is not None:
            body |= self._dialect.schema(asked.schema)
        return body


class RemoteEmbeds(Embedding, _Elsewhere):
    """Makes vectors."""


def _tokens(told: Mapping[str, Any] | None, alternatives: int | None) -> tuple[Token, ...]:
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
