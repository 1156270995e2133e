"""The audit log: what it says and does not say, and what happens when it cannot be written."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import pytest
from disks import Disk
from guarding import SECRET, ask, guarded
from hearing import until

from isoflop.errors import ServeError
from isoflop.serve import audit as audit_module
from isoflop.serve.audit import Audit
from isoflop.serve.calls import GATED, Call
from isoflop.serve.keys import Keys
from isoflop.serve.masking import KINDS, Masker
from isoflop.serve.masking.masker import Masked
from isoflop.serve.settings import Settings
from isoflop.store import Project


def lines(file: Path, event: str = "call") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in found if line["event"] == event]


def call(id: str, error: str = "") -> Call:
    done = Call(path="/v1/x", id=id, status=200, error=error)
    done.ended = done.began + 0.5
    return done


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "RETRY_SECONDS", 0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_a_line_says_who_and_what_but_no_text(file: Path, tmp_path: Path) -> None:
    keys = Keys(Project(tmp_path / "p"))
    text, key = keys.new("alice")
    audit = Audit(file, Settings())

    async def story() -> None:
        guard = guarded(keys, observers=[audit])
        for sent, status in ((text, 200), (text + "x", 401)):
            answer = await ask(guard, "/v1/size", method="POST", key=sent, body=[SECRET.encode()])
            assert answer.status == status

    asyncio.run(story())
    full = call("req-full")
    full.model, full.model_hash, full.route = "tiny", "abc", "/v1/chat/completions"
    full.prompt_tokens, full.completion_tokens, full.first = 3, 4, full.began + 0.25
    full.masked["email"] += 2
    full.asked, full.answered = [SECRET], {0: SECRET}
    audit.ended(full)
    audit.close()
    done, third = lines(file)
    assert (done["key"], done["name"], done["status"], done["prompt_tokens"]) == (key.id, "alice", 200, 13)
    assert [line["calls"] for line in lines(file, "refused")] == [1]
    assert done["time"].endswith("+00:00")
    assert third == {
        **third, "id": "req-full", "model": "tiny", "model_hash": "abc", "route": "/v1/chat/completions",
        "prompt_tokens": 3, "completion_tokens": 4, "seconds": 0.5, "first_token_seconds": 0.25,
        "masked": {"email": 2},
    }  # fmt: skip
    said = file.read_text()
    assert SECRET not in said
    assert text.split("_", 2)[2] not in said
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_texts_where_they_are_asked_for_each_masked_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = set()

    class Noting(Masker):
        def mask(self, text: str) -> Masked:
            threads.add(current_thread().name)
            return super().mask(text)

    monkeypatch.setattr(audit_module, "MASKER", Noting(KINDS))
    audit = Audit(file, Settings(audit_text=True))
    said = call("a")
    said.asked = ["two\nlines", "this is 4", "4111111111111111"]
    said.answered = {1: "é", 0: "4111 1111 1111 1111"}
    audit.ended(said)
    audit.close()
    (line,) = lines(file)
    assert line["asked"] == ["two\nlines", "this is 4", "[CARD]"]
    assert line["answered"] == ["[CARD]", "é"]
    assert threads == {"audit"}


def test_calls_without_a_key_are_counted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "REFUSED_SECONDS", 0.2)
    audit = Audit(file, Settings())
    until(lambda: lines(file, "start"))

    def refuse() -> None:
        stranger = call("stranger")
        stranger.status = 401
        audit.ended(stranger)

    for _ in range(500):
        refuse()
    until(lambda: sum(line["calls"] for line in lines(file, "refused")) == 500)
    refuse()
    until(lambda: sum(line["calls"] for line in lines(file, "refused")) == 501)
    for _ in range(9):
        refuse()
    audit.close()
    told = [line["calls"] for line in lines(file, "refused")]
    assert sum(told) == 510
    assert len(told) < 99
    assert lines(file) == []


def test_a_path_that_is_none_is_not_written(file: Path) -> None:
    audit = Audit(file, Settings())
    lost = call("lost")
    lost.path = f"/v1/{SECRET}"
    audit.ended(lost)
    audit.close()
    assert [line["route"] for line in lines(file)] == ["unmatched"]
    assert SECRET not in file.read_text()


def test_what_was_there_is_kept_and_closed_to_others(file: Path) -> None:
    file.write_text('{"event": "old"}\n')
    file.chmod(0o644)
    audit = Audit(file, Settings())
    audit.close()
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()] == ["old", "start"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_full_files_make_room(file: Path) -> None:
    audit = Audit(file, Settings(audit_bytes=1000, audit_files=2))
    for i in range(12):
        audit.ended(call(f"req-{i}"))
        until(lambda i=i: lines(file) and lines(file)[-1]["id"] == f"req-{i}")  # type: ignore[misc]
    audit.close()
    names = sorted(path.name for path in file.parent.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    kept = [line["id"] for name in reversed(names) for line in lines(file.with_name(name))]
    assert kept == [f"req-{i}" for i in range(12 - len(kept), 12)]
    assert {stat.S_IMODE(file.with_name(name).stat().st_mode) for name in names} == {0o600}
    assert all(file.with_name(name).stat().st_size <= 1000 for name in names)


def test_who_collects_it_may_move_it(file: Path) -> None:
    audit = Audit(file, Settings())
    audit.ended(call("one"))
    until(lambda: lines(file))
    file.rename(file.with_name("collected"))
    audit.ended(call("two"))
    audit.close()
    assert [line["id"] for line in lines(file)] == ["two"]


@pytest.mark.parametrize("place", ["none/audit.jsonl", ".", "pipe"])
def test_a_place_that_cannot_be_written_stops_the_start(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # which would be waited for
    with pytest.raises(ServeError, match=r"audit log .* cannot be written") as caught:
        Audit(tmp_path / place, Settings())
    assert caught.value.hint


class Broken:
    """A disk that refuses, after some bytes of the next write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.write, self.takes, self.tried = os.write, 0, 0
        self.patch = monkeypatch

    def breaks(self, takes: int = 0) -> None:
        self.takes = takes
        self.patch.setattr("os.write", self._refuse)

    def mends(self) -> None:
        self.patch.setattr("os.write", self.write)

    def _refuse(self, handle: int, data: bytes) -> int:
        self.tried += 1
        if not self.takes:
            raise OSError(28, "No space left on device")
        taken, self.takes = self.takes, 0
        return self.write(handle, data[:taken])


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Broken:
    caplog.set_level(logging.WARNING)  # whatever other tests have left
    return Broken(monkeypatch)


@pytest.mark.parametrize("takes", [0, 40])
def test_refusing_loses_no_line(
    file: Path, broken: Broken, caplog: pytest.LogCaptureFixture, takes: int
) -> None:
    audit = Audit(file, Settings())
    assert "refused" in audit.policy
    guard = guarded(observers=[audit])

    async def status() -> int:
        return (await ask(guard, "/v1/models")).status

    assert asyncio.run(status()) == 200
    until(lambda: lines(file))
    broken.breaks(takes)
    audit.ended(call("during"))
    until(audit.refuses)
    for _ in range(3):
        assert asyncio.run(status()) == 503
    assert asyncio.run(ask_live(guard)) == 200
    until(lambda: broken.tried > 5)
    broken.mends()
    until(lambda: not audit.refuses())
    assert asyncio.run(status()) == 200
    audit.close()
    assert [line["id"] for line in lines(file)][1] == "during"
    assert [line["calls"] for line in lines(file, "missing")] == [3]  # what was refused for this
    assert [line["status"] for line in lines(file)] == [200, 200, 200]
    assert audit.missing == 3
    told = [(r.levelno, "No space left" in r.getMessage()) for r in caplog.records]
    assert told == [(logging.ERROR, True), (logging.WARNING, False)]


async def ask_live(guard: Any) -> int:
    return (await ask(guard, "/health/live")).status


@pytest.mark.parametrize("takes", [0, 40])
def test_going_on_counts_what_is_missing(
    file: Path, broken: Broken, caplog: pytest.LogCaptureFixture, takes: int
) -> None:
    audit = Audit(file, Settings(audit_full="continue"))
    assert "answered" in audit.policy
    until(lambda: lines(file, "start"))
    broken.breaks(takes)
    for i in range(5):
        audit.ended(call(f"lost-{i}"))
        until(lambda i=i: audit.missing + bool(takes) > i)  # type: ignore[misc]
        assert audit.refuses() == ""
    broken.mends()
    audit.ended(call("kept"))
    audit.close()
    torn = 1 if takes else 0  # the line that had begun is written to its end
    assert [line["id"] for line in lines(file)] == ["lost-0"] * torn + ["kept"]
    assert [line["calls"] for line in lines(file, "missing")] == [5 - torn]
    assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.WARNING]  # told once


def test_a_disk_that_does_not_confirm(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit = Audit(file, Settings())
    until(lambda: lines(file, "start"))
    with monkeypatch.context() as patch:
        tried = []

        def fails(handle: int) -> None:
            tried.append(handle)
            raise OSError(5, "Input/output error")

        patch.setattr("os.fsync", fails)
        audit.ended(call("one"))
        until(audit.refuses)
        until(lambda: len(tried) > 3)
    until(lambda: not audit.refuses())
    audit.close()
    assert [line["id"] for line in lines(file)] == ["one"]


def test_what_ends_unwritten_is_said(file: Path, broken: Broken, caplog: pytest.LogCaptureFixture) -> None:
    audit = Audit(file, Settings(audit_full="continue"))
    until(lambda: lines(file, "start"))
    broken.breaks()
    audit.ended(call("lost"))
    until(lambda: audit.missing)
    audit.close()
    assert [r.levelno for r in caplog.records] == [logging.ERROR, logging.ERROR]
    assert "ends: 1 calls are missing" in caplog.text


def test_a_disk_that_is_full(disk: Disk) -> None:
    file = disk.folder / "audit.jsonl"
    audit = Audit(file, Settings())
    until(lambda: lines(file, "start"))
    (disk.folder / "other").write_bytes(b"x" * (disk_room(disk) - 100))
    for i in range(40):
        audit.ended(call(f"req-{i}"))
    until(audit.refuses)
    (disk.folder / "other").unlink()
    until(lambda: not audit.refuses())
    audit.close()
    assert [line["id"] for line in lines(file)] == [f"req-{i}" for i in range(40)]


def disk_room(disk: Disk) -> int:
    found = os.statvfs(disk.folder)
    return found.f_bavail * found.f_bsize


def test_a_disk_that_is_slow_holds_requests_back(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that wait are bounded; those refused for it do not wait."""
    monkeypatch.setattr(audit_module, "WAITING", 10)
    audit = Audit(file, Settings())
    until(lambda: lines(file, "start"))
    writing, go_on, write = Event(), Event(), os.write

    def slow(handle: int, data: bytes) -> int:
        writing.set()
        go_on.wait(30)
        return write(handle, data)

    monkeypatch.setattr("os.write", slow)
    audit.ended(call("first"))
    writing.wait(30)
    for i in range(8):
        audit.ended(call(str(i)))
    assert audit.refuses()
    for _ in range(99):
        audit.ended(call("refused", GATED))
    for i in range(8, 12):
        audit.ended(call(str(i)))
    assert audit.missing == 99 + 2
    go_on.set()
    audit.close()
    assert [line["id"] for line in lines(file)] == ["first", *(str(i) for i in range(10))]
    assert [line["calls"] for line in lines(file, "missing")] == [101]


def test_closing_does_not_wait_for_a_disk_for_ever(
    file: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    audit = Audit(file, Settings())
    until(lambda: lines(file, "start"))
    broken.breaks()
    audit.ended(call("lost"))
    until(audit.refuses)
    audit.close()
    assert "1 calls are missing" in caplog.text
