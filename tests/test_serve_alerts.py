"""Alerts by webhook, and the tests that tell a change from chance."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
from called import made

from isoflop.errors import IsoflopError
from isoflop.serve.alerts import FIRING, RESOLVED, Alerts, Watching
from isoflop.serve.drift import CLASSES, Prompt, Watch, characters, prompts_differ, ratings_fall
from isoflop.serve.objectives import Objectives
from isoflop.serve.webhook import Webhook

SECRET = "T0000-not-to-be-told"
NOW = 10_000.0


class Receiver:
    """An HTTP server that answers with these statuses in turn, the last for good."""

    def __init__(self, *statuses: int) -> None:
        self.got: list[dict[str, Any]] = []
        self.arrived = threading.Event()
        left, outer = list(statuses), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = left.pop(0) if len(left) > 1 else left[0]
                outer.got.append(json.loads(body))
                self.send_response(status)
                self.send_header("content-length", "0")
                if status == 302:
                    self.send_header("location", "/elsewhere")
                self.end_headers()
                if status == 200:
                    outer.arrived.set()

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hooks/{SECRET}?token={SECRET}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver(503, 429, 200)
    yield made
    made.close()


def alerts(url: str = "https://example.org/x", **how: Any) -> Alerts:
    return Alerts(
        Webhook(url, wait_seconds=0.001), Objectives(first_token=1.0, errors=0.05), server="here:8000",
        watching=Watching(**how),
    )  # fmt: skip


def told(watch: Alerts, now: float = NOW) -> list[tuple[str, str]]:
    """What is due, and delivered at once."""
    found = watch.due(now)
    for alert in found:
        watch.delivered(alert, now)
    return [(alert.alert, alert.state) for alert in found]


def calls(watch: Alerts, count: int, now: float = NOW, **what: Any) -> None:
    for _ in range(count):
        watch.ended(made(began=now - 5, seconds=4, **what))


def test_slow_first_tokens_fire_once_and_are_over_when_they_leave_the_window() -> None:
    watch = alerts(window=300, cooldown=1000)
    calls(watch, 30, first=0.1)
    assert told(watch) == []
    calls(watch, 3, first=2.5)
    assert told(watch) == [("first-token-slow", FIRING)]
    assert told(watch, NOW + 10) == []
    assert told(watch, NOW + 400) == [("first-token-slow", RESOLVED)]


def test_what_lasts_is_told_again_after_the_cooldown_and_what_flaps_is_not() -> None:
    watch = alerts(window=300, cooldown=1000)
    calls(watch, 30, first=2.5)
    assert told(watch) == [("first-token-slow", FIRING)]
    assert told(watch, NOW + 400) == [("first-token-slow", RESOLVED)]
    calls(watch, 30, NOW + 500, first=2.5)
    assert told(watch, NOW + 500) == []
    calls(watch, 30, NOW + 1000, first=2.5)
    assert told(watch, NOW + 1000) == [("first-token-slow", FIRING)]


def test_errors_are_the_servers_own() -> None:
    watch = alerts()
    calls(watch, 30)
    calls(watch, 100, status=401, error="invalid_api_key")
    calls(watch, 10, error="disconnected")
    assert told(watch) == []
    calls(watch, 3, status=503, error="engine_failed", first=None)
    assert told(watch) == [("errors", FIRING)]


def test_a_few_calls_are_no_share() -> None:
    watch = alerts(least=20)
    calls(watch, 19, status=500, error="internal_error", first=9.0)
    assert told(watch) == []


def test_what_did_not_arrive_is_still_due() -> None:
    watch = alerts()
    calls(watch, 30, first=2.5)
    assert [a.alert for a in watch.due(NOW)] == [a.alert for a in watch.due(NOW)] == ["first-token-slow"]


async def delivered(receiver: Receiver) -> None:
    async with alerts(receiver.url, every=0.01) as watch:
        calls(watch, 30, now=time.monotonic(), status=500, error="internal_error", first=None)
        await asyncio.wait_for(asyncio.to_thread(receiver.arrived.wait), 30)


def test_posted_with_retries_and_the_urls_secret_in_no_log(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    asyncio.run(delivered(receiver))
    assert len(receiver.got) == 3  # two were refused
    sent = receiver.got[-1]
    assert (sent["alert"], sent["state"], sent["server"]) == ("errors", FIRING, "here:8000")
    assert sent["value"] == 1.0
    assert "100.0% of 30 requests failed; the objective is 5.00%" in sent["text"]
    assert caplog.records
    assert SECRET not in caplog.text


@pytest.mark.parametrize("statuses", [(302,), (404,), (500,)])
def test_a_refusal_is_logged_without_the_url(
    statuses: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    refusing = Receiver(*statuses)
    caplog.set_level(logging.DEBUG)
    try:
        assert not asyncio.run(Webhook(refusing.url, attempts=3, wait_seconds=0.001).post({"text": "x"}))
    finally:
        refusing.close()
    assert len(refusing.got) == (3 if statuses == (500,) else 1)
    assert f"could not be delivered to http://127.0.0.1: status {statuses[0]}" in caplog.text
    assert SECRET not in caplog.text


def test_a_host_that_is_not_there_is_logged_without_the_url(caplog: pytest.LogCaptureFixture) -> None:
    gone = Receiver(200)
    gone.close()
    caplog.set_level(logging.DEBUG)
    assert not asyncio.run(Webhook(gone.url, attempts=2, wait_seconds=0.001).post({}))
    assert "ClientConnectorError" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    "url", [f"ftp://host/{SECRET}", SECRET, f"https://[{SECRET}", f"https://h:{SECRET}/"]
)
def test_a_url_that_cannot_be_read_is_not_repeated(url: str) -> None:
    with pytest.raises(IsoflopError, match="URL for alerts") as caught:
        Webhook(url)
    assert SECRET not in f"{caught.value.message} {caught.value.hint}"


# -- drift ------------------------------------------------------------------------------------------------


def prompts(rng: np.random.Generator, count: int, letters: float = 0.8, tokens: float = 30) -> list[Prompt]:
    """Of lengths and kinds of characters that vary from one to the next."""
    found = []
    for _ in range(count):
        length = 1 + rng.poisson(tokens * rng.gamma(2, 0.5))
        lower = rng.binomial(4 * length, rng.beta(40 * letters, 40 * (1 - letters)))
        found.append(Prompt(length, (lower, 0, 4 * length - lower, *(0,) * (len(CLASSES) - 3))))
    return found


def test_characters_by_class() -> None:
    found = dict(zip(CLASSES, characters("Hi 42, é я 中文 ら😀\n"), strict=True))
    wanted = {
        "upper case": 1, "lower case": 1, "spaces": 6, "digits": 2, "punctuation": 1, "accented letters": 1,
        "Greek and Cyrillic": 1, "Chinese characters": 2, "kana and Hangul": 1, "emoji": 1,
    }  # fmt: skip
    assert {name: count for name, count in found.items() if count} == wanted
    assert sum(characters("\ud800" + "x" * 9_999)) == 4096
    assert sum(characters("")) == 0


def test_without_a_change_no_more_blocks_differ_than_stated() -> None:
    rng, stated, blocks = np.random.default_rng(0), 0.2, 120
    differ = prompts_differ(stated)
    alarms = sum(differ(prompts(rng, 60), prompts(rng, 40)) is not None for _ in range(blocks))
    assert 0 < alarms < stated * blocks + 2 * np.sqrt(blocks * stated * (1 - stated))


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"tokens": 60}, "tokens of a prompt"), ({"letters": 0.6}, "share of lower case in a prompt")],
)
def test_a_change_of_prompts_is_found_and_named(changed: dict[str, float], words: str) -> None:
    rng = np.random.default_rng(1)
    shift = prompts_differ(0.001)(prompts(rng, 500), prompts(rng, 200, **changed))
    assert shift is not None
    assert words in (shift.words, "share of digits in a prompt" if "letters" in changed else "")
    assert shift.p < 0.001 / 3


def test_a_watch_compares_each_block_once_with_what_came_first() -> None:
    compared = []
    watch: Watch[int] = Watch(lambda old, new: compared.append((list(old), list(new))), reference=3, block=2)
    for item in range(4):
        watch.add(item)
        watch.look()
    assert compared == []
    watch.add(4)
    watch.look()
    watch.look()
    assert compared == [([0, 1, 2], [3, 4])]


def test_drift_of_prompts_is_told_and_is_over_when_they_are_as_before() -> None:
    watch = alerts(reference=100, block=50, window=1e9)
    english, chinese = characters("what is a scaling law?"), characters("什么是缩放定律？")
    calls(watch, 150, characters=english)
    assert told(watch) == []
    calls(watch, 50, characters=chinese)
    (alert,) = watch.due(NOW)
    assert alert.alert == "prompts-changed"
    assert "0 on average in the reference" in alert.text or "in the reference, 0 now" in alert.text
    watch.delivered(alert, NOW)
    calls(watch, 50, characters=english)
    assert told(watch) == [("prompts-changed", RESOLVED)]


def test_ratings_that_fall_are_told() -> None:
    watch = alerts(reference=500, block=200)  # a fifth of each, of ratings
    for _ in range(2):
        for number in range(100):
            watch.rated("down" if number % 10 == 0 else "up")
        assert told(watch) == []
    for number in range(40):
        watch.rated("down" if number % 2 else "up")
    assert told(watch) == [("ratings-fell", FIRING)]
    assert ratings_fall(0.001)([True] * 50 + [False] * 50, [True] * 40) is None  # they rose
