"""Trends from the command line: the package's own facts, a user's table, pictures, snapshots, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from e2e.commands import refused


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models.csv, a later snapshot of it, and a table of a user's own metric."""
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    head = "name,organisation,date,flops,params_total,domain,confidence"
    rows = [
        f"m{i},o{i % 11},{2015 + i // 7}-{1 + i % 7:02d}-09,{flops:.4g},{1e8 * 1.1**i:.4g},language,likely"
        for i, flops in enumerate(1e20 * 5 ** (np.arange(63) / 7) * np.exp(0.5 * rng.standard_normal(63)))
    ]
    (folder / "models.csv").write_text("\n".join([head, *rows]))
    (folder / "later.csv").write_text(
        "\n".join([head, *rows[1:], "new,o1,2024-01-09,1e26,7e9,language,likely"])
    )
    days = [f"202{i // 12}-{1 + i % 12:02d}-01,{1.5**i * np.exp(0.1 * rng.standard_normal()):.5g}"
            for i in range(30)]  # fmt: skip
    (folder / "own.csv").write_text("\n".join(["date,minutes of work", *days]))
    return folder


def test_a_trend_in_words(isoflop, tables: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    picture = tmp_path / "new" / "trend.svg"
    answer = isoflop("trend", "compute", "--table", tables / "models.csv", "--since", "2016", "--frontier",
                     "top10", "--choices", "--plot", picture, "--dark")  # fmt: skip
    assert answer.code == 0, answer.err
    for says in (
        "a year [", "doubles every", "on the frontier top10, 2016-01", "by bootstrap of organisations",
        "Growth models", "kinked-2", "Best growth model: ", "series simulated without one", "Forecast",
        "Largest influences", "100% of 56 rows state it", "reasonable choices", "asked", "quantile 0.9",
    ):  # fmt: skip
        assert says in answer.out, says
    assert picture.read_text().startswith("<?xml")
    assert str(picture) in answer.err


def test_a_trend_as_json(isoflop, tables: Path) -> None:  # type: ignore[no-untyped-def]
    words = ("trend", "compute", "--table", tables / "models.csv", "--json")
    found = json.loads(isoflop(*words).out)
    promised = {"n", "rate_per_year", "doubling_months", "interval", "level", "models", "verdict", "snapshot"}
    assert promised <= found.keys()
    assert found["n"] == 63
    assert found["interval"][0] < found["rate_per_year"] < found["interval"][1]
    assert found["rate_per_year"] == pytest.approx(5, rel=0.1)
    assert found["level"] == 0.9
    assert {"aicc", "bic", "forecast_error", "name"} <= found["models"][0].keys()
    assert found["disclosure"]["stated"] == 63
    assert "choices" not in found
    assert json.loads(isoflop(*words).out) == found


def test_a_metric_of_the_users_own(isoflop, tables: Path) -> None:  # type: ignore[no-untyped-def]
    own = ("--table", tables / "own.csv", "--json")
    found = json.loads(isoflop("trend", "minutes-of-work", *own).out)
    assert found["n"] == 30
    assert found["doubling_months"] == pytest.approx(np.log(2) / np.log(1.5), rel=0.05)
    named = json.loads(isoflop("trend", "time-horizon", "--value-column", "minutes of work", *own).out)
    assert (named["metric"], named["rate_per_year"]) == ("time-horizon", found["rate_per_year"])


def test_the_packages_own_facts(isoflop) -> None:  # type: ignore[no-untyped-def]
    found = json.loads(isoflop("trend", "parameters", "--since", "2018", "--json").out)
    assert found["n"] > 100
    assert 1.2 < found["interval"][0] < found["rate_per_year"] < found["interval"][1] < 5


def test_two_snapshots(isoflop, tables: Path) -> None:  # type: ignore[no-untyped-def]
    answer = isoflop("trend", "diff", tables / "models.csv", tables / "later.csv")
    assert answer.code == 0, answer.err
    assert "1 rows added, 1 removed, 0 cells changed" in answer.out
    assert "compute" in answer.out
    found = json.loads(isoflop("trend", "diff", tables / "models.csv", tables / "later.csv", "--json").out)
    assert (found["added"], found["removed"]) == (["new"], ["m0"])


def test_help_names_the_metrics(isoflop) -> None:  # type: ignore[no-untyped-def]
    listed = isoflop("trend", "--help").out
    for name in ("parameters", "compute", "flops-per-dollar", "time-horizon", "diff", "Example:"):
        assert name in listed
    assert "isoflop trend memory" in isoflop("trend", "memory", "--help").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("compute", "--since", "2024", "--until", "2015"), "is after --until"),
        (("compute", "--since", "soon"), "is 'soon', which is not a date"),
        (("compute", "--frontier", "best"), "no frontier 'best'"),
        (("compute", "--domain", "chess"), "no rows of the domain 'chess'"),
        (("compute", "--since", "2023-06"), "a rate needs 5"),
        (("compute", "--interval", "90"), "An interval of 90"),
        (("compute", "--plot", "trend.gif"), "cannot be 'trend.gif'"),
        (("computee",), "no metric named 'computee'"),
        (("memory",), "is a table of models"),
    ],
)
def test_questions_refused(isoflop, tables: Path, words: tuple[str, ...], says: str) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("trend", *words, "--table", tables / "models.csv"), says)


def test_tables_refused(isoflop, tables: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("trend", "compute", "--table", tables / "none.csv"), "cannot be read")
    refused(isoflop("trend", "inference-price"), "no table of inference-price")
    refused(isoflop("trend", "diff", tables / "models.csv", tables / "none.csv"), "cannot be read")
