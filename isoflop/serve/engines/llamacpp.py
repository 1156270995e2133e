"""llama.cpp's server with continuous batching, from the wheel of xllamacpp, in a process of its own.

So its crash is not ours, it never waits for this process's interpreter, and a second one can be started
before the first ends. It listens on loopback, at a port and with a key that it alone knows.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

from isoflop import errors
from isoflop.engines import opened
from isoflop.errors import CorruptError
from isoflop.serve.engines.http import (
    ALIVE_SECONDS,
    LLAMA_CPP,
    SPARE,
    Embedding,
    Http,
    Tokenizing,
    sampling,
    tokens_of,
)
from isoflop.serve.engines.stops import Stops
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Token
from isoflop.workers import cores

CHILD = "isoflop.serve.engines.llamacpp_child"
END_SECONDS = 5.0  # that the process has to end by itself
CACHED = "timings/cache_n"
FINAL = ["stop", "stop_type", "tokens_predicted", "tokens_evaluated", CACHED]  # of the last event, else long
# Spaces as json.dumps has them and no others: a small model, once in white space, does not find out again.
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class _Served(Tokenizing):
    """A .gguf file, or the folder that has one, with a context for each slot.

    `context` None: as the model was trained, at most 8,192 tokens. Raises ProjectError where there is no file
    or no llama.cpp.
    """

    name = LLAMA_CPP.name
    _dialect = LLAMA_CPP
    _embedding: bool

    def __init__(
        self, path: Path, *, threads: int | None = None, slots: int = 8, context: int | None = None
    ) -> None:
        self._path, self._threads, self._asked_context = opened(path).absolute(), threads, context
        self.slots, self.context = slots, context or 0
        self._process: asyncio.subprocess.Process | None = None
        self._ends = AsyncExitStack()  # what close() has to end
        self._heard: deque[str] = deque(maxlen=20)  # of what the process complained last
        self._free = asyncio.Semaphore(slots)

    async def start(self) -> None:
        """Returns when it answers: llama.cpp warms itself up as it loads."""
        try:
            await self._begin()
        except BaseException:
            await self.close()
            raise

    async def _begin(self) -> None:
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", CHILD, start_new_session=True,  # the terminal's Ctrl-C is not for it
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        listening = asyncio.create_task(self._listen(process))
        self._ends.push_async_callback(self._end, process, listening)
        key, connections = secrets.token_urlsafe(32), self.slots + SPARE
        asked = {
            "path": str(self._path), "slots": self.slots, "context": self._asked_context, "key": key,
            "threads": self._threads or cores(), "connections": connections, "embedding": self._embedding,
        }  # fmt: skip
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        line = await process.stdout.readline()
        if not line:
            await listening
            said = self._heard[-1] if self._heard else f"status {await process.wait()}"
            raise CorruptError(f"llama.cpp ended as it opened {self._path}: {said}", hint="export it again")
        told = json.loads(line)
        if "error" in told:
            raise getattr(errors, told["error"])(told["message"], hint=told["hint"])
        self._http = Http(told["url"], self.name, key=key, connections=connections)
        self._ends.push_async_callback(self._http.close)
        about = (await self._http.get("/v1/models"))["data"][0]
        self._model, self._vocabulary = about["id"], about["meta"]["n_vocab"]
        self.context = min(about["meta"]["n_ctx"], told["at_once"])
        self._first = (await self._http.get("/props"))["bos_token"]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Reads what it complains of, so that it never waits for a reader."""
        assert process.stderr is not None
        async for line in process.stderr:
            self._heard.append(line.decode(errors="replace").strip())

    async def alive(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            return False
        try:
            await self._http.get("/health", seconds=ALIVE_SECONDS)
        except (EngineError, RequestError):
            return False
        return True

    async def close(self) -> None:
        await self._ends.aclose()

    async def _end(self, process: asyncio.subprocess.Process, listening: asyncio.Task[None]) -> None:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), END_SECONDS)
        except TimeoutError:
            process.kill()
            await process.wait()
        await listening


class LlamaCpp(_Served):
    """Writes.

    The prompt's text is read as llama.cpp reads prompts: names of special tokens are these tokens, and it
    begins with what the file says that texts begin with. Of a character that is several tokens llama.cpp
    tells the probability of the last token alone.
    """

    schemas = True
    _embedding = False

    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        body, stops = await self._body(asked), Stops(asked.stop)
        since = time.monotonic()
        async with self._free:
            queued = time.monotonic() - since
            counted, tokens = 0, tuple[Token, ...]()
            async with aclosing(self._http.events("/completion", body)) as events:
                async for event in events:
                    if event["stop"]:
                        for held in stops.rest():
                            yield held
                        reason = LENGTH if event["stop_type"] == "limit" else STOP
                        yield self._ending(event, reason, queued)
                        return
                    if asked.logprobs is not None:
                        tokens += tokens_of(event["completion_probabilities"], asked.logprobs)
                    if not event["content"]:  # so far no whole character
                        continue
                    piece = Piece(event["content"], event["tokens_predicted"] - counted, tokens)
                    counted, tokens = event["tokens_predicted"], ()
                    for free in stops.push(piece):
                        yield free
                    if stops.hit:
                        yield self._ending(event, STOP, queued)
                        return
            raise EngineError(f"{self.name} ended in the middle of an answer")

    async def _body(self, asked: Generation) -> dict[str, Any]:
        prompt = asked.prompt or self._first
        if not prompt:
            raise RequestError(
                "the prompt is empty, and this model has no token to begin with", param="prompt"
            )
        body = {
            "prompt": prompt, "n_predict": asked.max_tokens, "stream": True, "response_fields": FINAL,
            "timings_per_token": bool(asked.stop), **sampling(asked, self._dialect),
        }  # fmt: skip
        if asked.logprobs is not None:
            body["n_probs"] = max(1, asked.logprobs)
        if asked.schema is not None:
            schema = {**asked.schema, "x-guidance": SPACES}
            await asyncio.to_thread(check_schema, schema)
            body["json_schema"] = schema
        return body

    def _ending(self, event: Mapping[str, Any], reason: str, queued: float) -> Ending:
        cached = event[CACHED] if event["stop"] else event["timings"]["cache_n"]
        return Ending(reason, event["tokens_evaluated"], event["tokens_predicted"], queued, cached)


class LlamaCppEmbeds(Embedding, _Served):
    """Makes vectors: by the pooling that the file names, else by the mean of the tokens' last states."""

    _embedding = True


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises RequestError where llama.cpp cannot keep to a schema: it would leave it out and say nothing."""
    from llguidance import LLMatcher

    said = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(dict(schema)))
    if said:
        reason = said.rpartition("JSON schema: ")[2].partition("\n")[0]
        raise RequestError(f"this JSON schema cannot be kept to: {reason}", param="response_format")
