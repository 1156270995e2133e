"""What a key may ask a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from guarding import Answer, ask, guarded
from starlette.responses import JSONResponse

from isoflop.errors import ServeError
from isoflop.serve.exchange import Message
from isoflop.serve.guard import Guard
from isoflop.serve.keys import Keys
from isoflop.serve.rates import RATINGS
from isoflop.serve.settings import Settings
from isoflop.store import Project


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(Project(tmp_path / "p"))


def asked(guard: Guard, key: str, *bodies: bytes) -> list[Answer]:
    """One after the other; each costs as many tokens as bytes."""

    async def story() -> list[Answer]:
        return [await ask(guard, "/v1/size", method="POST", key=key, body=[body]) for body in bodies]

    return asyncio.run(story())


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


def test_requests_a_minute(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    few, _ = keys.new("few", rpm=2)
    free, _ = keys.new("free")
    guard = guarded(keys)
    answers = asked(guard, few, b"a", b"a", b"a")
    assert [a.status for a in answers] == [200, 200, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers[:2]] == ["1", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-reset-requests"].endswith("s")
    refused = answers[2]
    assert (refused.error["code"], refused.error["type"]) == ("rate_limit_exceeded", "requests")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert not any("ratelimit" in name for name in asked(guard, free, b"a")[0].headers)
    later(monkeypatch, 61)
    assert [a.status for a in asked(guard, few, b"a", b"a", b"a")] == [200, 200, 429]


def test_tokens_a_minute(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was more than the rest counts as well; a refused request counts nothing."""
    key, _ = keys.new("few", tpm=100, rpm=50)
    guard = guarded(keys)
    answers = asked(guard, key, b"a" * 60, b"a" * 400, b"a", b"a")
    assert [a.status for a in answers] == [200, 200, 429, 429]
    assert [a.headers["x-ratelimit-remaining-tokens"] for a in answers[:2]] == ["100", "40"]
    assert answers[2].error["type"] == "tokens"
    assert 1 <= int(answers[2].headers["retry-after"]) <= 60
    later(monkeypatch, 61)
    again = asked(guard, key, b"a")[0]
    assert again.status == 200
    assert again.headers["x-ratelimit-remaining-requests"] == "49"


def test_what_does_not_compute_costs_nothing(keys: Keys) -> None:
    key, _ = keys.new("few", rpm=1, scopes=("infer", "metrics"))
    guard = guarded(keys)

    async def story() -> list[int]:
        every = ("/metrics", "/health/ready", "/v1/models", "/v1/models", "/v1/models/x", "/", "/")
        return [(await ask(guard, path, key=key)).status for path in every]

    assert asyncio.run(story()) == [200] * 7
    assert [a.status for a in asked(guard, key, b"a", b"a")] == [200, 429]


def test_ratings_have_a_limit_of_their_own(keys: Keys) -> None:
    few, _ = keys.new("few", rpm=1)
    free, _ = keys.new("free")

    async def app(scope: Message, receive: Any, send: Any) -> None:
        await JSONResponse({})(scope, receive, send)

    guard = guarded(keys, app=app)

    async def rated(key: str) -> Answer:
        return await ask(guard, "/v1/feedback", method="POST", key=key, body=[b"{}"])

    async def story() -> list[Answer]:
        return [await rated(free) for _ in range(RATINGS.amount + 1)] + [await rated(few)]

    *answers, refused, other = asyncio.run(story())
    assert {a.status for a in answers} == {200}
    assert (refused.status, refused.error["type"]) == (429, "requests")
    assert f"{RATINGS.amount} ratings a minute" in refused.error["message"]
    assert other.status == 200
    assert asked(guard, few, b"a")[0].status == 200


@pytest.fixture
def redis() -> Iterator[str]:
    pytest.importorskip("redis", reason="the extra isoflop[redis] is not installed")
    fakeredis = pytest.importorskip("fakeredis", reason="needs a server that speaks Redis' protocol")
    pytest.importorskip("lupa", reason="the server runs Lua")
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"redis://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_servers_share_limits_through_redis(keys: Keys, redis: str) -> None:
    key, _ = keys.new("few", rpm=3, tpm=100)
    settings = Settings(rate_storage=redis)
    one, two = guarded(keys, settings), guarded(keys, settings)

    async def story() -> list[int]:
        return [
            (await ask(guard, "/v1/size", method="POST", key=key, body=[b"a" * tokens])).status
            for guard, tokens in ((one, 10), (two, 100), (one, 1), (two, 1))
        ]

    assert asyncio.run(story()) == [200, 200, 429, 429]


def test_limits_that_cannot_be_counted_refuse(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("redis", reason="the extra isoflop[redis] is not installed")
    key, _ = keys.new("few", rpm=3)
    free, _ = keys.new("free")
    guard = guarded(keys, Settings(rate_storage="redis://127.0.0.1:9"))  # where nothing listens
    answer = asked(guard, key, b"a")[0]
    assert (answer.status, answer.error["code"]) == (503, "limits_unavailable")
    assert "retry-after" in answer.headers
    assert "cannot be counted" in caplog.text
    assert asked(guard, free, b"a")[0].status == 200


def test_a_storage_that_is_none(keys: Keys) -> None:
    for uri in ("nowhere", "redis://[secret", "nope://user:secret@host"):
        with pytest.raises(ServeError, match="cannot be kept in") as caught:
            guarded(keys, Settings(rate_storage=uri))
        assert "secret" not in caught.value.message + caught.value.hint
