"""Limits from the command line: the industry's, a project's, pictures, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from assumed import applying, changed, ledger

from e2e.commands import refused
from isoflop.laws import Fit
from isoflop.limits import LIMITS

FEW = ("--draws", 500)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a law and a plan."""
    return ledger(tmp_path_factory.mktemp("limit") / "p", Fit.of_published("besiroglu-2024")).folder


def test_the_industry_alone(isoflop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    answer = isoflop("limit", *FEW)
    assert answer.code == 0, answer.err
    assert "There is no project at isoflop-project" in answer.out
    assert "The first limit binds in 20" in answer.out
    for name in LIMITS:
        assert name in answer.out
    said = isoflop("limit", "--industry", *FEW).out
    assert "no project" not in said
    found = json.loads(isoflop("limit", "--json", "--seed", 7, "--interval", 0.5, *FEW).out)
    assert found["project"] is None
    assert found["industry"]["draws"] == 500
    assert found["industry"]["seed"] == 7
    assert found["industry"]["date"]["level"] == 0.5
    assert sum(x["first"] for x in found["industry"]["limits"]) == pytest.approx(1.0)
    assert list(tmp_path.iterdir()) == []


def test_a_project(isoflop, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    picture = tmp_path / "limits.png"
    mine = ("--project", home, "--days", 20, "--usd", "1k", "--usd-per-hour", 0.1)
    answer = isoflop("limit", *mine, "--plot", picture, *FEW)
    assert answer.code == 0, answer.err
    assert "From plan plan, 1e+13 FLOPs" in answer.out
    assert "You can still buy" in answer.out
    assert "what binds first is" in answer.out
    assert "Irreducible, by the law: 1.817" in answer.out
    assert picture.stat().st_size > 10_000
    found = json.loads(isoflop("limit", *mine, "--json", *FEW).out)
    assert [x["name"] for x in found["project"]["limits"]] == ["loss", "data", "machine", "money"]
    alone = json.loads(isoflop("limit", "--project", home, "--industry", "--json", *FEW).out)
    assert alone["project"] is None


def test_assumptions_of_ones_own(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = changed(tmp_path / "mine.toml", *(applying(name, 0) for name in LIMITS if name != "chips"))
    answer = isoflop("limit", "--industry", "--assumptions", path, *FEW)
    assert answer.code == 0, answer.err
    assert str(path) in answer.out
    assert "campus-power" not in answer.out
    assert "chips (" in answer.out


def test_growth_of_a_table(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    rows = [f"m{i},org,{2018 + i // 4}-{3 * (i % 4) + 1:02d}-01,{1e21 * 4.0 ** (i / 4):g}" for i in range(30)]
    path = tmp_path / "models.csv"
    path.write_text("\n".join(["name,organisation,date,flops", *rows]))
    answer = isoflop("limit", "--industry", "--table", path, *FEW)
    assert answer.code == 0, answer.err
    assert "as the top10 since 2018 of models.csv" in answer.out


def test_bad_input(isoflop, home: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    def limit(*words: object):  # type: ignore[no-untyped-def]
        return isoflop("limit", *words)

    refused(limit("--industry", "--draws", 99), "99 draws are too few")
    refused(limit("--industry", "--draws", "many"), "--draws")
    refused(limit("--industry", "--draws", "1B"), "1,000,000,000 draws are too many")
    refused(limit("--industry", "--interval", 1, *FEW), "interval of 1")
    refused(limit("--industry", "--assumptions", tmp_path / "none.toml"), "none.toml", "cannot be read")
    refused(limit("--industry", "--table", tmp_path / "none.csv"), "none.csv")
    refused(limit("--industry", "--days", 3), "--days is about a project")
    refused(limit("--industry", "--plot", tmp_path / "a.pdf", *FEW), "'a.pdf'")
    refused(limit("--project", tmp_path / "nowhere"), "no project here")
    refused(limit("--project", home, "--usd", 3, *FEW), "belong together")
    refused(limit("--project", home, "--days", 0, *FEW), "--days is 0")
    lawless = ledger(tmp_path / "lawless", None).folder
    refused(limit("--project", lawless), "no law yet")
    path = changed(tmp_path / "bad.toml", (r"^\[latency\]$", "[latensy]"))
    answer = limit("--industry", "--assumptions", path)
    refused(answer, "unknown table or limit: 'latensy'")
    assert "'latency'" in answer.err


def test_limits_do_without_torch() -> None:
    code = "import sys, isoflop.limits, isoflop.plots.limits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
