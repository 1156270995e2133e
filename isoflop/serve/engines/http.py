"""A model server behind HTTP: requests, server-sent events, and what may go wrong in words.

llama.cpp and vLLM speak nearly the same; a dialect has where they differ.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from isoflop.errors import IsoflopError
from isoflop.serve.engines.piped import Answer, answer_at
from isoflop.serve.protocol import EngineError, Generation, RequestError, Token

CONNECT_SECONDS = 10.0
ALIVE_SECONDS = 5.0  # in which a server that is alive says so
LOOK_SECONDS = 0.2  # between two looks at what is about to change
KEPT_SECONDS = 4.0  # that an idle connection is kept: servers close theirs after 5
SPARE = 8  # connections beside those that stream
TOO_LONG = "context_length_exceeded"
TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large .* (\d+)\)")  # llama.cpp, of a text for a vector
UNABLE, UNABLE_STATUS = (404, 405, 501), 501  # statuses of what a server cannot do, and what is made of them

# What comes within a beat is taken together: to wake up, read and send costs the same for one token and for
# several, and more than a small model needs for one.
BEAT = 0.03  # seconds at most
HELD_SHARE = 0.1  # of the time since an answer began: so late its end may be known at most

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dialect:
    """What OpenAI's interface has no words for, as a kind of server puts it."""

    name: str
    text: str  # field of a text, in /tokenize and /detokenize
    plain: Mapping[str, Any]  # asks for the tokens of the text alone
    special: Mapping[str, Any]  # likewise, where names of special tokens are these tokens
    neutral: Mapping[str, Any]  # no sampling but by temperature and top-p
    schema: Callable[[Mapping[str, Any]], dict[str, Any]] | None  # asks for what fits one; None: it cannot


# llama.cpp: top-p is of what the temperature has made, as elsewhere; all else that it would sample by is left
# out. vLLM would take what is not said from the model's own generation_config.json.
LLAMA_CPP = Dialect(
    "llama.cpp", "content", {"add_special": False, "parse_special": False},
    {"add_special": False, "parse_special": True},
    {"samplers": ["temperature", "top_p"]}, lambda schema: {"json_schema": schema},
)  # fmt: skip
VLLM = Dialect(
    "vLLM", "prompt", {"add_special_tokens": False}, {"add_special_tokens": False},
    {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
    lambda schema: {
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    },
)  # fmt: skip
OTHER = Dialect("OpenAI-compatible", "prompt", VLLM.plain, VLLM.special, {}, None)


class Http:
    """A server's address, or the socket that it is behind, with connections that are kept."""

    def __init__(
        self, url: str, name: str, *, key: str | None, connections: int, socket: str | None = None
    ) -> None:
        self.url, self.name = url, name
        kept: dict[str, Any] = {"limit": connections, "keepalive_timeout": KEPT_SECONDS}
        self._socket = socket or ""
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(socket, **kept) if socket else aiohttp.TCPConnector(**kept),
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str, *, seconds: float | None = None) -> Any:
        async with self._asked("GET", path, timeout=aiohttp.ClientTimeout(seconds)) as response:
            return await response.json()

    async def touch(self, path: str, *, seconds: float = ALIVE_SECONDS) -> None:
        """Ask for something of which the status alone counts. Raises what `get` raises."""
        async with self._asked("GET", path, timeout=aiohttp.ClientTimeout(seconds)):
            pass

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        async with self._asked("POST", path, json=body) as response:
            return await response.json()

    async def events(
        self, path: str, body: Mapping[str, Any], most: int
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The answer's events, those together that came together; `most`: so many come before the last.

        Closed early it closes the connection, by which the server stops. Each has a connection of its own:
        after a stream llama.cpp closes it in any case, and does not say so.
        """
        rest = b""
        async with aclosing(
            self._piped(path, body, most) if self._socket else self._parts(path, body)
        ) as parts:
            async for part in parts:
                *lines, rest = (rest + part).split(b"\n")
                if events := self._read(lines):
                    yield events

    async def at_once(self, path: str, body: Mapping[str, Any]) -> Any:
        """An answer that comes whole. Cancelled it closes the connection, by which the server stops."""
        if not self._socket:
            return await self.post(path, body)
        async with self._opened(path, body) as answer:
            data = await answer.rest()
            if answer.status != 200:
                raise refusal(self.name, answer.status, data)
            return json.loads(data)

    async def _parts(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
        async with self._asked("POST", path, json=body, headers={"Connection": "close"}) as response:
            async for part in response.content.iter_any():
                yield part

    async def _piped(self, path: str, body: Mapping[str, Any], most: int) -> AsyncGenerator[bytes, None]:
        """From the socket, in beats."""
        async with self._opened(path, body) as answer:
            part, came, began = await answer.more(), 0, time.monotonic()
            if answer.status != 200:
                raise refusal(self.name, answer.status, part + await answer.rest())
            while part:
                yield part
                came += part.count(b"data:")
                if seconds := beat(time.monotonic() - began, came, most - came):
                    await answer.beat(seconds)
                part = await answer.more()

    @asynccontextmanager
    async def _opened(self, path: str, body: Mapping[str, Any]) -> AsyncIterator[Answer]:
        """The answer of a server behind a socket."""
        if self._session.closed:
            raise EngineError(f"{self.name} is closed")
        try:
            async with answer_at(self._socket, self._request(path, body), CONNECT_SECONDS) as answer:
                yield answer
        except OSError as error:
            raise EngineError(f"{self.name} does not answer ({type(error).__name__})") from error

    def _request(self, path: str, body: Mapping[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        lines = [
            f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", "Content-Type: application/json",
            f"Content-Length: {len(data)}", *(f"{name}: {value}" for name, value in self._headers.items()),
        ]  # fmt: skip
        return "\r\n".join([*lines, "", ""]).encode() + data

    def _read(self, lines: Iterable[bytes]) -> list[dict[str, Any]]:
        """The events of whole lines. Raises what an error among them means."""
        found = []
        for line in lines:
            if line.startswith(b"data:") and (data := line[5:].strip()) != b"[DONE]":
                event: dict[str, Any] = json.loads(data)
                if "error" in event:
                    raise refusal(self.name, 500, data)
                found.append(event)
        return found

    @asynccontextmanager
    async def _asked(self, method: str, path: str, **rest: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session.closed:  # as another engine took its place
            raise EngineError(f"{self.name} is closed")
        try:
            async with self._session.request(
                method, self.url + path, allow_redirects=False, **rest
            ) as response:
                if response.status != 200:
                    raise refusal(self.name, response.status, await response.read())
                yield response
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise EngineError(f"{self.name} does not answer ({type(error).__name__})") from error


def beat(passed: float, came: int, left: int) -> float:
    """Seconds in which two more events come at least, and for which they may wait; 0: they may not.

    How many came in the time so far tells how fast they come. The end, where it is foreseen, does not wait.
    """
    each = passed / came if came else math.inf
    seconds = min(BEAT, HELD_SHARE * passed, left * each)
    return seconds if seconds >= 2 * each else 0.0


def refusal(name: str, status: int, body: bytes) -> RequestError | EngineError:
    """What a server's answer of an error means here."""
    error = _error(body)
    code, message = error.get("code"), str(error.get("message") or "no reason given")
    if str(code).isdecimal():  # a status, which in a stream is the only one; OpenAI's are words
        status = int(str(code))
    if status in (401, 403):
        return EngineError(f"{name} refuses the key that it was given")
    if "n_prompt_tokens" in error:
        return no_room(error["n_prompt_tokens"], error.get("n_ctx"))
    if found := TOO_LARGE.search(message):
        text = f"a text has {found[1]} tokens, more than the {found[2]} that this server takes at once"
        return RequestError(text, code=TOO_LONG, param="input")
    if code == TOO_LONG or "maximum context length" in message:
        return RequestError(message, code=TOO_LONG, param="prompt")
    if status in (400, 413, 422):
        return RequestError(message)
    if status in UNABLE:
        return RequestError(f"{name} cannot do this: {message}", status=UNABLE_STATUS)
    return EngineError(f"{name} failed: {message}")


def _error(body: bytes) -> Mapping[str, Any]:
    """What an answer says of its error: an object, or a text alone."""
    try:
        told = json.loads(body)
    except ValueError:
        return {}
    error = told.get("error", told) if isinstance(told, dict) else told  # vLLM's were without it once
    return error if isinstance(error, dict) else {"message": error if isinstance(error, str) else None}


def no_room(tokens: int, context: int | None) -> RequestError:
    """Of a prompt that fills the context."""
    text = f"the prompt has {tokens} tokens, which leaves no room in a context of {context}"
    return RequestError(text, code=TOO_LONG, param="prompt")


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


class OverHttp(ABC):
    """What every engine behind HTTP has: its server, once started, and what that says of its model."""

    name: str
    _http: Http
    _dialect: Dialect
    _model: str
    _vocabulary: int | None  # token ids that there are, where the server says so

    def __init__(self, slots: int, context: int | None) -> None:
        self.slots, self.context = slots, context or 0  # 0: before it has said so
        self._free = asyncio.Semaphore(slots)
        self._ends = AsyncExitStack()  # what close() has to end
        self._open = False  # from start() to close(), also where the server has crashed meanwhile
        self._reviving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        try:
            await self._begin()
        except BaseException:
            await self.close()
            raise
        self._open = True

    @abstractmethod
    async def _begin(self) -> None:
        """Find the server, and what it says of its model."""

    @abstractmethod
    def _ended(self) -> bool:
        """Whether the server was begun here, and has ended."""

    async def close(self) -> None:
        """Also in the middle of beginning again: what that has begun is ended, until it gives up.

        It is not cancelled, for asyncio waits forever where the beginning of a process is.
        """
        self._open = False
        await self._ends.aclose()
        while (reviving := self._reviving) is not None:
            await asyncio.wait([reviving], timeout=LOOK_SECONDS)
            await self._ends.aclose()

    def _revived(self) -> asyncio.Task[None] | None:
        """What begins a server again that has crashed, once for all who ask; None: it has not."""
        if self._reviving is None and self._open and self._ended():
            self._reviving = asyncio.create_task(self._revive())
        return self._reviving

    async def _revive(self) -> None:
        log.error("%s has crashed, and begins again", self.name)
        try:
            await self._ends.aclose()
            await self._begin()
        except (IsoflopError, EngineError, RequestError, OSError) as error:
            log.error("%s cannot begin again: %s", self.name, error)
            await self._ends.aclose()
        finally:
            self._reviving = None
        if not self._open:  # closed meanwhile
            await self._ends.aclose()

    async def _server(self) -> Http:
        """The server, begun again after a crash, also where whoever waits for that leaves."""
        if (reviving := self._revived()) is not None:
            await asyncio.shield(reviving)
            if self._ended():
                raise EngineError(f"{self.name} has crashed, and cannot begin again")
        return self._http

    async def _answers(self, path: str) -> bool:
        try:
            await self._http.get(path, seconds=ALIVE_SECONDS)
        except (EngineError, RequestError):
            return False
        return True

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        return await self._tokens(text, self._dialect.special if special else self._dialect.plain)

    async def _tokens(self, text: str, how: Mapping[str, Any]) -> list[int]:
        body = {"model": self._model, self._dialect.text: text, **how}
        ids: list[int] = (await (await self._server()).post("/tokenize", body))["tokens"]
        return ids

    async def detokenize(self, ids: Sequence[int]) -> str:
        wrong = next((i for i in ids if i < 0 or (self._vocabulary and i >= self._vocabulary)), None)
        if wrong is not None:
            raise RequestError(f"there is no token {wrong}", param="tokens")
        body = {"model": self._model, "tokens": list(ids)}
        text: str = (await (await self._server()).post("/detokenize", body))[self._dialect.text]
        return text
