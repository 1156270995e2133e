"""`feedback export` as a user types it, into what `adapt` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from called import answer, conversed

from e2e.commands import refused
from isoflop.examples import read_examples, with_roles
from isoflop.serve.feedback import Feedbacks
from isoflop.store import Project
from isoflop.tasks.generation import Generation


@pytest.fixture
def home(tmp_path: Path) -> Path:
    feedbacks = Feedbacks(Project(tmp_path / "home"))
    answer(feedbacks, "r3", "r4")
    conversed(feedbacks, "r1", "Why?", "Because. 因为")
    conversed(feedbacks, "r2", "Who?", "Nobody.")
    feedbacks.keep("r1", "up", key=None, prompt="Why?", answer="Because. 因为")
    feedbacks.keep("r2", "down", key=None, prompt="Who?", answer="Nobody.")
    feedbacks.keep("r3", "up", key=None)
    feedbacks.keep("r4", "up", key=None, prompt="Where?", answer="Here.")
    return tmp_path / "home"


def test_exported_and_read_as_examples(isoflop, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "liked.jsonl"
    told = isoflop("feedback", "export", "--out", file, "--project", home)
    assert told.code == 0, told.err
    assert told.out == ""
    assert told.err == (
        "1 of 3 answers rated up; left out: 1 without prompt and answer, 1 with other texts than answered, "
        "0 the same as others\n"
    )
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"prompt": "Why?", "response": "Because. 因为"}
    ]
    rows, columns = with_roles(read_examples([file])["train"], Generation.roles)
    assert columns == {"prompt": "prompt", "response": "response"}
    assert rows[0] == {"prompt": "Why?", "response": "Because. 因为"}
    more = isoflop("feedback", "export", "--edited", "--project", home)
    assert [json.loads(line)["prompt"] for line in more.out.splitlines()] == ["Why?", "Where?"]
    printed = isoflop("feedback", "export", "--rating", "down", "--project", home)
    assert json.loads(printed.out) == {"prompt": "Who?", "response": "Nobody."}


def test_nothing_to_export(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    Project(tmp_path / "empty")
    refused(
        isoflop("feedback", "export", "--project", tmp_path / "empty"),
        "no answers to export",
        "0 are rated up",
    )
    refused(isoflop("feedback", "export", "--project", tmp_path / "nowhere"), "no project here")
