"""Verdicts, as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judged import as_finished, by_bytes

from e2e.commands import refused
from isoflop.records import Result

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")


def test_an_export_is_judged_and_shown(  # type: ignore[no-untyped-def]
    project: tuple[Path, Result], isoflop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_bytes(monkeypatch)
    home = as_finished(project, tmp_path / "project").folder
    model = home / "artifacts" / Path(project[1].model).name
    answer = isoflop("export", model, "--type", "q4_0", "--calibrate", 0, "--project", home)
    file = answer.out.split()[-1]
    by_folder = isoflop("eval", Path(file).parent, "--tokens", 256, "--project", home)
    assert by_folder.code == 0, by_folder.err
    assert "nan" not in by_folder.out
    few = ("--tokens", 4096, "--project", home)
    answer = isoflop("verdict", file, *few)
    assert answer.code == 0, answer.err
    for words in (
        "its change, paired",
        "seconds a token",
        "training FLOPs",
        "final",
        "It is worth",
        "accepted",
    ):
        assert words in answer.out
    found = json.loads(isoflop("verdict", "--all", *few, "--json").out)
    assert [v["step"] for v in found] == ["final", "gguf q4_0"]
    assert "windows" in found[0]["served"]
    assert "gguf q4_0" in isoflop("verdict", "--all", *few).out
    assert isoflop("report", "--project", home).code == 0
    assert 'id="serving"' in (home / "report.html").read_text()
    refused(isoflop("verdict", "--project", home), "of one artifact or of all")
    refused(isoflop("verdict", file, "--engine", "mlx", "--project", home), "no format 'mlx'")
    refused(isoflop("verdict", home / "none", "--project", home), "there is no artifact")
