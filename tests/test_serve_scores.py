"""How likely a given text is: every engine says what the model itself computes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny_qwen3

pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

from serving import on_a_socket
from vllm_like import Pretended

from isoflop.engines import open_engine
from isoflop.engines.reading import token_nats
from isoflop.serve.app import build_app
from isoflop.serve.engines.opening import opened_engine
from isoflop.serve.engines.remote import Remote
from isoflop.serve.engines.stepping import Stepping
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.protocol import EngineError, Generation, RequestError, Scores, Token
from isoflop.serve.settings import Settings

TEXT = "the day was bright and we saw a bird by the river"


def check(found: Sequence[Token], path: Path, ids: list[int], *, within: float) -> None:
    with open_engine(path) as engine:
        known = -token_nats(engine, ids)
    assert [token.logprob for token in found] == pytest.approx(known.tolist(), abs=within)
    assert all(len(token.alternatives) == 2 for token in found)
    for token in found:
        (_, best), (_, second) = token.alternatives
        assert best >= max(second, token.logprob - 1e-6)


def test_in_torch_and_through_the_gateway() -> None:
    engine = Stepping(tiny_qwen3(), threads=1)

    async def local() -> list[int]:
        await engine.start()
        assert isinstance(engine, Scores)
        ids = await engine.tokenize(TEXT)
        before = [part async for part in engine.generate(Generation(TEXT, 5, temperature=0))]
        check(await engine.score(ids, 2), tiny_qwen3(), ids, within=1e-4)
        after = [part async for part in engine.generate(Generation(TEXT, 5, temperature=0))]
        assert "".join(p.text for p in after[:-1]) == "".join(p.text for p in before[:-1])  # type: ignore[union-attr]
        long = np.random.default_rng(0).integers(0, 200, engine.context + 1).tolist()
        check(await engine.score(long, 2), tiny_qwen3(), long, within=1e-3)
        with pytest.raises(RequestError, match="tokens") as caught:
            await engine.score([*long, 1])
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(RequestError, match="no token of the model"):
            await engine.score([1, 1 << 20])
        assert await engine.score(ids[:1]) == []
        return ids

    ids = asyncio.run(local())
    app = build_app(Gateway({"m": Model("m", engine, "abc")}, Settings(open=True)))

    async def remote(url: str) -> None:
        far = Remote(url)
        await far.start()
        try:
            assert (far.context, far.about["hash"]) == (engine.context, "abc")
            check(await far.score(ids, 2), tiny_qwen3(), ids, within=1e-4)
            both = await far.scores([ids, ids[:4]])
            assert [len(one) for one in both] == [len(ids) - 1, 3]
            with pytest.raises(RequestError) as caught:
                await far.score([1] * (engine.context + 2))
            assert caught.value.code == "context_length_exceeded"
        finally:
            await far.close()

    with on_a_socket(app) as url:
        asyncio.run(remote(url))
    asyncio.run(engine.close())
    with pytest.raises(EngineError, match="is closed"):
        asyncio.run(engine.score(ids))


def test_by_llama_cpp_also_of_tokens_that_are_no_characters(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    from gguf_models import VOCABULARY, written

    file = written(tmp_path / "tiny.gguf")
    ids = np.random.default_rng(0).integers(1, VOCABULARY - 40, 40).tolist()

    async def work() -> None:
        engine = await opened_engine(file, threads=1, slots=2)
        try:
            assert isinstance(engine, Scores)
            with open_engine(file) as plain:
                alone = [id for id in ids if "\ufffd" in await engine.detokenize([id])]
                assert 0 < len(alone) < len(ids), plain.name
            check(await engine.score(ids, 2), file, ids, within=0.03)  # its cache is of 16 bits
            assert [token.alternatives for token in await engine.score(ids[:3])] == [(), ()]
            with pytest.raises(RequestError) as caught:
                await engine.score([1] * (engine.context + 1))
            assert caught.value.code == "context_length_exceeded"
        finally:
            await engine.close()

    asyncio.run(work())


class Echoes(Pretended):
    """Tells a prompt's probabilities as vLLM does, or what it is told to."""

    told: Any = None

    async def answer(self, request: Any) -> Any:
        if request.path != "/v1/completions":
            return await super().answer(request)
        from aiohttp import web

        self.bodies.append(await request.json())
        return web.json_response({"choices": [{"index": 0, "text": "ab", "logprobs": self.told}]})


def test_vllm_is_asked_to_echo() -> None:
    server = Echoes()

    async def work() -> None:
        async with server.running() as url:
            engine = Remote(url)
            await engine.start()
            tops = [None, {"b": -0.25, "c": -2.0}]
            server.told = {"tokens": ["a", "b"], "token_logprobs": [None, -0.25], "top_logprobs": tops}
            found = await engine.score([7, 8], 1)
            assert found == [Token("b", -0.25, (("b", -0.25),))]
            asked = {"model": "m", "prompt": [[7, 8]], "echo": True, "max_tokens": 0, "logprobs": 1}
            assert server.bodies == [asked]
            server.told = None
            with pytest.raises(EngineError, match="does not tell how likely"):
                await engine.score([7, 8])
            await engine.close()

    asyncio.run(work())
