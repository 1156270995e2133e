"""API keys, as typed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path

from e2e.commands import Answer, refused
from isoflop.serve.keys import Keys
from isoflop.store import Project


def test_a_key_is_made_listed_and_revoked(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    home = ("--project", tmp_path / "p")
    limits = ("--rpm", 60, "--tpm", "100k", "--expires", "30d", "--scope", "infer", "--scope", "metrics")
    made = isoflop("keys", "new", "alice", *limits, *home)
    assert made.code == 0, made.err
    assert re.fullmatch(r"isk_[0-9a-f]{16}_[\w-]{43}\n", made.out)
    assert "alice" in made.err
    assert "100,000 tokens a minute" in made.err
    secret = made.out.strip().split("_", 2)[2]
    assert secret not in made.err
    keys = Keys(Project(tmp_path / "p"))
    assert asyncio.run(keys.check(made.out.strip())).rpm == 60

    (told,) = json.loads(isoflop("keys", "list", "--json", *home).out)
    assert (told["name"], told["tpm"], told["scopes"]) == ("alice", 100_000, ["infer", "metrics"])
    assert told["state"] == "valid"
    assert not {"salt", "hash"} & set(told)
    shown = isoflop("keys", "list", *home).out
    assert "alice" in shown
    assert keys.all()[0].hash not in shown

    refused(isoflop("keys", "new", "alice", *home), "has a key named 'alice' already")
    refused(isoflop("keys", "revoke", "bob", *home), "'bob' names no key of")
    gone = isoflop("keys", "revoke", "alice", *home)
    assert (gone.code, gone.out) == (0, "")
    assert "revoked" in gone.err
    assert json.loads(isoflop("keys", "list", "--json", *home).out)[0]["state"] == "revoked"


def test_what_cannot_be_a_key(isoflop: Callable[..., Answer], tmp_path: Path) -> None:
    home = ("--project", tmp_path / "p")
    refused(isoflop("keys", "new", "a", "--rpm", 0, *home), "--rpm is 0")
    refused(isoflop("keys", "new", "a", "--tpm", "lots", *home), "--tpm is 'lots'")
    refused(isoflop("keys", "new", "a", "--expires", "never", *home), "--expires is 'never'")
    refused(isoflop("keys", "new", "a", "--scope", "root", *home), "no scope 'root'")
    refused(isoflop("keys", "list", "--project", tmp_path / "none"), "there is no project here")
