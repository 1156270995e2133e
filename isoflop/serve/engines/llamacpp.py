"""llama.cpp's server with continuous batching, from the wheel of xllamacpp, in a process of its own.

So its crash is not ours, it never waits for this process's interpreter, and a second one can be started
before the first ends. It listens at a socket in a folder of this user's alone, with a key that nobody else
knows: to connect costs less there than on loopback, and llama.cpp wants a new connection for every answer.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from isoflop import errors
from isoflop.engines import opened
from isoflop.errors import CorruptError
from isoflop.serve.engines.forced import forced
from isoflop.serve.engines.http import LLAMA_CPP, SPARE, Http, OverHttp, sampling, tokens_of
from isoflop.serve.engines.stops import Stops
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Token
from isoflop.waiting import waiting
from isoflop.workers import cores

CHILD = "isoflop.serve.engines.llamacpp_child"
SOCKET = "llama.sock"  # by its end llama.cpp knows it from a host
COMPLAINTS = 4096  # bytes of them that are kept
END_SECONDS = 5.0  # that the process has to end by itself
CACHED = "timings/cache_n"
FINAL = ["stop", "stop_type", "tokens_predicted", "tokens_evaluated", CACHED]  # of the last event, else long
WRITING = "timings/predicted_ms"
WRITTEN = ["content", "completion_probabilities", WRITING]  # likewise, of an answer that is not streamed
HALF = "\ufffd"  # what a character that was cut is read as
# Spaces as json.dumps has them and no others: a small model, once in white space, does not find out again.
SPACES = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class _Served(OverHttp):
    """A .gguf file, or the folder that has one, with a context for each slot.

    `context` None: as the model was trained, at most 8,192 tokens. Raises ProjectError where there is no file
    or no llama.cpp.
    """

    name = LLAMA_CPP.name
    _dialect = LLAMA_CPP
    _embedding: bool
    _vocabulary: int

    def __init__(
        self, path: Path, *, threads: int | None = None, slots: int = 8, context: int | None = None
    ) -> None:
        super().__init__(slots, context)
        self._path, self._threads, self._asked_context = opened(path).absolute(), threads, context
        self._process: asyncio.subprocess.Process | None = None
        self._complaints = b""  # of the process, the last

    async def _begin(self) -> None:
        # It finds modules where this process does: with -m alone, first in whatever folder this is.
        code = f"import sys; sys.path[:] = {sys.path}; from {CHILD} import main; main()"
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", code, start_new_session=True,  # the terminal's Ctrl-C is not for it
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env=waiting(),
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        listening = asyncio.create_task(self._listen(process))
        self._ends.push_async_callback(self._end, process, listening)
        key, connections = secrets.token_urlsafe(32), self.slots + SPARE
        folder = self._ends.enter_context(tempfile.TemporaryDirectory(prefix="isoflop-"))
        socket = None if sys.platform == "win32" else f"{folder}/{SOCKET}"
        asked = {
            "path": str(self._path), "slots": self.slots, "context": self._asked_context, "key": key,
            "threads": self._threads or cores(), "connections": connections, "embedding": self._embedding,
            "socket": socket,
        }  # fmt: skip
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        line = await process.stdout.readline()
        if not line:
            await listening
            lines = self._complaints.decode(errors="replace").split("\n")
            said = next((line for line in reversed(lines) if line), f"status {await process.wait()}")
            raise CorruptError(f"llama.cpp ended as it opened {self._path}: {said}", hint="export it again")
        told = json.loads(line)
        if "error" in told:
            raise getattr(errors, told["error"])(told["message"], hint=told["hint"])
        url = told["url"] if socket is None else "http://localhost"
        self._http = Http(url, self.name, key=key, connections=connections, socket=socket)
        self._ends.push_async_callback(self._http.close)
        about = (await self._http.get("/v1/models"))["data"][0]
        self._model, self._vocabulary = about["id"], about["meta"]["n_vocab"]
        self.context = min(about["meta"]["n_ctx"], told["at_once"])
        self._first = (await self._http.get("/props"))["bos_token"]

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Reads what it complains of, so that it never waits for a reader."""
        assert process.stderr is not None
        while part := await process.stderr.read(COMPLAINTS):
            self._complaints = (self._complaints + part)[-COMPLAINTS:]

    def _ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def alive(self) -> bool:
        """Where it is not, after a crash, it begins again: who is not alive is asked for nothing else."""
        return self._revived() is None and not self._ended() and await self._answers("/health")

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
            http = await self._server()
            if not body["stream"]:
                event = await http.at_once("/completion", body)
                for item in self._whole(event, asked.logprobs, queued):
                    yield item
                return
            async with aclosing(http.events("/completion", body, asked.max_tokens)) as parts:
                async for part in parts:
                    for event in part:
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

    async def score(self, ids: Sequence[int], alternatives: int = 0) -> list[Token]:
        async with self._free:
            return await forced(await self._server(), ids, alternatives, self._vocabulary)

    async def _body(self, asked: Generation) -> dict[str, Any]:
        prompt = asked.prompt or self._first
        if not prompt:
            raise RequestError(
                "the prompt is empty, and this model has no token to begin with", param="prompt"
            )
        body = {
            "prompt": prompt, "n_predict": asked.max_tokens, "response_fields": FINAL,
            "timings_per_token": bool(asked.stop), **sampling(asked, self._dialect),
        }  # fmt: skip
        # A text that ends the answer is found in its pieces, and then the rest is not written.
        body["stream"] = not asked.whole or bool(asked.stop)
        if not body["stream"]:
            body["response_fields"] = [*FINAL, *WRITTEN]
        if asked.logprobs is not None:
            body["n_probs"] = max(1, asked.logprobs)
        if asked.schema is not None:
            schema = {**asked.schema, "x-guidance": SPACES}
            await asyncio.to_thread(check_schema, schema)
            body["json_schema"] = schema
        return body

    def _whole(
        self, event: Mapping[str, Any], alternatives: int | None, queued: float
    ) -> Iterator[Piece | Ending]:
        """An answer that came as one."""
        text, reason = event["content"], LENGTH if event["stop_type"] == "limit" else STOP
        if reason == LENGTH:
            text = text.removesuffix(HALF)
        tokens = () if alternatives is None else tokens_of(event["completion_probabilities"], alternatives)
        if text:
            yield Piece(text, event["tokens_predicted"], tokens)
        yield self._ending(event, reason, queued)._replace(writing=event[WRITING] / 1000)

    def _ending(self, event: Mapping[str, Any], reason: str, queued: float) -> Ending:
        cached = event[CACHED] if event["stop"] else event["timings"]["cache_n"]
        return Ending(reason, event["tokens_evaluated"], event["tokens_predicted"], queued, cached)


class LlamaCppEmbeds(_Served):
    """Makes vectors: by the pooling that the file names, else by the mean of the tokens' last states."""

    _embedding = True

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        body = {"model": self._model, "input": list(texts), "encoding_format": "float"}
        answer = await (await self._server()).post("/v1/embeddings", body)
        rows = sorted(answer["data"], key=lambda row: int(row["index"]))
        return [row["embedding"] for row in rows], answer["usage"]["prompt_tokens"]


def check_schema(schema: Mapping[str, Any]) -> None:
    """Raises RequestError where llama.cpp cannot keep to a schema: it would leave it out and say nothing."""
    from llguidance import LLMatcher

    grammar = LLMatcher.grammar_from_json_schema(dict(schema))
    wrong, said = LLMatcher.validate_grammar_with_warnings(grammar)
    if wrong:
        reason = said[0].rpartition("JSON schema: ")[2].partition("\n")[0]
        raise RequestError(f"this JSON schema cannot be kept to: {reason}", param="response_format")
