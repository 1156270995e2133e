"""Swaps between real engines under load: llama.cpp in its processes, and torch in this one."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed import NAME, Home, following
from hearing import until
from tiny import tiny_qwen3

from isoflop.serve.deploying import following as module
from isoflop.serve.engines.opening import opened_engine
from isoflop.serve.opening import Opening
from isoflop.serve.protocol import Ending, Generation

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")

PROMPT, TOKENS = "the day", 60


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Three models of a project's own: one that has learned a text, one that has not, and a folder."""
    from gguf_models import TEXT, VOCABULARY, untrained, written

    from isoflop.corpus.bpe import train_bpe
    from isoflop.export.gguf import write_gguf

    made = Home(tmp_path / "project")
    written(made.project.folder / "learned.gguf")
    model, tokenizer = untrained().eval(), train_bpe(iter([TEXT]), VOCABULARY)
    write_gguf(model, tokenizer, 0, made.project.folder / "raw.gguf", kind="f32")
    shutil.copytree(tiny_qwen3(), made.project.folder / "folder")
    return made


async def text_of(path: Path) -> str:
    """What its engine says of itself."""
    engine: Any = await opened_engine(path, threads=1)
    try:
        asked = Generation(PROMPT, TOKENS, temperature=0)
        found = [piece async for piece in engine.generate(asked)]
        return "".join(piece.text for piece in found if not isinstance(piece, Ending))
    finally:
        await engine.close()


def test_every_stream_is_of_one_model_and_whole(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.05)
    names = ("learned.gguf", "raw.gguf", "folder")
    texts = {asyncio.run(text_of(home.project.folder / name)): name for name in names}
    assert len(texts) == 3
    ended, streamed, wrong = threading.Event(), list[str](), list[str]()

    async def load(url: str) -> None:
        document = {
            "model": NAME, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "stream": True
        }  # fmt: skip
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:

            async def one() -> None:
                while not ended.is_set():
                    async with client.stream("POST", "/v1/completions", json=document) as answer:
                        lines = [line async for line in answer.aiter_lines() if line]
                    if answer.status_code != 200 or lines[-1] != "data: [DONE]":
                        wrong.append(str(lines))
                        return
                    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
                    text = "".join(event["choices"][0]["text"] for event in events)
                    (streamed if text in texts else wrong).append(texts.get(text, text))

            await asyncio.gather(*(one() for _ in range(6)))

    monkeypatch.setattr("deployed.Speakers", lambda: _Real())
    with following(home, typed="learned.gguf") as running:
        thread = threading.Thread(target=lambda: asyncio.run(load(running.url)))
        thread.start()
        try:
            for name in ("raw.gguf", "folder", "learned.gguf"):
                running.follows(home.deploy(name))
                assert running.told()["state"] == "serving", running.told()
                since = Counter(streamed)[name]
                until(lambda n=name, s=since: Counter(streamed)[n] > s + 3 or wrong, 120)  # type: ignore[misc]
        finally:
            ended.set()
            thread.join(120)
        assert not wrong
        assert Counter(streamed).keys() == {*names}


class _Real:
    """Opens real engines, where `deployed` has those of texts."""

    opened = ()

    def __init__(self) -> None:
        self.engine = Opening(threads=1, slots=2, context=None).engine
