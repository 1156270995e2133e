"""vLLM started here: a command of its name stands for it, which answers in its words."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import tiny_bert, tiny_qwen3

pytest.importorskip("aiohttp", reason="the extra isoflop[serve] is not installed")

from vllm_like import DIES, LAST_WORDS, LOADS, pretended

from isoflop.errors import ProjectError
from isoflop.serve.engines import vllm, vllm_child
from isoflop.serve.engines.opening import VLLM, opened_engine
from isoflop.serve.engines.remote import Remote
from isoflop.serve.protocol import STOP, Ending, EngineError, Generation, Piece

SECONDS = 60.0  # until which something has happened


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return pretended(tmp_path, monkeypatch)


def begun(notes: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in notes.read_text().splitlines()]


def run(work: Callable[[Remote], Awaitable[None]]) -> None:
    async def whole() -> None:
        engine = await opened_engine(tiny_qwen3(), by=VLLM, context=64)
        assert isinstance(engine, Remote)
        try:
            await work(engine)
        finally:
            await engine.close()

    asyncio.run(whole())


async def text(engine: Remote, prompt: str = "zero") -> str:
    *pieces, ending = [part async for part in engine.generate(Generation(prompt, 9))]
    assert isinstance(ending, Ending)
    assert ending.reason == STOP
    return "".join(piece.text for piece in pieces if isinstance(piece, Piece))


def gone(pids: list[int]) -> None:
    """Waits until none of these processes runs."""
    deadline = time.monotonic() + SECONDS
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids):
        assert time.monotonic() < deadline, "a process is left"
        time.sleep(0.05)


def command_lines() -> str:
    return "\n".join(" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"]))


def test_it_is_begun_asked_and_ended(notes: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", vllm.__name__)

    async def work(engine: Remote) -> None:
        assert (engine.name, engine.context, await engine.alive()) == ("vLLM", 64, True)
        assert await text(engine) == " one two"
        (first,) = begun(notes)
        words = ["serve", str(tiny_qwen3()), "--host", "127.0.0.1", "--port", first["argv"][6]]
        assert first["argv"][1:] == [*words, "--max-model-len", "64"]
        environment = Path(f"/proc/{first['pids'][0]}/environ").read_text().split("\0")
        key = next(each for each in environment if each.startswith("VLLM_API_KEY=")).partition("=")[2]
        assert len(key) > 30
        assert key not in command_lines()
        assert "VLLM_API_KEY" not in os.environ

    run(work)
    gone(begun(notes)[0]["pids"])
    assert "vLLM: INFO: loading" in caplog.messages


def test_after_a_crash_it_begins_again(notes: Path) -> None:
    async def work(engine: Remote) -> None:
        with pytest.raises(EngineError):
            await text(engine, "die")
        async with asyncio.timeout(SECONDS):
            while not engine._ended():
                await asyncio.sleep(0.01)
        gone(begun(notes)[0]["pids"])  # what it had begun, too
        assert await text(engine) == " one two"
        assert len(begun(notes)) == 2

    run(work)
    gone(begun(notes)[1]["pids"])


def test_what_is_between_may_be_killed(notes: Path) -> None:
    async def work(engine: Remote) -> None:
        (between,) = (p for p in psutil.Process().children() if vllm_child.__file__ in p.cmdline())
        between.kill()
        async with asyncio.timeout(SECONDS):
            while not engine._ended():
                await asyncio.sleep(0.01)
        assert await text(engine) == " one two"
        gone(begun(notes)[0]["pids"])

    run(work)
    gone(begun(notes)[1]["pids"])


def test_what_is_between_may_hang(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "END_SECONDS", 0.5)

    async def work(engine: Remote) -> None:
        (between,) = (p for p in psutil.Process().children() if vllm_child.__file__ in p.cmdline())
        between.suspend()

    run(work)
    gone(begun(notes)[0]["pids"])


def test_why_it_ends_at_its_start_is_told(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIES, "1")
    with pytest.raises(ProjectError, match=f"vLLM ended as it opened .*: {LAST_WORDS}") as caught:
        asyncio.run(opened_engine(tiny_qwen3(), by=VLLM))
    assert "vllm serve" in caught.value.hint


def test_one_that_cannot_begin_again_fails_clearly(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(engine: Remote) -> None:
        monkeypatch.setenv(DIES, "1")
        with pytest.raises(EngineError):
            await text(engine, "die")
        async with asyncio.timeout(SECONDS):
            while not engine._ended():
                await asyncio.sleep(0.01)
        with pytest.raises(EngineError, match="has crashed, and cannot begin again"):
            await text(engine)
        assert not await engine.alive()  # it begins again, and is closed before it is told that it cannot

    run(work)


def test_who_does_not_wait_for_it_ends_it(notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOADS, "1")

    async def work() -> None:
        opening = asyncio.create_task(opened_engine(tiny_qwen3(), by=VLLM))
        async with asyncio.timeout(SECONDS):
            while not (notes.exists() and begun(notes)):
                await asyncio.sleep(0.01)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(work())
    gone(begun(notes)[0]["pids"])


PARENT = """
import asyncio, sys
from pathlib import Path
from isoflop.serve.engines.opening import opened_engine

async def main():
    await opened_engine(Path(sys.argv[1]), by="vllm")
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_no_orphan_is_left_by_a_killed_parent(notes: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    typed = [sys.executable, "-c", PARENT, str(tiny_qwen3())]
    with subprocess.Popen(typed, env=environment, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        between = [child.pid for child in psutil.Process(parent.pid).children()]
        parent.send_signal(signal.SIGKILL)
    gone([*begun(notes)[0]["pids"], *between])


def test_what_it_does_not_serve_is_told(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for path in (tiny_bert(), tmp_path / "model.gguf"):
        with pytest.raises(ProjectError, match="is not what vLLM serves"):
            asyncio.run(opened_engine(path, by=VLLM))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "empty" / "python"))
    with pytest.raises(ProjectError, match="vllm is not installed here") as caught:
        asyncio.run(opened_engine(tiny_qwen3(), by=VLLM))
    assert "NAME=http://HOST:PORT" in caught.value.hint
