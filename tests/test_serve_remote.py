"""Servers elsewhere: llama.cpp's own, which is real, and one that answers in vLLM's words."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

from gguf_models import CONTEXT, greedy
from vllm_like import Pretended, chunk

from isoflop.errors import IsoflopError
from isoflop.serve.engines.llamacpp import CHILD
from isoflop.serve.engines.opening import KEY_VARIABLE, opened_engine
from isoflop.serve.engines.remote import Remote
from isoflop.serve.opening import Opening, closed, opened_models
from isoflop.serve.protocol import (
    LENGTH,
    STOP,
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
def address(tiny_gguf: Path) -> Iterator[str]:
    """Of llama.cpp's server."""
    begin = [sys.executable, "-c", f"from {CHILD} import main; main()"]
    child = subprocess.Popen(begin, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    asked = {
        "path": str(tiny_gguf), "slots": 2, "context": None, "key": KEY, "threads": 1, "connections": 8,
        "embedding": False, "socket": None,
    }  # fmt: skip
    child.stdin.write(json.dumps(asked).encode() + b"\n")
    child.stdin.flush()
    yield json.loads(child.stdout.readline())["url"]
    child.stdin.close()
    child.wait(60)


def test_llama_cpp_elsewhere_answers_as_its_functions_do(
    address: str, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    ids, following = greedy(tiny_gguf, "the day was", 30)

    async def asked() -> None:
        engine = Remote(address + "/v1/", key_variable=KEY_VARIABLE)
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


def test_vllm_is_asked_in_its_words_and_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)

    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url, key_variable=KEY_VARIABLE)
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
        (400, {"message": "too long", "code": "context_length_exceeded"}, "context_length_exceeded", "long"),
        (400, {"message": "no", "code": "invalid_value"}, None, "no"),
        (400, {"message": "no", "code": "400"}, None, "no"),
        (
            401,
            {"message": "no sk-1", "code": "invalid_api_key"},
            EngineError,
            "refuses the key that it was given$",
        ),
        (400, "no such thing", None, "no such thing"),
        (500, [1], EngineError, "no reason given"),
        (400, {"message": None, "n_prompt_tokens": 9}, "context_length_exceeded", "9 tokens"),
    ],
)
def test_errors_are_told_apart(status: int, error: Any, kind: Any, told: str) -> None:
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


def test_where_a_server_is_and_its_password_are_not_told_to_clients() -> None:
    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url.replace("http://", "http://me:word@"))
            await engine.start()
            assert server.keys[-1] == "Basic bWU6d29yZA=="
            server.refusal = 500, {"error": {"message": "out of memory"}}
            with pytest.raises(EngineError, match=r"^the vLLM server failed: out of memory$"):
                await answered(engine, Generation("a", 9))
        with pytest.raises(EngineError, match=r"^the vLLM server does not answer"):
            await answered(engine, Generation("a", 9))
        await engine.close()
        with pytest.raises(IsoflopError, match=r"^http://127\.0\.0\.1:\d+ does not answer"):
            await Remote(url.replace("http://", "http://me:word@")).start()

    asyncio.run(asked())


@pytest.mark.parametrize(
    ("prompt", "most", "sent", "counted"),
    [((1, 2, 3), 100, 97, 0), ((1, 2, 3), 50, 50, 0), ("a" * 90, 100, 98, 1), ("a" * 60, 24, 24, 0)],
)
def test_no_more_is_asked_for_than_the_context_has_room_for(
    prompt: Any, most: int, sent: int, counted: int
) -> None:
    """Of a server with a context of 100 tokens, to which every text has two."""

    async def asked() -> None:
        server = Pretended()
        async with server.running() as url:
            engine = Remote(url)
            await engine.start()
            server.says(chunk(" one", 1, "stop"))
            await answered(engine, Generation(prompt, most))
            *counts, body = server.bodies
            assert body["max_tokens"] == sent
            assert counts == [{"model": "m", "prompt": prompt, "add_special_tokens": True}] * counted
            with pytest.raises(RequestError, match="leaves no room in a context of 100") as caught:
                await answered(engine, Generation((1,) * 100, most))
            assert caught.value.code == "context_length_exceeded"
            await engine.close()

    asyncio.run(asked())


def test_a_server_that_cannot_count_is_trusted_with_its_context() -> None:
    async def asked() -> None:
        server = Pretended()
        server.tokenizes = False
        async with server.running() as url:
            engine = Remote(url)
            await engine.start()
            server.says(chunk(" one", 1, "stop"))
            assert (await answered(engine, Generation("a", 100)))[0] == " one"
            assert server.bodies[-1]["max_tokens"] == 100
            await engine.close()

    asyncio.run(asked())


def test_a_key_is_for_the_server_that_it_is_named_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "common")
    monkeypatch.setenv(f"{KEY_VARIABLE}_GPU_1", "own")

    async def keys(*names: str) -> list[set[str | None]]:
        servers = [Pretended() for _ in names]
        async with AsyncExitStack() as running:
            named = {
                name: await running.enter_async_context(server.running())
                for name, server in zip(names, servers, strict=True)
            }
            await closed(await opened_models(named, None, Opening(None, 1, None)))
        return [set(server.keys) for server in servers]

    assert asyncio.run(keys("gpu-1", "other")) == [{"Bearer own"}, {None}]
    assert asyncio.run(keys("gpu-1")) == [{"Bearer own"}]
    assert asyncio.run(keys("other")) == [{"Bearer common"}]


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
                with pytest.raises(IsoflopError, match="m, n") as caught:
                    await Remote(url, model=model).start()
                assert f"{url}#MODEL" in caught.value.hint
            engine = await opened_engine(f"{url}/v1#n")
            assert isinstance(engine, Remote)
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
