"""llama.cpp in its own process: it says what llama.cpp's functions say, and goes when it shall."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest
import torch

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

import httpx
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf_models import CONTEXT, greedy, untrained, written

from isoflop.engines import open_engine
from isoflop.engines.reading import log_probabilities
from isoflop.errors import CorruptError, ProjectError
from isoflop.export.gguf import read_weights
from isoflop.serve.app import build_app
from isoflop.serve.chats import Template
from isoflop.serve.engines.http import Http
from isoflop.serve.engines.llamacpp import LlamaCpp, LlamaCppEmbeds
from isoflop.serve.engines.opening import opened_engine
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.protocol import (
    LENGTH,
    STOP,
    Embeds,
    Ending,
    Engine,
    EngineError,
    Generation,
    Piece,
    RequestError,
    Tokenizes,
    Writes,
)
from isoflop.serve.settings import Settings

PROMPT = "the day was"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine(file: Path, loop: asyncio.Runner) -> Iterator[LlamaCpp]:
    engine = LlamaCpp(file.parent, threads=1, slots=2)
    loop.run(engine.start())
    yield engine
    loop.run(engine.close())


async def answered(
    engine: LlamaCpp, prompt: str | tuple[int, ...] = PROMPT, tokens: int = 24, **more: object
) -> tuple[str, list[Piece], Ending]:
    asked = Generation(prompt, tokens, **{"temperature": 0.0, **more})  # type: ignore[arg-type]
    *pieces, ending = [part async for part in engine.generate(asked)]
    assert isinstance(ending, Ending)
    found = [piece for piece in pieces if isinstance(piece, Piece)]
    assert len(found) == len(pieces)
    return "".join(piece.text for piece in found), found, ending


def test_it_can_write_and_says_what_it_holds(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    assert isinstance(engine, Writes)
    assert not isinstance(engine, Embeds)
    assert (engine.name, engine.context, engine.slots, engine.schemas) == ("llama.cpp", CONTEXT, 2, True)
    assert loop.run(engine.alive())


def test_the_likeliest_text_is_that_of_the_functions(
    engine: LlamaCpp, loop: asyncio.Runner, file: Path
) -> None:
    ids, following = greedy(file, PROMPT, 100)
    text, pieces, ending = loop.run(answered(engine, tokens=100))
    expected = loop.run(engine.detokenize(following))
    assert "schöne Bäume" in text
    assert "日" in text
    assert expected.startswith(text)
    assert len(expected) - len(text) <= 1  # the end of it may be a part of a character
    assert all(piece.text and "\ufffd" not in piece.text for piece in pieces)
    assert any(piece.size > 1 for piece in pieces)  # characters of several tokens
    assert ending._replace(queued=None, cached=0) == Ending(LENGTH, len(ids), 100)
    assert sum(piece.size for piece in pieces) <= 100
    assert loop.run(answered(engine, tuple(ids), tokens=100))[0] == text


def test_probabilities_are_those_of_the_functions(engine: LlamaCpp, loop: asyncio.Runner, file: Path) -> None:
    text, pieces, _ = loop.run(answered(engine, tokens=20, logprobs=3))
    ids, following = greedy(file, PROMPT, 20)
    with open_engine(file) as functions:
        rows = log_probabilities(functions, ids + following)[len(ids) - 1 : -1]
    tokens = [token for piece in pieces for token in piece.tokens]
    assert "".join(token.text for token in tokens) == text
    assert len(tokens) == len(following)
    for token, row, i in zip(tokens, rows, following, strict=True):
        assert token.logprob == pytest.approx(row[i], abs=1e-3)
        assert [p for _, p in token.alternatives] == pytest.approx(sorted(row)[:-4:-1], abs=1e-3)
        assert token.alternatives[0] == (token.text, token.logprob)
    alone = loop.run(answered(engine, tokens=20, logprobs=0))[1]
    assert not any(token.alternatives for piece in alone for token in piece.tokens)
    alike = [token.logprob for piece in alone for token in piece.tokens]
    assert alike == pytest.approx([token.logprob for token in tokens], abs=1e-3)


def test_temperature_and_top_p_mean_what_they_mean_elsewhere(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    wild = loop.run(answered(engine, tokens=200, temperature=20.0, logprobs=41, seed=1))[1]
    tokens = [token for piece in wild for token in piece.tokens]
    ranks = [sum(p > token.logprob for _, p in token.alternatives) for token in tokens]
    assert max(ranks) > 40  # no top-k
    assert min(t.logprob - t.alternatives[0][1] for t in tokens) < -3.1  # no min-p of 0.05
    likeliest = loop.run(answered(engine))[0]
    assert loop.run(answered(engine, temperature=1.0, top_p=0.01))[0] == likeliest
    # Of the flat probabilities that the temperature makes; before it, one token had more than half of all.
    assert loop.run(answered(engine, temperature=20.0, top_p=0.5))[0] != likeliest


def test_a_seed_repeats_an_answer(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    texts = [loop.run(answered(engine, temperature=3.0, seed=seed))[0] for seed in (7, 7, 8, -(2**40), None)]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 4


def test_stops_end_an_answer_wherever_they_lie(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    whole, pieces, _ = loop.run(answered(engine))
    middle = len(pieces[0].text + pieces[1].text) + 1  # amid the third piece
    text, _, ending = loop.run(answered(engine, stop=(whole[middle : middle + 6], "never")))
    assert (text, ending.reason) == (whole[:middle], STOP)
    assert 3 <= ending.completion_tokens < 24
    assert ending.cached > 0
    text, _, ending = loop.run(answered(engine, stop=(whole[-4:] + "never",)))
    assert (text, ending.reason) == (whole, LENGTH)  # what had been held back is not lost


def test_a_prompt_that_was_computed_is_not_computed_again(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    prompt = "one two three four five six seven eight"
    first, again = (loop.run(answered(engine, prompt))[2] for _ in range(2))
    assert again.cached > first.cached
    assert again.cached == again.prompt_tokens - 1


def test_an_answer_keeps_to_a_schema(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["tree", "bird"]},
            "seen": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        },
        "required": ["kind", "seen"],
        "additionalProperties": False,
    }
    for seed in range(3):
        text, _, ending = loop.run(answered(engine, tokens=100, temperature=1.0, seed=seed, schema=schema))
        found = json.loads(text)
        assert (sorted(found), ending.reason) == (["kind", "seen"], STOP)
        assert found["kind"] in ("tree", "bird")
        assert [type(value) for value in found["seen"]] == [bool, bool]


@pytest.mark.parametrize(
    ("schema", "told"),
    [({"type": "nonsense"}, "nonsense"), ({"$ref": "#/nowhere"}, "nowhere"), ({"pattern": "["}, "regex")],
)
def test_a_schema_that_cannot_be_kept_to_is_refused(
    engine: LlamaCpp, loop: asyncio.Runner, schema: dict[str, str], told: str
) -> None:
    with pytest.raises(RequestError, match=told) as caught:
        loop.run(answered(engine, schema=schema))
    assert caught.value.status == 400


def test_a_prompt_that_leaves_no_room_is_refused(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    with pytest.raises(RequestError, match=rf"{CONTEXT + 44} tokens, .* {CONTEXT}$") as caught:
        loop.run(answered(engine, (5,) * (CONTEXT + 44)))
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    _, _, ending = loop.run(answered(engine, (5,) * (CONTEXT - 4), tokens=50))
    assert (ending.reason, ending.prompt_tokens) == (LENGTH, CONTEXT - 4)
    assert ending.completion_tokens < 6
    with pytest.raises(RequestError, match="invalid tokens"):
        loop.run(answered(engine, (5, 1_000_000)))


def test_an_empty_prompt_begins_a_text(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    text, _, ending = loop.run(answered(engine, ""))
    assert (text, ending.prompt_tokens) == (loop.run(answered(engine, (0,)))[0], 1)


@pytest.mark.parametrize("text", ["", "the day", "größer 日本 🙂\n\t\x00", "a<|endoftext|>b"])
def test_ids_are_those_of_the_functions(
    engine: LlamaCpp, loop: asyncio.Runner, file: Path, text: str
) -> None:
    ids = loop.run(engine.tokenize(text))
    with open_engine(file) as functions:
        assert ids == functions.encode(text)
    assert loop.run(engine.detokenize(ids)) == text


def test_special_tokens_of_a_chat_are_read_as_these_tokens(
    engine: LlamaCpp, loop: asyncio.Runner, file: Path
) -> None:
    """Not as the characters of their names, also where the template has written the first token itself."""
    special = "<|endoftext|>"
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = loop.run(engine.tokenize(PROMPT))
    assert loop.run(engine.tokenize(special + PROMPT, special=True)) == [0, *ids]
    gateway = Gateway(
        {"m": Model("m", engine, template=Template(source, special, special))}, Settings(open=True)
    )
    asked = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}

    async def chat() -> httpx.Response:
        transport = httpx.ASGITransport(build_app(gateway))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/v1/chat/completions", json=asked)

    assert loop.run(chat()).json()["usage"]["prompt_tokens"] == len([0, *ids, 0])


def test_what_is_no_token_is_refused(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    for ids in ([5, 1_000_000], [-1]):
        with pytest.raises(RequestError, match="there is no token"):
            loop.run(engine.detokenize(ids))


def test_streams_at_the_same_time_do_not_mix(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    prompts = ["the day", "ein kühler", "one two", "日本語", "four five", "a tree"]

    async def together() -> list[tuple[str, list[Piece], Ending]]:
        return await asyncio.gather(*(answered(engine, prompt) for prompt in prompts))

    texts = [text for text, _, _ in loop.run(together())]
    assert texts == [loop.run(answered(engine, prompt))[0] for prompt in prompts]


async def slots_idle(engine: LlamaCpp) -> None:
    """Returns once llama.cpp computes nothing."""
    while any(slot["is_processing"] for slot in await engine._http.get("/slots")):
        await asyncio.sleep(0.01)


def test_an_answer_that_is_left_frees_its_slot(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    async def left() -> None:
        streams = [engine.generate(Generation("one", 200, temperature=1.0)) for _ in range(2)]
        for stream in streams:
            assert isinstance(await anext(stream), Piece)
        third = asyncio.create_task(answered(engine, "two", tokens=4))
        fourth = asyncio.create_task(answered(engine, "three", tokens=4))
        await asyncio.sleep(0)
        fourth.cancel()  # while it waits
        assert await engine.tokenize("meanwhile")
        assert not third.done()
        await streams[0].aclose()
        _, _, ending = await third
        assert ending.queued is not None
        assert ending.queued > 0
        await streams[1].aclose()
        await asyncio.wait_for(slots_idle(engine), 60)
        assert len(await asyncio.gather(*(answered(engine, tokens=4) for _ in range(3)))) == 3

    loop.run(left())


def test_it_listens_to_its_parent_alone(engine: LlamaCpp, loop: asyncio.Runner) -> None:
    assert engine._process is not None
    child = psutil.Process(engine._process.pid)
    assert child.net_connections("tcp") == []
    (path,) = {Path(one.laddr) for one in child.net_connections("unix") if one.laddr}
    assert path.parent.stat().st_mode & 0o077 == 0

    async def without_key() -> None:
        stranger = Http("http://localhost", "it", key=None, connections=1, socket=str(path))
        with pytest.raises(EngineError, match="refuses the key"):
            await stranger.get("/slots")
        await stranger.close()

    loop.run(without_key())
    key = engine._http._session.headers["Authorization"].removeprefix("Bearer ")
    assert len(key) > 40
    assert key not in " ".join([*child.cmdline(), *child.environ().values()])


def test_its_death_is_told_and_it_begins_again(file: Path, loop: asyncio.Runner, tmp_path: Path) -> None:
    copy = tmp_path / "m.gguf"
    shutil.copy(file, copy)

    async def dies() -> None:
        engine = LlamaCpp(copy, threads=1, slots=2, context=CONTEXT)
        await engine.start()
        text, _, _ = await answered(engine)
        with pytest.raises(EngineError, match=r"llama\.cpp does not answer"):
            await cut(engine)
        left = asyncio.create_task(answered(engine))
        await asyncio.sleep(0)
        left.cancel()  # who leaves does not end what others wait for
        found = await asyncio.gather(answered(engine), answered(engine))
        assert [each[0] for each in found] == [text] * 2
        assert await engine.alive()
        copy.unlink()
        with pytest.raises(EngineError, match=r"llama\.cpp does not answer"):
            await cut(engine)
        for ask in (engine.tokenize("a"), engine.detokenize([1]), answered(engine)):
            with pytest.raises(EngineError, match=r"llama\.cpp has crashed, and cannot begin again$"):
                await ask
        shutil.copy(file, copy)
        while not await engine.alive():  # who asks only this wakes it, too
            await asyncio.sleep(0.01)
        assert (await answered(engine))[0] == text
        await engine.close()
        assert not await engine.alive()
        with pytest.raises(EngineError, match=r"llama\.cpp is closed"):
            await answered(engine)

    loop.run(dies())


async def cut(engine: LlamaCpp) -> None:
    """Kills the engine after the first piece of an answer, when it has more to tell than sockets hold."""
    assert engine._process is not None
    async with aclosing(engine.generate(Generation("one", 250, logprobs=300))) as stream:
        assert isinstance(await anext(stream), Piece)
        engine._process.kill()
        await engine._process.wait()
        async for part in stream:
            assert isinstance(part, Piece)


PARENT = """
import asyncio, sys
from pathlib import Path
from isoflop.serve.engines.llamacpp import LlamaCpp

async def main():
    engine = LlamaCpp(Path(sys.argv[1]), threads=1, slots=1)
    await engine.start()
    print(engine._process.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_it_ends_with_its_parent(file: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(file)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        (socket,) = {Path(one.laddr) for one in child.net_connections("unix") if one.laddr}
        assert socket.exists()
        parent.kill()
    child.wait(60)
    assert not socket.parent.exists()


@pytest.mark.parametrize("what", ["cut", "no header", "nothing"])
def test_a_damaged_file_is_told(file: Path, loop: asyncio.Runner, tmp_path: Path, what: str) -> None:
    damaged = tmp_path / "m.gguf"
    whole = file.read_bytes()
    damaged.write_bytes({"cut": whole[: len(whole) // 2], "no header": b"x" * 5000, "nothing": b""}[what])
    engine = LlamaCpp(damaged, threads=1, slots=1)
    with pytest.raises(CorruptError, match=r"m\.gguf") as caught:
        loop.run(engine.start())
    assert "export it again" in caught.value.hint
    assert not loop.run(engine.alive())


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="there is no artifact"):
        LlamaCpp(tmp_path / "m.gguf")


@torch.no_grad()
def pooled(file: Path, ids: list[int]) -> list[float]:
    """The mean of the tokens' last states by torch, of length 1."""
    model = untrained()
    read_weights(model, file)
    mean = model.model(torch.tensor([ids]))[0].mean(0)
    out: list[float] = (mean / mean.norm()).tolist()
    return out


def test_a_file_that_says_how_it_pools_makes_vectors(file: Path, tmp_path: Path) -> None:
    async def kind(path: Path) -> type[Engine]:
        engine = await opened_engine(path, threads=1, slots=1)
        await engine.close()
        return type(engine)

    assert asyncio.run(kind(file)) is LlamaCpp
    for pooling, expected in ((0, LlamaCpp), (3, LlamaCppEmbeds)):
        assert asyncio.run(kind(pooling_by(file, pooling, tmp_path / f"{pooling}.gguf"))) is expected
    with pytest.raises(ProjectError, match="ranks texts, which is not served"):
        asyncio.run(kind(pooling_by(file, 4, tmp_path / "4.gguf")))


def pooling_by(file: Path, pooling: int, to: Path) -> Path:
    """A copy of it that names this pooling in its header."""
    reader = GGUFReader(file)
    family = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(to, family)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], items)
    writer.add_uint32(f"{family}.pooling_type", pooling)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


def test_vectors_of_texts(file: Path, loop: asyncio.Runner) -> None:
    async def embedded() -> None:
        engine = LlamaCppEmbeds(file, threads=1, slots=3, context=100)
        await engine.start()
        try:
            assert 100 <= engine.context < CONTEXT
            assert isinstance(engine, Embeds)
            assert isinstance(engine, Tokenizes)
            assert not isinstance(engine, Writes)
            texts = ["the day was long", "one two", "the day was", "日本語", "the day was long"]
            vectors, tokens = await engine.embed(texts)
            ids = [await engine.tokenize(text) for text in texts]
            assert tokens == sum(map(len, ids))
            for vector, row in zip(vectors, ids, strict=True):
                assert vector == pytest.approx(pooled(file, row), abs=1e-3)
            assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
            assert len(await engine.embed(["!" * engine.context])) == 2
            with pytest.raises(RequestError, match=f"more than the {engine.context} ") as caught:
                await engine.embed(["one", "!" * (engine.context + 1)])
            assert caught.value.code == "context_length_exceeded"
        finally:
            await engine.close()

    loop.run(embedded())
