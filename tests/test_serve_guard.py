"""The guard: what it lets in, what it says to the rest, and what it adds to every answer."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from guarding import SECRET, Answer, Heard, ask, example, guarded, paths
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Echo

from isoflop.errors import ServeError
from isoflop.serve.app import build_app
from isoflop.serve.calls import GATED, Call
from isoflop.serve.exchange import Message
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.guard import Guard
from isoflop.serve.keys import SCOPES, Keys
from isoflop.serve.objectives import Objectives
from isoflop.serve.settings import Settings
from isoflop.serve.watched import watched
from isoflop.store import Project

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(Project(tmp_path_factory.mktemp("keys") / "p"))


@pytest.fixture(scope="module")
def texts(keys: Keys) -> dict[str, str]:
    """A key of each scope alone."""
    return {scope: keys.new(scope, scopes=(scope,))[0] for scope in SCOPES}


def run(answer: Awaitable[Answer]) -> Answer:
    async def waited() -> Answer:
        return await answer

    return asyncio.run(waited())


def test_no_route_but_one_answers_without_a_key(keys: Keys, texts: dict[str, str]) -> None:
    app = guarded(keys)
    every = list(paths(example().routes))
    assert len(every) == 11
    for path in every:
        for method in METHODS:
            for key in (None, "isk_0_0", texts["infer"] + "x"):
                answer = run(ask(app, path, method=method, key=key))
                assert (answer.status == 401) == (path != "/health/live"), (method, path)
                assert ("x-app" in answer.headers) <= (path == "/health/live")
    answer = run(ask(app, "/health/live"))
    assert (answer.status, answer.body) == (200, b"the app's own words")


def test_no_route_of_the_gateway_answers_without_a_key(keys: Keys, tmp_path: Path) -> None:
    """Whatever is added to it."""
    gateway = Gateway({"echo": Model("echo", Echo())}, settings=Settings(), keys=keys)
    server = build_app(gateway, watched(gateway, Project(tmp_path), None, Objectives(), None).routers)
    every = set(paths(server.routes))
    assert {"/health/live", "/v1/models", "/v1/chat/completions", "/openapi.json", "/", "/metrics"} <= every
    assert {"/v1/feedback", "/admin/deployment"} <= every
    for path in every:
        for method in METHODS:
            answer = run(ask(server, path, method=method, body=[b"{}"]))
            assert (answer.status == 401) == (path != "/health/live"), (method, path)


def test_strangers_learn_nothing_from_the_answer(keys: Keys, texts: dict[str, str]) -> None:
    """What there is, which methods it takes, and whether a key was once valid."""
    app = guarded(keys)
    gone, record = keys.new("gone")
    keys.revoke("gone")
    answers = [
        run(ask(app, path, method=method, key=key))
        for path in ("/v1/models", "/v1/nothing", "/admin/models", "/metrics")
        for method in ("GET", "DELETE")
        for key in (gone, f"isk_{record.id}_x", texts["admin"] + "x", "x")
    ]
    differs = ("x-request-id",)
    same = {(a.status, a.body, *(p for p in a.pairs if p[0] not in differs)) for a in answers}
    assert len(same) == 1
    assert answers[0].error["code"] == "invalid_api_key"
    assert answers[0].headers["www-authenticate"] == 'Bearer realm="isoflop", error="invalid_token"'
    assert run(ask(app, "/v1/models")).error["code"] == "missing_api_key"


WRITTEN = st.lists(
    st.sampled_from(
        ["health", "live", "v1", "models", "admin", "metrics", "/", "//", "..", ".", "%2e%2e", "%2f", "\\",
         ";", "\0", "\n", " ", "?", "#", "é", "HEALTH", "Live", "/health/live", "/health/live/"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@given(path=WRITTEN, method=st.sampled_from(METHODS))
@settings(max_examples=300, deadline=None)
def test_however_the_path_is_written(path: str, method: str, keys: Keys) -> None:
    answer = run(ask(guarded(keys), path, method=method))
    assert (answer.status == 401) == (path != "/health/live")
    assert (answer.body == b"the app's own words") <= (path == "/health/live")


@given(path=WRITTEN)
@settings(max_examples=300, deadline=None)
def test_no_way_of_writing_reaches_what_a_key_is_not_for(
    path: str, keys: Keys, texts: dict[str, str]
) -> None:
    answer = run(ask(guarded(keys), path, key=texts["infer"]))
    reached = answer.body == b"the app's own words"
    assert not (reached and ("admin" in path.split("/")[:2] or path == "/metrics"))


def test_scopes(keys: Keys, texts: dict[str, str]) -> None:
    app = guarded(keys)
    opens = {
        scope: [
            p for p in paths(example().routes) if run(ask(app, p, key=texts[scope])).status not in (401, 403)
        ]
        for scope in SCOPES
    }
    health = {"/health/live", "/health/ready"}
    assert set(opens["admin"]) == {"/admin/models", "/metrics", *health}
    assert set(opens["metrics"]) == {"/metrics", *health}
    assert set(opens["infer"]) == set(paths(example().routes)) - {"/admin/models", "/metrics"}
    answer = run(ask(app, "/admin/models", key=texts["infer"]))
    assert answer.status == 403
    assert answer.error["code"] == "insufficient_scope"
    assert 'scope="admin"' in answer.headers["www-authenticate"]


def test_how_a_key_may_be_sent(keys: Keys, texts: dict[str, str]) -> None:
    key = texts["infer"]
    basic = "Basic " + base64.b64encode(f"me:{key}".encode()).decode()
    for sent, method, path, status in (
        (f"bearer  {key} ", "GET", "/v1/models", 200),
        (basic, "GET", "/", 200),
        (basic, "POST", "/v1/size", 401),  # a form of another site's page would do that
        ("Basic nonsense", "GET", "/", 401),
        ("Basic " + base64.b64encode(b"\xff:\xff").decode(), "GET", "/", 401),
        (key, "GET", "/", 401),
        (f"Token {key}", "GET", "/", 401),
        ("", "GET", "/", 401),
    ):
        answer = run(ask(guarded(keys), path, method=method, headers={"authorization": sent}))
        assert answer.status == status, sent
    asked = [run(ask(guarded(keys), "/", headers={"accept": kind})) for kind in ("text/html", "*/*")]
    shown = [[v.split()[0] for n, v in a.pairs if n == "www-authenticate"] for a in asked]
    assert shown == [["Bearer", "Basic"], ["Bearer"]]


def test_every_answer_has_the_same_protection(keys: Keys, texts: dict[str, str]) -> None:
    app = guarded(keys)
    for path, key in (("/health/live", None), ("/", None), ("/", "x"), ("/", texts["infer"])):
        answer = run(ask(app, path, key=key, headers={"origin": "https://elsewhere.example"}))
        names = Counter(name for name, _ in answer.pairs)
        for name, value in {
            "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer",
            "cache-control": "no-store",
        }.items():  # fmt: skip
            assert (answer.headers[name], names[name]) == (value, 1)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"].startswith("req-")
        assert not any(name.startswith("access-control") for name in names)


def test_what_is_not_http() -> None:
    """Lifespan is the app's; a web socket, which could pass by the guard, is refused."""
    seen, sent = [], []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    async def send(message: Message) -> None:
        sent.append(message)

    guard = guarded(app=app)
    for kind in ("lifespan", "websocket"):
        asyncio.run(guard({"type": kind, "path": "/health/live", "headers": []}, ask, send))  # type: ignore[arg-type]
    assert seen == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_open_is_for_this_machine_alone() -> None:
    for host in ("0.0.0.0", "::", "192.168.0.7", "example.org", ""):
        with pytest.raises(ServeError, match="cannot be open"):
            Guard(example(), Settings(open=True, host=host), None)
    with pytest.raises(ServeError, match="needs keys"):
        Guard(example(), Settings(), None)
    app = guarded()
    for host in ("localhost", "localhost:8000", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"):
        assert run(ask(app, "/v1/models", headers={"host": host})).status == 200
        own = {"host": host, "origin": f"http://{host}"}
        assert run(ask(app, "/v1/models", headers=own)).status == 200
    for headers in (
        {"host": "rebound.example:8000"}, {"host": ""}, {"host": "[::1"}, {"host": "localhost@evil.example"},
        {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": "http://localhost:1"},
    ):  # fmt: skip
        answer = run(ask(app, "/v1/models", headers=headers))
        assert (answer.status, answer.error["code"]) == (403, "other_site"), headers


def test_large_bodies() -> None:
    app = guarded(settings=Settings(open=True, body_bytes=10, sound_bytes=20))
    for path, most in (("/v1/size", 10), ("/v1/audio/size", 20), ("/v1/audio/../size", 10)):
        fits = run(ask(app, path, method="POST", body=[b"x" * most]))
        assert fits.status in (200, 404)
        for body, headers in (
            ([b"x"], {"content-length": str(most + 1)}),
            ([b"x" * (most + 1)], None),
            ([b"x" * most, b"x", b"x" * 99], None),
        ):
            heard = Heard()
            guard = guarded(settings=app.settings, observers=[heard])
            answer = run(ask(guard, path, method="POST", body=body, headers=headers))
            if answer.status == 404:  # the app answered before it read
                continue
            assert (answer.status, answer.error["code"]) == (413, "request_too_large")
            assert answer.headers["connection"] == "close"
            assert [(c.status, c.error) for c in heard.over] == [(413, "request_too_large")]


def test_an_unread_body_is_not_the_next_request() -> None:
    app = guarded()
    assert run(ask(app, "/nothing", method="POST", body=[b"GET / HTTP/1.1"])).headers["connection"] == "close"
    assert "connection" not in run(ask(app, "/v1/size", method="POST", body=[b"x"])).headers
    assert "connection" not in run(ask(app, "/v1/models")).headers


def test_pieces_go_out_as_they_come() -> None:
    async def story() -> None:
        first, more = asyncio.Event(), asyncio.Event()

        async def app(scope: Message, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
            await more.wait()
            await send({"type": "http.response.body", "body": b"two"})

        def heard(message: Message) -> None:
            if message.get("body") == b"one":
                first.set()

        asked = asyncio.create_task(ask(guarded(app=app), "/", heard=heard))
        await first.wait()
        more.set()
        assert (await asked).body == b"onetwo"

    asyncio.run(asyncio.wait_for(story(), 30))


def test_more_requests_than_it_takes_are_told_to_come_again() -> None:
    async def story() -> None:
        inside, leave = asyncio.Semaphore(0), asyncio.Event()

        async def app(scope: Message, receive: Any, send: Any) -> None:
            if scope["path"] == "/v1/slow":
                inside.release()
                await leave.wait()
            await example()(scope, receive, send)

        guard = guarded(app=app, settings=Settings(open=True, concurrent=2))
        slow = [asyncio.create_task(ask(guard, "/v1/slow", method="POST")) for _ in range(2)]
        for _ in slow:
            await inside.acquire()
        answer = await ask(guard, "/v1/size", method="POST")
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "1"
        for path in ("/health/live", "/health/ready", "/metrics", "/", "/v1/models"):  # cost nothing
            assert (await ask(guard, path)).status == 200
        assert (await ask(guard, "/v1/feedback", method="POST")).status == 404  # which this app does not have
        slow[0].cancel()
        await asyncio.wait(slow[:1])
        assert (await ask(guard, "/v1/size", method="POST")).status == 200
        leave.set()
        await slow[1]

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_failing_app_says_nothing_of_what_was_asked(caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    answer = run(ask(guarded(observers=[heard]), "/v1/fails", method="POST", body=[b"my body"]))
    assert (answer.status, answer.error["code"], answer.error["type"]) == (
        500,
        "internal_error",
        "server_error",
    )
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelno == logging.ERROR
    assert answer.headers["x-request-id"] in said
    assert "KeyError" in said
    assert "guarding.py" in said  # where
    for text in (said, answer.body.decode()):
        assert SECRET not in text.replace('f"{SECRET}', "")
        assert "my body" not in text
    assert [(c.status, c.error) for c in heard.over] == [(500, "internal_error")]


def test_an_app_that_fails_in_mid_stream(caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard()
    answer = run(ask(guarded(observers=[heard]), "/v1/fails-late", method="POST"))
    assert (answer.status, answer.body, answer.whole) == (200, b"one", False)  # a server then closes
    assert "KeyError" in caplog.text
    assert SECRET not in caplog.text
    assert [(c.status, c.error) for c in heard.over] == [(200, "internal_error")]


def test_observers_hear_of_every_call_once(keys: Keys, texts: dict[str, str]) -> None:
    heard = Heard()
    app = guarded(keys, observers=[heard])
    for path, key in (("/v1/models", texts["infer"]), ("/v1/models", None), ("/metrics", texts["infer"]),
                      ("/health/live", None)):  # fmt: skip
        run(ask(app, path, key=key))
    assert [(c.path, c.status) for c in heard.begun] == [("/v1/models", 200)]
    assert [(c.status, c.error, c.key and c.key.name) for c in heard.over] == [
        (200, "", "infer"), (401, "missing_api_key", None), (403, "insufficient_scope", "infer"),
    ]  # fmt: skip
    assert len({c.id for c in heard.over}) == 3


def test_a_call_that_is_cancelled_has_ended(keys: Keys) -> None:
    async def story() -> None:
        inside, heard = asyncio.Event(), Heard()

        async def app(scope: Message, receive: Any, send: Any) -> None:
            inside.set()
            await asyncio.Future()

        guard = guarded(app=app, observers=[heard])
        asked = asyncio.create_task(ask(guard, "/v1/x"))
        await inside.wait()
        asked.cancel()
        await asyncio.wait([asked])
        assert asked.cancelled()
        assert (len(heard.over), guard.running) == (1, 0)

    asyncio.run(asyncio.wait_for(story(), 30))


def test_a_gate_keeps_calls_out() -> None:
    class Gate(Heard):
        why = "no room"

        def refuses(self) -> str:
            return self.why

    gate = Gate()
    app = guarded(observers=[gate])
    answer = run(ask(app, "/v1/models"))
    assert (answer.status, answer.error["message"], answer.error["code"]) == (503, "no room", GATED)
    assert run(ask(app, "/health/live")).status == 200
    gate.why = ""
    assert run(ask(app, "/v1/models")).status == 200
    assert (len(gate.begun), len(gate.over)) == (1, 2)


def test_keys_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    project = Project(tmp_path / "p")
    keys = Keys(project)
    text, _ = keys.new("alice")
    ledger = tmp_path / "p" / "ledger.db"
    ledger.write_bytes(b"not a database" * 1000)
    answer = run(ask(guarded(keys), "/v1/models", key=text))
    assert (answer.status, answer.error["code"]) == (503, "keys_unavailable")
    assert "retry-after" in answer.headers
    assert "damaged" not in json.dumps(answer.error)
    assert "damaged" in caplog.text


def test_it_stands_in_an_app_of_fastapi(keys: Keys, texts: dict[str, str]) -> None:
    """Also around what FastAPI answers by itself, and before its own handler of what nobody foresaw."""
    calls: list[Call] = []
    app = FastAPI()

    @app.get("/v1/models")
    async def models(request: Request) -> str:
        calls.append(request.state.call)
        return "here"

    @app.get("/v1/fails")
    async def fails() -> None:
        raise KeyError(SECRET)

    app.add_middleware(Guard, settings=Settings(), keys=keys)
    answer = run(ask(app, "/v1/models", key=texts["infer"]))
    assert (answer.status, [c.id for c in calls]) == (200, [answer.headers["x-request-id"]])
    assert run(ask(app, "/v1/fails", key=texts["infer"])).error["code"] == "internal_error"
    for path in ("/v1/models", "/v1/models/", "/docs", "/openapi.json", "/nothing"):
        assert run(ask(app, path)).status == 401
