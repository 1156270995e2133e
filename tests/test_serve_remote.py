"""Servers elsewhere: llama.cpp's own, which is real, and one that answers in vLLM's words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

from aiohttp import web
from gguf_models import CONTEXT, greedy, written

from isoflop.errors import IsoflopError
from isoflop.serve.engines.llamacpp import CHILD
from isoflop.serve.engines.remote import KEY_VARIABLE, Remote, RemoteEmbeds
from isoflop.serve.protocol import (
    LENGTH,
    STOP,
    Embeds,
    Ending,
    EngineError,
    Generation,
    Piece,
    RequestError,
    Token,
    Writes,
)

KEY = "a key of this test"
SCHEMA = {"enum": ["tree"]}


async def answered(engine: Remote, asked: Generation) -> tuple[str, list[Piece], Ending]:
    *pieces, ending = [part async for part in engine.generate(asked)]
    assert isinstance(ending, Ending)
    found = [piece for piece in pieces if isinstance(piece, Piece)]
    return "".join(piece.text for piece in found), found, ending


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def address(file: Path) -> Iterator[str]:
    """Of llama.cpp's server."""
    begin = [sys.executable, "-c", f"from {CHILD} import main; main()"]
    child = subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    asked = {
        "path": str(file), "slots": 2, "context": None, "key": KEY, "threads": 1, "connections": 8,
        "embedding": False, "socket": None,
    }  # fmt: skip
    child.stdin.write(json.dumps(asked).encode() + b"\n")
    child.stdin.flush()
    yield json.loads(child.stdout.readline())["url"]
    child.stdin.close()
    child.wait(60)


def test_llama_cpp_elsewhere_answers_as_its_functions_do(
    address: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    ids, following = greedy(file, "the day was", 30)

    async def asked() -> None:
        engine = Remote(address + "/v1/")
        await engine.start()
        assert isinstance(engine, Writes)
        assert (engine.name, engine.context, engine.schemas) == ("llama.cpp", CONTEXT, True)
        assert await engine.alive()
        assert await engine.tokenize("the day was") == ids
        assert await engine.detokenize(ids) == "the day was"
        likeliest = Generation("the day was", 30, temperature=0, logprobs=2)
        text, pieces, ending = await answered(engine, likeliest)
        assert (await engine.detokenize(following)).startswith(text)
        assert ending._replace(queued=None, cached=0) == Ending(LENGTH, len(ids), 30)
        tokens = [token for piece in pieces for token in piece.tokens]
        assert "".join(token.text for token in tokens) == text
        assert all(token.alternatives[0][1] == token.logprob for token in tokens)
        text, _, ending = await answered(engine, Generation("a", 30, schema=SCHEMA, seed=1))
        assert (json.loads(text), ending.reason) == ("tree", STOP)
        with pytest.raises(RequestError, match=f"300 tokens, .* {CONTEXT}$") as caught:
            await answered(engine, Generation((5,) * 300, 1))
        assert caught.value.code == "context_length_exceeded"
        stream = engine.generate(Generation("one", 200, temperature=1.0))
        assert isinstance(await anext(stream), Piece)
        await stream.aclose()
        assert (await answered(engine, likeliest))[2].completion_tokens == 30
        vectors = RemoteEmbeds(address)
        await vectors.start()
        with pytest.raises(RequestError, match="does not support embeddings") as caught:
            await vectors.embed(["one"])
        assert caught.value.status == 501
        await vectors.close()
        await engine.close()

    asyncio.run(asked())


def test_a_wrong_key_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "wrong")
    with pytest.raises(IsoflopError, match="refuses the key") as caught:
        asyncio.run(Remote(address, key_variable="OTHER_KEY").start())
    assert "OTHER_KEY" in caught.value.hint
    assert "wrong" not in str(caught.value) + caught.value.hint


def test_nobody_there_is_told() -> None:
    with pytest.raises(IsoflopError, match=r"127\.0\.0\.1:9 does not answer"):
        asyncio.run(Remote("http://127.0.0.1:9").start())


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
        self.left = asyncio.Event()  # a client has gone

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.keys.append(request.headers.get("Authorization"))
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": self.models})
        self.bodies.append(await request.json())
        if self.refusal is not None:
            return web.json_response(self.refusal[1], status=self.refusal[0])
        if request.path == "/tokenize":
            return web.json_response({"count": 2, "max_model_len": 100, "tokens": [7, 8]})
        if request.path == "/detokenize":
            return web.json_response({"prompt": "seven eight"})
        if request.path == "/v1/embeddings":
            rows = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
            return web.json_response({"data": rows, "usage": {"prompt_tokens": 5, "total_tokens": 5}})
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


def test_vllm_is_asked_in_its_words_and_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)

    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url)
            await engine.start()
            assert (engine.name, engine.context, engine.schemas) == ("vLLM", 100, True)
            assert set(server.keys) == {f"Bearer {KEY}"}
            last = chunk("", 5, "stop")
            last["usage"]["prompt_tokens_details"] = {"cached_tokens": 3}
            server.says(chunk(" one", 2, logprob=-0.5), chunk("", 3), chunk(" two", 4), last)
            sought = Generation(
                (1, 2), 9, temperature=0.5, top_p=0.9, stop=("\n",), seed=-1, logprobs=2, schema=SCHEMA
            )
            _, pieces, ending = await answered(engine, sought)
            first = Token(" one", -0.5, ((" one", -0.5), (" other", -1.5)))
            assert pieces == [Piece(" one", 2, (first,)), Piece(" two", 2)]
            assert ending._replace(queued=None) == Ending(STOP, 4, 5, None, 3)
            body = server.bodies[-1]
            wanted = {
                "model": "m", "prompt": [1, 2], "max_tokens": 9, "temperature": 0.5, "top_p": 0.9,
                "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop": ["\n"], "logprobs": 2,
                "stream": True,
            }  # fmt: skip
            assert {name: body[name] for name in wanted} == wanted
            assert 0 <= body["seed"] < 2**32
            assert body["response_format"]["json_schema"]["schema"] == SCHEMA
            assert await engine.tokenize("a") == [7, 8]
            assert server.bodies[-1] == {"model": "m", "prompt": "a", "add_special_tokens": False}
            assert await engine.detokenize([7, 8]) == "seven eight"
            vectors = RemoteEmbeds(url)
            await vectors.start()
            assert isinstance(vectors, Embeds)
            assert await vectors.embed(["a", "b"]) == ([[1.0, 0.0], [0.0, 1.0]], 5)
            await vectors.close()
            await engine.close()

    asyncio.run(asked())


LONG = "This model's maximum context length is 100 tokens. However, you requested 109 tokens."


@pytest.mark.parametrize(
    ("status", "error", "kind", "told"),
    [
        (400, {"message": LONG, "code": 400}, "context_length_exceeded", "100 tokens"),
        (400, {"message": "bad seed", "code": 400}, None, "bad seed"),
        (404, {"message": "no such route", "code": 404}, None, "cannot do this: no such route"),
        (401, {"message": "Unauthorized"}, EngineError, "refuses the key"),
        (500, {"message": "out of memory"}, EngineError, "out of memory"),
        (503, {}, EngineError, "no reason given"),
    ],
)
def test_errors_are_told_apart(status: int, error: dict[str, Any], kind: Any, told: str) -> None:
    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url)
            await engine.start()
            server.refusal = status, {"error": error}
            expected = EngineError if kind is EngineError else RequestError
            with pytest.raises(expected, match=told) as caught:
                await answered(engine, Generation("a", 9))
            if isinstance(caught.value, RequestError):
                assert caught.value.code == kind
            await engine.close()

    asyncio.run(asked())


def test_an_answer_that_breaks_off_is_an_error() -> None:
    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url)
            await engine.start()
            server.says(chunk(" one", 1))
            with pytest.raises(EngineError, match="in the middle"):
                await answered(engine, Generation("a", 9))
            server.says(chunk(" one", 1), {"error": {"message": "engine died", "code": 500}})
            with pytest.raises(EngineError, match="engine died"):
                await answered(engine, Generation("a", 9))
            server.says(chunk(" one", 1, "length"))
            assert (await answered(engine, Generation("a", 9)))[2].reason == LENGTH
            await engine.close()

    asyncio.run(asked())


def test_a_client_that_goes_takes_its_request_with_it() -> None:
    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url, slots=1)
            await engine.start()
            stream = engine.generate(Generation("a", 9))
            assert isinstance(await anext(stream), Piece)
            await stream.aclose()
            await asyncio.wait_for(server.left.wait(), 60)
            server.says(chunk(" one", 1, "stop"))
            assert (await answered(engine, Generation("a", 9)))[0] == " one"
            await engine.close()
        assert not await engine.alive()

    asyncio.run(asked())


def test_one_of_several_models_has_to_be_named() -> None:
    async def asked() -> None:
        server = Pretended("somebody")
        server.models.append({**server.models[0], "id": "n"})
        async with server.running() as url:
            for model in (None, "o"):
                with pytest.raises(IsoflopError, match="m, n"):
                    await Remote(url, model=model).start()
            engine = Remote(url, model="n")
            await engine.start()
            assert (engine.name, engine.schemas) == ("OpenAI-compatible", False)
            with pytest.raises(RequestError, match="cannot keep to a schema"):
                await answered(engine, Generation("a", 9, schema=SCHEMA))
            await engine.close()
            del server.models[1]["max_model_len"]
            with pytest.raises(IsoflopError, match="how long its context is"):
                await Remote(url, model="n").start()
            told = Remote(url, model="n", context=50)
            await told.start()
            assert told.context == 50
            await told.close()

    asyncio.run(asked())
