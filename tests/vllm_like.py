"""A server that answers in vLLM's words: in a test, or as a command named vllm on a test's path."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

# Variables: file of what it was begun with; it ends at once; it loads for ever.
NOTES, DIES, LOADS = "PRETENDED_NOTES", "PRETENDED_DIES", "PRETENDED_LOADS"
LAST_WORDS = "RuntimeError: no CUDA device is there"
SCRIPT = """#!{python}
import sys
sys.path.insert(0, {tests!r})
from vllm_like import main
main()
"""


def chunk(text: str, counted: int, finish: str | None = None, logprob: float | None = None) -> dict[str, Any]:
    """As vLLM's /v1/completions streams it."""
    told = None
    if logprob is not None:
        top = {" other": logprob - 1, text: logprob, " third": logprob - 2}
        told = {"tokens": [text], "token_logprobs": [logprob], "top_logprobs": [top], "text_offset": [0]}
    usage = {"prompt_tokens": 4, "completion_tokens": counted, "total_tokens": 4 + counted}
    choice = {"index": 0, "text": text, "logprobs": told, "finish_reason": finish}
    return {"id": "cmpl-1", "object": "text_completion", "choices": [choice], "usage": usage}


class Pretended:
    """A server that answers what it is told to, in vLLM's words, and keeps what it was asked."""

    def __init__(self, owner: str = "vllm") -> None:
        self.models = [{"id": "m", "object": "model", "owned_by": owner, "max_model_len": 100}]
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lines: list[str] = []
        self.refusal: tuple[int, dict[str, Any]] | None = None
        self.tokenizes = True
        self.left = asyncio.Event()  # a client has gone

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("Authorization"))
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": self.models})
        self.bodies.append(await request.json())
        if self.refusal is not None:
            return web.json_response(self.refusal[1], status=self.refusal[0])
        if request.path == "/tokenize" and not self.tokenizes:
            return web.json_response({"detail": "Not Found"}, status=404)
        if request.path == "/tokenize":
            return web.json_response({"count": 2, "max_model_len": 100, "tokens": [7, 8]})
        if request.path == "/detokenize":
            return web.json_response({"prompt": "seven eight"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        try:
            for line in self.lines:
                await response.write(line.encode())
            while not self.lines:
                await response.write(f"data: {json.dumps(chunk('x', 1))}\n\n".encode())
                await asyncio.sleep(0.01)
        except ConnectionError:
            self.left.set()
        return response

    def says(self, *events: dict[str, Any]) -> None:
        self.lines = [f"data: {json.dumps(event)}\r\n\r\n" for event in events] + ["data: [DONE]\n\n"]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()


class Keyed(Pretended):
    """Asks for its key at /v1, as vLLM does; the prompt "die" kills it."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.says(chunk(" one", 1), chunk(" two", 2, "stop"))

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/health":
            return web.Response()
        if request.path.startswith("/v1") and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if request.path == "/v1/completions" and (await request.json())["prompt"] == "die":
            os._exit(3)
        return await super().answer(request)


def main() -> None:
    """As `vllm serve MODEL --host HOST --port PORT`, with one process more."""
    print("INFO: loading", file=sys.stderr, flush=True)
    if os.environ.get(DIES):
        print(LAST_WORDS, flush=True)
        sys.exit(1)
    more = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    begun = {"argv": sys.argv, "pids": [os.getpid(), more.pid]}
    with open(os.environ[NOTES], "a") as notes:
        print(json.dumps(begun), file=notes, flush=True)
    if os.environ.get(LOADS):
        more.wait()
    given = dict(zip(sys.argv[3::2], sys.argv[4::2], strict=True))
    server = Keyed(os.environ["VLLM_API_KEY"])
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    web.run_app(app, host=given["--host"], port=int(given["--port"]), print=None)


def pretended(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """A command named vllm, first on the path; returns the file of its notes, a line each time it begins."""
    script = folder / "vllm"
    script.write_text(SCRIPT.format(python=sys.executable, tests=str(Path(__file__).parent)))
    script.chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=os.pathsep)
    patch.setenv(NOTES, str(folder / "notes"))
    return folder / "notes"
