"""`dashboard` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

from e2e.commands import refused


def test_files_written_with_the_objectives_typed(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "watch"
    answer = isoflop(
        "dashboard", "--out", folder, "--objective", "first_token=300ms", "--objective", "errors=2%"
    )
    assert answer.code == 0, answer.err
    files = [Path(line) for line in answer.out.splitlines()]
    assert [file.name for file in files] == ["isoflop-dashboard.json", "isoflop-alerts.yml"]
    assert json.loads(files[0].read_text())["title"] == "isoflop serve"
    assert "> 0.3\n" in files[1].read_text()
    told = json.loads(isoflop("dashboard", "--out", folder, "--json").out)
    assert told["objectives"]["first_token"] == 1.0
    assert told["files"] == [str(file) for file in files]


def test_objectives_that_cannot_be_read(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    refused(isoflop("dashboard", "--objective", "speed=1"), "no objective 'speed'")
    refused(isoflop("dashboard", "--objective", "errors=few"), "--objective errors", "'few'")
    refused(isoflop("dashboard", "--objective", "errors"), "--objective errors has no =")
    refused(isoflop("dashboard", "--out", tmp_path / "file"), "cannot be written", "file")
