"""API keys: what the ledger keeps, what opens, and how soon a running server knows."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from isoflop.errors import IsoflopError, ServeError
from isoflop.serve.keys import Key, KeyRefused, Keys
from isoflop.store import Project


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(Project(tmp_path / "p"))


def refusal(keys: Keys, text: str) -> str:
    with pytest.raises(KeyRefused) as caught:
        asyncio.run(keys.check(text))
    return str(caught.value)


def test_a_key_opens_and_its_secret_is_nowhere(keys: Keys) -> None:
    text, key = keys.new("alice", rpm=60, tpm=100_000, expires="30d", scopes=("infer", "metrics"))
    assert asyncio.run(keys.check(text)) == key
    assert (key.scopes, key.rpm, key.tpm, key.state) == (("infer", "metrics"), 60, 100_000, "valid")
    _, id, secret = text.split("_", 2)
    assert id == key.id
    assert len(secret) >= 43  # 32 bytes in base 64
    for file in keys.project.folder.rglob("*"):
        assert not file.is_file() or secret.encode() not in file.read_bytes()
    other, second = keys.new("bob")
    assert (second.salt, second.hash) != (key.salt, key.hash)
    assert asyncio.run(keys.check(other)).name == "bob"


def test_whatever_is_no_key_gets_one_answer(keys: Keys) -> None:
    text, key = keys.new("alice")
    gone, _ = keys.new("gone")
    keys.revoke("gone")
    said = {
        refusal(keys, wrong)
        for wrong in (
            "", "isk", "isk_", "isk__", f"isk_{key.id}_", f"isk_{key.id}_{'x' * 43}", f"sk_{text[4:]}",
            f"isk_{'0' * 16}_{text.split('_', 2)[2]}", text + "x", text.upper(), "isk_é_é", gone,
        )
    }  # fmt: skip
    assert said == {"this API key is not valid"}


def test_unknown_ids_are_compared_as_well(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = keys.new("alice")
    compared = []

    def compare(a: str, b: str) -> bool:
        compared.append((len(a), len(b)))
        return a == b

    monkeypatch.setattr("hmac.compare_digest", compare)
    for wrong in (f"isk_{key.id}_wrong", "isk_unknown_wrong", "nothing like it"):
        refusal(keys, wrong)
    assert compared == [(64, 64)] * 3


def test_an_expired_key_is_told_so_only_with_its_secret(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    text, key = keys.new("alice", expires="12h")
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    keys.project.put("key", key.model_copy(update={"expires": past}))
    assert "expired" in refusal(Keys(keys.project), text)
    assert refusal(Keys(keys.project), text[:-1]) == "this API key is not valid"
    assert [k.state for k in keys.all()] == ["expired"]
    keys.new("alice")  # the name is free again


@pytest.mark.parametrize(
    ("typed", "after"), [("30d", 30 * 86400), ("12h", 43200), ("90s", 90), ("2w", 14 * 86400)]
)
def test_lifetimes(keys: Keys, typed: str, after: float) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    _, key = keys.new("a", expires=typed)
    end = timedelta(seconds=after)
    assert key.expires is not None
    assert before + end <= datetime.fromisoformat(key.expires) <= datetime.now(UTC) + end


def test_dates_begin_in_utc(keys: Keys) -> None:
    assert keys.new("a", expires="2999-01-31")[1].expires == "2999-01-31T00:00:00+00:00"
    assert keys.new("b", expires="2999-01-31T01:00+02:00")[1].expires == "2999-01-30T23:00:00+00:00"


@pytest.mark.parametrize("typed", ["", "soon", "30", "-3d", "0s", "1999-01-01", "1e300d", "5flops"])
def test_no_lifetime(keys: Keys, typed: str) -> None:
    with pytest.raises(IsoflopError, match="expire") as caught:
        keys.new("a", expires=typed)
    assert "30d" in caught.value.hint
    assert keys.all() == []


def test_names_and_scopes(keys: Keys) -> None:
    keys.new("alice")
    for name in ("alice", "", " ", "a\nb", "x" * 65):
        with pytest.raises(ServeError, match=r"named") as caught:
            keys.new(name)
        assert caught.value.hint
    with pytest.raises(ServeError, match="no scope 'root'"):
        keys.new("bob", scopes=("root",))
    assert [key.name for key in keys.all()] == ["alice"]


def test_revoking(keys: Keys) -> None:
    _, first = keys.new("a")
    _, twin = keys.new("b")
    keys.project.put("key", twin.model_copy(update={"name": "a"}))  # as two at the same moment would make
    with pytest.raises(ServeError, match="'a' names 2 keys") as caught:
        keys.revoke("a")
    assert first.id in caught.value.message
    assert keys.revoke(first.id).state == "revoked"
    assert keys.revoke("a").id == twin.id
    with pytest.raises(ServeError, match="names no key of"):
        keys.revoke("a")


def test_a_running_server_learns_of_new_and_revoked_keys(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the test's clock: what is known is used for a second, for two while it is read, and no longer."""
    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)
    text, _ = keys.new("alice")
    reads, read = [], keys.project.all

    def counted(kind: str, cls: type[Key]) -> list[Key]:
        reads.append(kind)
        return read(kind, cls)

    monkeypatch.setattr(keys.project, "all", counted)
    elsewhere = Keys(Project(keys.project.folder))

    async def story() -> None:
        nonlocal now
        for _ in range(20):
            await keys.check(text)
        assert len(reads) == 1
        new, _ = elsewhere.new("bob")
        now += 2.5  # nobody asked for a while
        assert (await keys.check(new)).name == "bob"
        elsewhere.revoke("alice")
        now += 1.5
        await asyncio.gather(*(keys.check(text) for _ in range(20)))  # none waits for the ledger
        while len(reads) < 3:
            await asyncio.sleep(0)
        await asyncio.gather(*(t for t in asyncio.all_tasks() if t is not asyncio.current_task()))
        with pytest.raises(KeyRefused):
            await keys.check(text)
        assert len(reads) == 3
        now += 2.5
        await asyncio.gather(*(keys.check(new) for _ in range(20)))
        assert len(reads) == 4

    asyncio.run(story())


def test_what_is_too_old_is_not_used(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    text, _ = keys.new("alice")

    def gone(kind: str, cls: type[Key]) -> list[Key]:
        raise ServeError("the ledger is away", hint="wait")

    now = time.monotonic()
    monkeypatch.setattr("time.monotonic", lambda: now)

    async def story() -> None:
        nonlocal now
        await keys.check(text)
        with monkeypatch.context() as patch:
            patch.setattr(keys.project, "all", gone)
            now += 1.5
            assert (await keys.check(text)).name == "alice"
            now += 1
            with pytest.raises(ServeError, match="away"):
                await keys.check(text)
        assert (await keys.check(text)).name == "alice"

    asyncio.run(story())
