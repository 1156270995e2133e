"""`train --from` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.commands import refused
from isoflop.errors import TrainError
from isoflop.places import Place, here
from isoflop.progress import Progress
from isoflop.records import Result, Run, RunConfig

Job = tuple[Path, Result]


def test_going_on_says_what_was_forgotten(isoflop, project: Job) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    words = ("train", "--from", result.model, "--tokens", 4096, "--replay", folder, "--project", folder)
    plain = isoflop(*words)
    assert plain.code == 0, plain.err
    assert "old text, nats a token" in plain.out
    assert "continued" in plain.out
    run = Run.model_validate(json.loads(isoflop(*words, "--json").out))
    assert run.config.replay_share == 0.1
    assert run.forgetting is not None
    assert run.forgetting.corpus_id == run.corpus_id  # here the new text is the old one


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--from /no/such/model --tokens 100", "/no/such/model has no config.json"),
        ("--from MODEL", "--tokens above zero"),
        ("--from MODEL --tokens 100 --width 64", "are its own"),
        ("--from MODEL --tokens 100 --family isoflop", "are its own"),
        ("--from MODEL --tokens 100 --ewc 1", "need the text"),
        ("--from MODEL --tokens 100 --old /no/such/project", "no old corpus in /no/such/project"),
        ("--from MODEL --tokens 100 --old /a --replay /b", "are different"),
        ("--width 64 --tokens 100 --replay /a", "there is no --from"),
        ("--from MODEL --tokens 100 --replay PROJECT --replay-share 2", "replay share of 2.0"),
        ("--from MODEL --tokens 100 --lr-scale -1", "learning rates times -0.5 train nothing"),
        ("--width 64 --tokens 100 --lr-scale nan", "learning rates times nan"),
        ("--width 64 --tokens 100 --layers 0", "--layers 0 is no shape"),
        ("--layers 3", "--layers 3 is no shape"),
        ("--tokens -5", "--tokens is -5"),
    ],
)
def test_what_cannot_go_on_or_begin(isoflop, project: Job, line: str, says: str) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    places = {"MODEL": result.model, "PROJECT": folder}
    typed = [places.get(word, word) for word in line.split()]
    refused(isoflop("train", *typed, "--project", folder), says)


def test_a_cluster_lays_out_what_goes_on(isoflop, project: Job, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    folder, result = project

    def whole(config: RunConfig) -> RunConfig:
        raise TrainError("it was asked", hint="nothing")

    @contextmanager
    def place_at(ray: str | None, progress: Progress) -> Iterator[Place]:
        assert ray == "auto"
        yield replace(here(), whole=whole)

    monkeypatch.setattr("isoflop.places.place_at", place_at)
    words = ("train", "--from", result.model, "--tokens", 4096, "--ray", "auto", "--project", folder)
    refused(isoflop(*words), "it was asked")
