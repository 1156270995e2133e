"""A server elsewhere that speaks as OpenAI's does: vLLM, llama.cpp's own, and others as far as they can."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from isoflop.errors import IsoflopError
from isoflop.serve.engines.forced import forced
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
from isoflop.serve.engines.vllm import VllmProcess
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Token

ADDED = 16  # tokens that a server may put before a prompt, and more
WHOLE = {"add_special_tokens": True}  # asks for the tokens of a prompt, as it would be read
DIALECTS = {"vllm": VLLM, "llamacpp": LLAMA_CPP}  # by owned_by of the server's list of models


class Remote(OverHttp):
    """Writes, at a server's address with or without `/v1`; its key is in the environment, or it needs none.
    Or by a process of vLLM, which is begun here, and again after a crash.

    The server says itself what its model is called and how long its context is; `model` chooses one of
    several. start() raises IsoflopError where no such server answers. A piece is taken for one token where
    the server does not count them as it goes.
    """

    name = OTHER.name
    schemas = False  # before it has said what it is

    def __init__(
        self, where: str | VllmProcess, *, model: str | None = None, slots: int = 64,
        context: int | None = None, key_variable: str = "",
    ) -> None:  # fmt: skip
        super().__init__(slots, context)
        self._process = None if isinstance(where, str) else where
        url = where if isinstance(where, str) else ""
        self._url, self._wanted, self._key_variable = url.rstrip("/").removesuffix("/v1"), model, key_variable
        self.shown = without_password(self._url)
        self._said_context = context
        self.about: Mapping[str, Any] = {}  # what it says of its model: of ours also the hash and engine

    async def _begin(self) -> None:
        key = os.environ.get(self._key_variable)
        if self._process is not None:
            self._ends.push_async_callback(self._process.end)
            self._url, key = await self._process.begin()
            self.shown = self._url
        address = self._url if key is None else self.shown  # one of both: they are sent in the same header
        self._http = Http(address, self.shown, key=key, connections=self.slots + SPARE)
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
        said = about.get("max_model_len") or about.get("context") or meta.get("n_ctx")
        self.context, self.about = self._said_context or said or 0, about
        if not self.context:
            raise IsoflopError(f"{self.shown} does not say how long its context is", hint="add --context")
        self._http.name = f"the {self.name} server"  # from here on clients hear of it: not of its address

    def _chosen(self, models: list[dict[str, Any]]) -> dict[str, Any]:
        named = [about for about in models if self._wanted in (None, about["id"])]
        if len(named) != 1:
            names = ", ".join(about["id"] for about in models) or "none"
            raise IsoflopError(
                f"{self.shown} has these models: {names}", hint=f"name one of them: {self.shown}#MODEL"
            )
        return named[0]

    def _ended(self) -> bool:
        return self._process is not None and self._process.ended()

    async def alive(self) -> bool:
        """One that was begun here and crashed begins again."""
        return self._revived() is None and not self._ended() and await self._answers("/v1/models")

    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        since = time.monotonic()
        async with self._free:
            queued = time.monotonic() - since
            counted, pending, tokens, reason = 0, 0, tuple[Token, ...](), None
            usage: Mapping[str, Any] | None = None
            body = self._body(asked) | {"max_tokens": await self._most(asked)}
            http = await self._server()
            async with aclosing(http.events("/v1/completions", body, body["max_tokens"])) as parts:
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

    async def score(self, ids: Sequence[int], alternatives: int = 0) -> list[Token]:
        async with self._free:
            return (await self.scores([ids], alternatives))[0]

    async def scores(self, texts: Sequence[Sequence[int]], alternatives: int = 0) -> list[list[Token]]:
        """Of several texts in one request."""
        if self._dialect is LLAMA_CPP:
            if self._vocabulary is None:
                raise EngineError(f"{self._http.name} does not say how many tokens it knows")
            return [await forced(self._http, ids, alternatives, self._vocabulary) for ids in texts]
        body = {
            "model": self._model, "prompt": [list(ids) for ids in texts], "echo": True, "max_tokens": 0,
            "logprobs": alternatives,
        }  # fmt: skip
        choices = (await self._http.post("/v1/completions", body))["choices"]
        told = [choice.get("logprobs") or {} for choice in sorted(choices, key=lambda one: int(one["index"]))]
        if [len(one.get("token_logprobs") or ()) for one in told] != [len(ids) for ids in texts]:
            raise EngineError(f"{self._http.name} does not tell how likely a given text is")
        return [list(_told_tokens(_but_first(one), alternatives)) for one in told]

    async def classify(self, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """The labels of each text as one of our servers tells them."""
        body = {"model": self._model, "input": list(texts)}
        told = (await self._http.post("/v1/classify", body))["data"]
        return [one["labels"] for one in sorted(told, key=lambda one: int(one["index"]))]

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


def _but_first(told: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is told of a text's first token."""
    return {name: (told.get(name) or [])[1:] for name in ("tokens", "token_logprobs", "top_logprobs")}


def _likeliest(top: Mapping[str, float], count: int) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(top.items(), key=lambda one: -one[1])[:count])
