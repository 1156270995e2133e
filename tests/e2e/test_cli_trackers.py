"""Trackers from the command line: one JSON document is still all of stdout, and bad names are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.commands import refused


def test_a_tracked_training(isoflop, tmp_path: Path, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("tensorboard", reason="the extra isoflop[tensorboard] is not installed")
    home = ("--project", tmp_path / "p")
    assert isoflop("corpus", sources[-1], "--vocab", 400, "--heldout", 0.2, *home).code == 0
    words = ("train", "--width", 32, "--layers", 2, "--tokens", 20_000, "--track", "tensorboard", *home)
    answer = isoflop(*words, "--json")
    assert answer.code == 0, answer.err
    run = json.loads(answer.out)
    assert list((tmp_path / "p" / "tracking" / "tensorboard" / f"train-{run['id']}").glob("events.*"))


@pytest.mark.parametrize("command", ["run", "sweep", "train"])
def test_an_unknown_tracker(isoflop, tmp_path: Path, command: str, sources: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "p"
    if command != "run":
        assert isoflop("corpus", sources[-1], "--vocab", 400, "--project", folder).code == 0
    refused(isoflop(command, "--track", "comet", "--project", folder), "no tracker 'comet'")
    assert (command != "run") == folder.exists()
