"""`manifests` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.commands import refused


def test_files_are_written_and_named(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("manifests", tmp_path / "k8s", "--image", "a/b:1", "--model", "/project/m.gguf")
    answer = isoflop(*words, "--replicas", "2:3")
    assert answer.code == 0, answer.err
    assert [Path(line) for line in answer.out.splitlines()] == sorted((tmp_path / "k8s").iterdir())
    assert "without --redis" in answer.err
    answer = isoflop(*words, "--redis", "redis:6379", "--json")
    assert "without --redis" not in answer.err
    assert json.loads(answer.out)["deployed"]["redis"] == "redis:6379"


def test_what_cannot_be_is_told(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("manifests", tmp_path / "k8s", "--model", "m", "--image")
    refused(isoflop(*words, "a b"), "--image is 'a b'")
    refused(isoflop(*words, "a", "--replicas", "4"), "--replicas is '4'")
    (tmp_path / "file").write_text("")
    refused(isoflop("manifests", tmp_path / "file", "--image", "a", "--model", "m"), "the folder")
