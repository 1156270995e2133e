"""A server that follows the ledger: swaps under load, canaries, shadows, and what cannot be opened."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from deployed import NAME, Home, Running, following
from hearing import until
from prometheus_client.parser import text_string_to_metric_families

from isoflop.errors import CorruptError, ServeError
from isoflop.serve.deploying import following as module
from isoflop.serve.deploying.changing import followers
from isoflop.serve.deploying.following import Follower
from isoflop.serve.deploying.records import SERVER, Deployment, Server, Standing
from isoflop.serve.gateway import Gateway
from isoflop.serve.settings import Settings
from isoflop.store import Project


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 0.02)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "project", "one", "two", "three")


def metric(running: Running, name: str, **labels: str) -> float:
    text = running.client.get("/metrics").text
    return sum(
        sample.value for family in text_string_to_metric_families(text) for sample in family.samples
        if sample.name == f"isoflop:{name}" and labels.items() <= sample.labels.items()
    )  # fmt: skip


@contextmanager
def held_back(running: Running) -> Iterator[None]:
    """In this block the server does not read the ledger."""
    with pytest.MonkeyPatch.context() as patch:
        read = threading.Event()

        def nothing_new(project: Project) -> dict[str, Deployment]:
            read.set()
            return known

        known = module.deployed(running.home.project)
        patch.setattr(module, "deployed", nothing_new)
        assert read.wait(30)
        yield


def test_a_stream_in_flight_ends_with_the_model_that_it_began_with(home: Home) -> None:
    with following(home, typed="one") as running:
        old = running.speakers.of("one")
        old.held.clear()
        document = {"model": NAME, "prompt": "a b c", "max_tokens": 9, "stream": True}
        with httpx.stream("POST", f"{running.url}/v1/completions", json=document) as answer:
            lines = (line for line in answer.iter_lines() if line)
            said = [next(lines)]
            running.follows(home.deploy("two"))
            assert running.says() == "two"
            assert old.started  # for the stream's sake
            old.held.set()
            said += list(lines)
        texts = [json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in said[:-1]]
        assert "".join(texts) == "one:a one:b one:c "
        until(lambda: not old.started, 30)
        hashes = [call.model_hash for call in running.witness.ends if call.model]
        assert len(set(hashes)) == 2
        assert (answer.headers["x-model-hash"], running.told()["main"]["hash"]) == (hashes[-1], hashes[0])


def test_no_request_is_lost_or_wrong_through_five_swaps(home: Home) -> None:
    async def asked(url: str, answers: list[str]) -> None:
        async with httpx.AsyncClient(base_url=url, timeout=120) as client:

            async def one(number: int) -> None:
                while len(answers) < 200 or not swapped.is_set():
                    prompt = f"{number}-{len(answers)} b c"
                    document = {"model": NAME, "prompt": prompt, "max_tokens": 9}
                    answer = await client.post("/v1/completions", json=document)
                    assert answer.status_code == 200, answer.text
                    words = answer.json()["choices"][0]["text"].split()
                    said = {word.partition(":")[0] for word in words}
                    assert len(said) == 1, words
                    assert [word.partition(":")[2] for word in words] == prompt.split()
                    answers.append(said.pop())

            await asyncio.gather(*(one(number) for number in range(40)))

    swapped, answers = threading.Event(), list[str]()
    with following(home, typed="one") as running:
        failed: list[BaseException] = []

        def load() -> None:
            try:
                asyncio.run(asked(running.url, answers))
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        try:
            for name in ("two", "three", "one", "two", "three"):
                running.follows(home.deploy(name))
                since = len(answers)
                until(lambda since=since: len(answers) > since + 20 or failed, 60)  # type: ignore[misc]
        finally:
            swapped.set()
            thread.join(60)
        assert not failed
        assert len(answers) >= 200
        assert Counter(answers).keys() == {"one", "two", "three"}
        until(lambda: sum(engine.started for engine in running.speakers.opened) == 1, 30)
        assert running.says() == "three"


def test_back_and_forth(home: Home) -> None:
    with following(home, typed="one") as running:
        running.follows(home.deploy("two"))
        running.follows(home.change().rollback())
        assert running.says() == "one"
        running.follows(home.change().rollback())
        assert running.says() == "two"
        told = running.told()
        assert (told["version"], told["state"], told["main"]["path"]) == (3, "serving", "two")

        def written() -> Standing:
            (server,) = followers(home.project)
            return server.names[NAME]

        until(lambda: (written().version, written().state) == (3, "serving"), 30)
        assert written().main.path == "two"
    assert not home.project.all(SERVER, Server)  # it has said good-bye


def test_what_cannot_be_opened_leaves_what_serves(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with following(home, typed="one") as running:
        for name, text, why in (
            ("gone", "x", "there is no artifact"),
            ("bad", "damaged", "bad is damaged"),
            ("other", "y", "is not what was deployed"),
        ):
            home.artifact(name, text)
            with held_back(running):
                deployment = home.deploy(name)
                if name == "gone":
                    (home.project.folder / name).unlink()
                if name == "other":
                    home.artifact(name, "changed")
            running.follows(deployment)
            assert running.says() == "one"
            told = running.told()
            assert (told["version"], told["main"]["path"]) == (deployment.version, "one")
            assert told["state"] == "failed"
            assert why in told["why"]
        until(lambda: followers(home.project)[0].names[NAME].state == "failed", 30)
        monkeypatch.setattr(module, "RETRY", 0.1)
        home.artifact("other", "y")  # restored
        until(lambda: running.says() == "y", 30)
        assert running.told()["state"] == "serving"


def test_a_deployment_that_was_taken_back_is_over(home: Home) -> None:
    home.artifact("bad", "damaged")
    with following(home, typed="one") as running:
        changes = home.change()
        deployment = changes.deploy(str(home.project.folder / "bad"), NAME)
        running.follows(deployment)
        assert running.told()["state"] == "failed"
        changes.take_back(deployment, "damaged")
        until(lambda: running.told()["state"] == "serving", 30)
        assert (running.told()["version"], running.says()) == (0, "one")


def test_an_unreachable_ledger_changes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with following(home, typed="one") as running:
        heard = threading.Event()

        def broken(*_: Any) -> Any:
            heard.set()
            raise ServeError("no disk", hint="find it")

        with monkeypatch.context() as patch:
            patch.setattr(module, "deployed", broken)
            assert heard.wait(30)
            assert running.says() == "one"
        running.follows(home.deploy("two"))
        assert running.says() == "two"


def test_a_server_begins_with_what_is_deployed(home: Home) -> None:
    home.deploy("one")
    home.deploy("two")
    home.change().canary(str(home.project.folder / "three"), 1.0)
    for typed in ("", "one"):
        with following(home, typed=typed) as running:
            until(lambda: running.told()["canary"], 30)
            assert running.says() == "three"
            assert running.told()["main"]["path"] == "two"
    home.artifact("two", "changed")
    starting = Follower(home.project, Gateway({}), running.speakers).opening({})
    with pytest.raises(CorruptError, match="is not what was deployed"):
        asyncio.run(starting)


def test_a_canary_has_its_share_and_can_be_promoted(home: Home) -> None:
    with following(home, typed="one") as running:
        running.follows(home.change().canary(str(home.project.folder / "two"), 0.3))
        canary = running.speakers.of("two")
        answers = Counter(running.says() for _ in range(200))
        assert 28 <= answers["two"] <= 92  # 60 +- 5 standard deviations
        assert answers["one"] + answers["two"] == 200
        roles = Counter((call.role, call.model_hash) for call in running.witness.ends if call.model)
        assert {role for role, _ in roles} == {"main", "canary"}
        assert len(roles) == 2
        assert metric(running, "role_requests_total", role="canary", outcome="answered") == answers["two"]
        assert metric(running, "role_request_seconds_count", role="main") == answers["one"]
        assert metric(running, "slots", model_name=NAME) == 2 * canary.slots
        assert metric(running, "role_info", role="canary", model_hash=running.told()["canary"]["hash"]) == 1
        canary.broken = True
        failed = sum(running.ask().status_code == 503 for _ in range(60))
        assert metric(running, "role_requests_total", role="canary", outcome="failed") == failed > 0
        canary.broken = False
        running.follows(home.change().promote())
        assert {running.says() for _ in range(20)} == {"two"}
        assert canary.started
        assert len(running.speakers.opened) == 2  # the same engine has another role
        assert not running.gateway.canaries


def test_a_rollback_ends_a_canary_first(home: Home) -> None:
    home.deploy("three")
    with following(home) as running:
        running.follows(home.deploy("one"))
        running.follows(home.change().canary(str(home.project.folder / "two"), 1.0))
        assert running.says() == "two"
        running.follows(home.change().rollback())
        assert running.says() == "one"
        running.follows(home.change().rollback())
        assert running.says() == "three"


def test_a_shadow_gets_copies_that_nobody_waits_for(home: Home) -> None:
    home.bits("one", 1.0)
    home.artifact("twin", "one")
    with following(home, typed="one") as running:
        running.follows(home.change().shadow(str(home.project.folder / "two"), 1.0))
        shadow = running.speakers.of("two")

        def copies(result: str) -> float:
            return metric(running, "shadow_copies_total", result=result)

        assert running.ask("a b", temperature=0).json()["choices"][0]["text"] == "one:a one:b "
        until(lambda: copies("differs") == 1, 30)
        running.ask("a b", temperature=1)
        running.ask("a b", temperature=1, stream=True)
        until(lambda: copies("answered") == 2, 30)
        shadow.said = "one"
        running.ask("a b", temperature=0, stream=True)
        until(lambda: copies("same") == 1, 30)
        shadow.broken = True
        assert running.says() == "one"
        until(lambda: copies("failed") == 1, 30)
        assert metric(running, "role_requests_total", role="shadow") == 5
        assert metric(running, "generation_tokens_total") == 2 * 4 + 1  # those of copies are not counted
        assert {call.role for call in running.witness.ends} == {"main"}

        shadow.broken, shadow.slots = False, 3
        shadow.held.clear()  # it hangs
        for _ in range(10):
            assert running.ask("a b").status_code == 200
        assert copies("dropped") == 7
        assert running.told()["shadow"]["share"] == 1.0
        running.follows(home.change().end_shadow())
        until(lambda: not shadow.started, 30)  # though it hung
        assert running.says() == "one"


def test_a_hanging_shadow_does_not_hold_up_the_end(home: Home) -> None:
    with following(home, typed="one") as running:
        running.follows(home.change().shadow(str(home.project.folder / "two"), 1.0))
        running.speakers.of("two").held.clear()
        running.ask("a b")
        until(lambda: running.gateway.shadowing._running, 30)


def test_a_shadow_sees_what_is_masked_alone(home: Home, tmp_path: Path) -> None:
    from isoflop.serve.audit import Audit
    from isoflop.serve.masking import Masker

    settings = Settings(open=True, mask=("email",), audit_text=True)
    with following(home, typed="one") as running:
        running.gateway.masker, running.gateway.settings = Masker, settings
        log = Audit(tmp_path / "audit.jsonl", settings)
        running.gateway.shadowing.observers = [log]
        running.follows(home.change().shadow(str(home.project.folder / "two"), 1.0))
        seen: list[str] = []
        shadow = running.speakers.of("two")
        generate = shadow.generate
        shadow.generate = lambda asked: seen.append(str(asked.prompt)) or generate(asked)  # type: ignore[method-assign,func-returns-value]
        running.ask("write to ann@example.org")
        until(lambda: seen, 30)
        assert seen == ["write to [EMAIL]"]
        until(lambda: '"shadow"' in (tmp_path / "audit.jsonl").read_text(), 30)
        log.close()
        line = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[-1])
        assert (line["role"], line["asked"], line["answered"]) == ("shadow", [], [])


def test_an_old_engine_is_closed_though_a_call_does_not_end(home: Home) -> None:
    settings = Settings(open=True, concurrent=1000, drain_seconds=0.2)
    with following(home, typed="one", settings=settings) as running:
        old = running.speakers.of("one")
        old.held.clear()
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(running.ask("a b")))
        thread.start()
        until(lambda: running.witness.heard, 30)
        running.follows(home.deploy("two"))
        until(lambda: not old.started, 30)
        old.held.set()
        thread.join(60)
        assert answers[0].status_code == 503
        assert answers[0].json()["error"]["code"] == "engine_failed"


def test_who_cannot_do_what_is_asked_does_not_take_its_place(home: Home) -> None:
    class Dumb:
        name, context, slots, started = "dumb", 8, 1, False

        async def close(self) -> None: ...

    with following(home, typed="one") as running:
        speakers, real = running.speakers, running.speakers.engine

        async def engine(where: Any, key_variable: str = "") -> Any:
            return Dumb() if Path(where).name == "two" else await real(where)

        speakers.engine = engine  # type: ignore[method-assign]
        running.follows(home.deploy("two"))
        assert running.told()["state"] == "failed"
        assert "two has no tokenizer to ask, as talker" in running.told()["why"]
        assert running.says() == "one"
