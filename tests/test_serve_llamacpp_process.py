"""llama.cpp's own process: its slots, who may talk to it, and that it goes when it shall."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

from gguf_models import CONTEXT
from llamas import answered, started

from isoflop.errors import CorruptError, ProjectError
from isoflop.serve.engines.http import Http
from isoflop.serve.engines.llamacpp import LlamaCpp
from isoflop.serve.protocol import Ending, EngineError, Generation, Piece


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path, loop: asyncio.Runner) -> Iterator[LlamaCpp]:
    with started(tiny_gguf, loop) as engine:
        yield engine


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


def test_an_answer_that_comes_whole_and_is_left_frees_its_slot(
    engine: LlamaCpp, loop: asyncio.Runner
) -> None:
    async def left() -> None:
        for _ in range(20):  # on a busy machine it may be over before it was seen
            asked = asyncio.create_task(answered(engine, "one", tokens=10_000, temperature=1.0, whole=True))
            while not asked.done():
                if any(slot["is_processing"] for slot in await engine._http.get("/slots")):
                    break
            if asked.cancel():
                break
        await asyncio.wait_for(slots_idle(engine), 60)
        assert asked.cancelled()

    loop.run(left())


def test_its_threads_do_not_wait_for_each_other_in_a_loop_forever(
    tiny_gguf: Path, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spin() -> str:
        with started(tiny_gguf, loop) as engine:
            assert engine._process is not None
            return str(psutil.Process(engine._process.pid).environ()["GOMP_SPINCOUNT"])

    assert 0 < int(spin()) < 100_000
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")  # who says so himself is heard
    assert spin() == "7"


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


def test_its_death_is_told_and_it_begins_again(tiny_gguf: Path, loop: asyncio.Runner, tmp_path: Path) -> None:
    copy = tmp_path / "m.gguf"
    shutil.copy(tiny_gguf, copy)

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
        shutil.copy(tiny_gguf, copy)
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


def test_it_ends_with_its_parent(tiny_gguf: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tiny_gguf)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        child = psutil.Process(int(parent.stdout.readline()))
        (socket,) = {Path(one.laddr) for one in child.net_connections("unix") if one.laddr}
        assert socket.exists()
        parent.kill()
    child.wait(60)
    assert not socket.parent.exists()


@pytest.mark.parametrize("what", ["cut", "no header", "nothing"])
def test_a_damaged_file_is_told(tiny_gguf: Path, loop: asyncio.Runner, tmp_path: Path, what: str) -> None:
    damaged = tmp_path / "m.gguf"
    whole = tiny_gguf.read_bytes()
    damaged.write_bytes({"cut": whole[: len(whole) // 2], "no header": b"x" * 5000, "nothing": b""}[what])
    engine = LlamaCpp(damaged, threads=1, slots=1)
    with pytest.raises(CorruptError, match=r"m\.gguf") as caught:
        loop.run(engine.start())
    assert "export it again" in caught.value.hint
    assert not loop.run(engine.alive())


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="there is no artifact"):
        LlamaCpp(tmp_path / "m.gguf")
