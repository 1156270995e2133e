"""The gateway on a real socket: the official client unchanged, and clients that leave."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import Echo, Witness, Words, on_a_socket

from isoflop.serve.app import build_app
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.settings import Settings

MESSAGES: list[Any] = [{"role": "user", "content": "hello there"}]
ANSWER = "User: hello there Assistant:"


class Rig:
    def __init__(self) -> None:
        self.engine, self.witness = Echo(), Witness()
        settings = Settings(open=True, answers=128)
        self.gateway = Gateway(
            {"my-model": Model("my-model", self.engine)}, settings, None, [self.witness], Words
        )
        self.app = build_app(self.gateway)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return Rig()


@pytest.fixture(scope="module")
def url(rig: Rig) -> Iterator[str]:
    with on_a_socket(rig.app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_the_official_client(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["my-model"]
    assert client.models.retrieve("my-model").id == "my-model"
    text = client.completions.create(model="my-model", prompt="a b c", stop="c", logprobs=1)
    assert text.choices[0].text == "a b"
    chat = client.chat.completions.create(model="my-model", messages=MESSAGES, n=2)
    assert [choice.message.content for choice in chat.choices] == [ANSWER] * 2
    again = [*MESSAGES, chat.choices[0].message.model_dump(), *MESSAGES]  # as programs keep a chat
    assert client.chat.completions.create(model="my-model", messages=again)
    vector = client.embeddings.create(model="my-model", input="abc").data[0].embedding
    assert vector == [3.0, 1.0]
    heard = client.audio.transcriptions.create(model="my-model", file=("a.wav", b"abcd"))
    assert heard.text == "4 bytes"
    assert heard.usage
    assert (heard.usage.type, heard.usage.model_dump()["total_tokens"]) == ("tokens", 50)


def test_the_official_client_streams(client: openai.OpenAI) -> None:
    parts = [
        c.choices[0].text for c in client.completions.create(model="my-model", prompt="a b", stream=True)
    ]
    assert "".join(parts) == "a b"
    options: Any = {"include_usage": True}
    with client.chat.completions.create(
        model="my-model",
        messages=MESSAGES,
        stream=True,
        stream_options=options,
        logprobs=True,
        top_logprobs=1,
    ) as stream:
        chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage
    assert chunks[-1].usage.completion_tokens == 4
    with client.chat.completions.stream(model="my-model", messages=MESSAGES) as events:
        assert events.get_final_completion().choices[0].message.content == ANSWER


def test_the_official_client_at_once(url: str) -> None:
    async def ask(client: openai.AsyncOpenAI, i: int) -> str:
        stream = await client.completions.create(model="my-model", prompt=f"{i} x", stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, i) for i in range(16)))

    assert asyncio.run(main()) == [f"{i} x" for i in range(16)]


def test_the_official_client_knows_our_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.completions.create(model="x", prompt="x")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="1025 tokens") as long:
        client.completions.create(model="my-model", prompt="x" * 1025, stream=True)
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model="my-model", prompt="x", temperature=3)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.InternalServerError):
        client.completions.create(model="my-model", prompt="fail", extra_body={"mask": ["x"]})


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(rig: Rig, url: str, stream: bool) -> None:
    rig.engine.pause, cancelled, ends = 0.01, rig.engine.cancelled, len(rig.witness.ends)
    try:
        host, port = url.removeprefix("http://").split(":")
        asked = {"model": "my-model", "prompt": "word " * 200, "n": 3, "max_tokens": 200, "stream": stream}
        body = json.dumps(asked)
        with socket.create_connection((host, int(port))) as sent:
            head = f"Host: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            sent.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}{body}".encode())
            if stream:
                assert b"200 OK" in sent.recv(64)
            else:
                while rig.engine.running < 3:
                    sent.settimeout(0.01)
                    with pytest.raises(TimeoutError):
                        sent.recv(1)
        rig.witness.wait(ends + 1)
    finally:
        rig.engine.pause = 0.0
    assert rig.engine.cancelled == cancelled + 3
    assert rig.engine.running == 0
    assert rig.witness.ends[-1].error == "disconnected"
    assert sorted(c.id for c in rig.witness.heard) == sorted(c.id for c in rig.witness.ends)
