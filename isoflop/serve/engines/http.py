"""A model server behind HTTP: requests, server-sent events, and what may go wrong in words.

llama.cpp and vLLM speak nearly the same; a dialect has where they differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from isoflop.serve.protocol import EngineError, Generation, RequestError, Token

CONNECT_SECONDS = 10.0
ALIVE_SECONDS = 5.0  # in which a server that is alive says so
KEPT_SECONDS = 4.0  # that an idle connection is kept: servers close theirs after 5
SPARE = 8  # connections beside those that stream
TOO_LONG = "context_length_exceeded"
TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large .* (\d+)\)")  # llama.cpp, of a text for a vector
UNABLE = (404, 405, 501)  # statuses of what a server cannot do


@dataclass(frozen=True)
class Dialect:
    """What OpenAI's interface has no words for, as a kind of server puts it."""

    name: str
    text: str  # field of a text, in /tokenize and /detokenize
    plain: Mapping[str, Any]  # asks for the tokens of the text alone
    neutral: Mapping[str, Any]  # no sampling but by temperature and top-p
    schema: Callable[[Mapping[str, Any]], dict[str, Any]] | None  # asks for what fits one; None: it cannot


# llama.cpp: top-p is of what the temperature has made, as elsewhere; all else that it would sample by is left
# out. vLLM would take what is not said from the model's own generation_config.json.
LLAMA_CPP = Dialect(
    "llama.cpp", "content", {"add_special": False, "parse_special": False},
    {"samplers": ["temperature", "top_p"]}, lambda schema: {"json_schema": schema},
)  # fmt: skip
VLLM = Dialect(
    "vLLM", "prompt", {"add_special_tokens": False},
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    lambda schema: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    },
)  # fmt: skip
OTHER = Dialect("OpenAI-compatible", "prompt", {}, {}, None)


class Http:
    """A server's address, with connections that are kept."""

    def __init__(self, url: str, name: str, *, key: str | None, connections: int) -> None:
        self.url, self.name = url, name
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=KEPT_SECONDS),
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, *, seconds: float | None = None) -> Any:
        async with self._asked("GET", path, timeout=aiohttp.ClientTimeout(seconds)) as response:
            return await response.json()

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._asked("POST", path, json=body) as response:
            return await response.json()

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The answer's events as they come. Closed early it closes the connection, by which the server stops.

        Each has a connection of its own: after a stream llama.cpp closes it in any case, and does not say so.
        """
        async with self._asked("POST", path, json=body, headers={"Connection": "close"}) as response:
            rest = b""
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                        event: dict[str, Any] = json.loads(data)
                        if "error" in event:
                            raise refusal(self.name, 500, data)
                        yield event

    @asynccontextmanager
    async def _asked(self, method: str, path: str, **rest: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(
                method, self.url + path, allow_redirects=False, **rest
            ) as response:
                if response.status != 200:
                    raise refusal(self.name, response.status, await response.read())
                yield response
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise EngineError(f"{self.name} does not answer ({type(error).__name__})") from error


def refusal(name: str, status: int, body: bytes) -> RequestError | EngineError:
    """What a server's answer of an error means here."""
    try:
        told = json.loads(body)
        error = told.get("error", told)  # vLLM's were without it once
        message, status = error["message"], error.get("code") or status
    except (ValueError, KeyError, AttributeError):
        error, message = {}, "no reason given"
    if status in (401, 403):
        return EngineError(f"{name} refuses the key that this server has for it")
    if "n_prompt_tokens" in error:
        count, context = error["n_prompt_tokens"], error["n_ctx"]
        text = f"the prompt has {count} tokens, which leaves no room in a context of {context}"
        return RequestError(text, code=TOO_LONG, param="prompt")
    if found := TOO_LARGE.search(message):
        text = f"a text has {found[1]} tokens, more than the {found[2]} that this server takes at once"
        return RequestError(text, code=TOO_LONG, param="input")
    if "maximum context length" in message:
        return RequestError(message, code=TOO_LONG, param="prompt")
    if status in (400, 413, 422):
        return RequestError(message)
    if status in UNABLE:
        return RequestError(f"{name} cannot do this: {message}", status=501)
    return EngineError(f"{name} failed: {message}")


def tokens_of(told: Iterable[Mapping[str, Any]], alternatives: int) -> tuple[Token, ...]:
    """Tokens with probabilities, as OpenAI's chats have them and llama.cpp everything."""
    return tuple(
        Token(
            one["token"],
            one["logprob"],
            tuple((other["token"], other["logprob"]) for other in one["top_logprobs"][:alternatives]),
        )
        for one in told
    )


def sampling(asked: Generation, dialect: Dialect) -> dict[str, Any]:
    """How the next token is drawn; seeds are of 32 bits there, of which the last means none."""
    seed = {} if asked.seed is None else {"seed": asked.seed % 0xFFFFFFFF}
    return {"temperature": asked.temperature, "top_p": asked.top_p, **seed, **dialect.neutral}


class Tokenizing:
    """What every engine behind HTTP has: its server, once started, and what it says of its model."""

    _http: Http
    _dialect: Dialect
    _model: str
    _vocabulary: int | None  # token ids that there are, where the server says so

    async def tokenize(self, text: str) -> list[int]:
        body = {"model": self._model, self._dialect.text: text, **self._dialect.plain}
        ids: list[int] = (await self._http.post("/tokenize", body))["tokens"]
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        wrong = next((i for i in ids if i < 0 or (self._vocabulary and i >= self._vocabulary)), None)
        if wrong is not None:
            raise RequestError(f"there is no token {wrong}", param="tokens")
        body = {"model": self._model, "tokens": list(ids)}
        text: str = (await self._http.post("/detokenize", body))[self._dialect.text]
        return text


class Embedding(Tokenizing):
    """One whose server makes vectors of texts."""

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        answer = await self._http.post("/v1/embeddings", body)
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return [row["embedding"] for row in rows], answer["usage"]["prompt_tokens"]
