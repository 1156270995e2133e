"""What a project can still buy: closed forms on a published law, joint draws, and what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assumed import changed, known, ledger, run

from isoflop.errors import BudgetError, CorruptError, ProjectError, TrendError
from isoflop.laws import Fit, fit
from isoflop.laws.repeated import effective_tokens
from isoflop.limits import Assumptions, Standing, UserAnswer, read_assumptions, standing, user
from isoflop.store import Project

LAW = Fit.of_published("besiroglu-2024")


@cache
def law() -> Fit:
    """40 runs of a known law, 0.3% noise."""
    N = np.repeat(1e6 * 2.0 ** np.arange(8), 5)
    D = N * 5.0 * np.tile(2.0 ** np.arange(5), 8)
    L = (1.8 + 480.0 / N**0.35 + 2100.0 / D**0.37) * np.exp(
        0.003 * np.random.default_rng(0).standard_normal(len(N))
    )
    return fit({"params": N, "tokens": D, "loss": L}, bootstrap=200)


def here(law: Fit = LAW, unique: float = 1e10) -> Standing:
    return Standing(law=law, start="plan x", flops=1e18, unique_tokens=unique, flops_per_second=1e12)


def sure(folder: Path) -> Assumptions:
    """Known epochs, speed and gap."""
    edits = [known("user", "epochs", 4), known("user", "speed", 1), known("loss", "gap", 0.1)]
    return read_assumptions(changed(folder / "mine.toml", *edits))


def left(found: UserAnswer) -> dict[str, float]:
    return {x.name: x.doublings.value for x in found.limits}


def test_each_limit_in_closed_form(tmp_path: Path) -> None:
    found = user(here(), sure(tmp_path), days=10, usd=50, usd_per_hour=0.25, draws=100)
    data = 1e18 * 2.0 ** left(found)["data"]
    fresh = float(effective_tokens(np.array(4e10), 1e10))
    assert 3.6e10 < fresh < 4e10  # four epochs are nearly as good as new
    assert LAW.split().optimum(LAW.theta, data)[1] == pytest.approx(fresh, rel=1e-6)
    loss = float(LAW.compute_for(LAW.params["E"] + 0.1)[0])
    assert left(found)["loss"] == pytest.approx(np.log2(loss / 1e18))
    assert left(found)["machine"] == pytest.approx(np.log2(1e12 * 864_000 / 1e18))
    assert left(found)["money"] == pytest.approx(np.log2(1e12 * 200 * 3600 / 1e18))
    assert found.doublings.value == min(left(found).values())
    assert {x.name for x in found.limits if x.first} == {"money"}
    assert sum(x.first for x in found.limits) == pytest.approx(1.0)


def test_the_first_is_the_least_and_is_said(tmp_path: Path) -> None:
    scarce = user(here(unique=1e7), sure(tmp_path), days=1000, draws=100)
    assert {x.name: x.first for x in scarce.limits} == {"loss": 0.0, "data": 1.0, "machine": 0.0}
    assert "what binds first is data (100%)" in scarce.sentence
    assert scarce.doublings.value < 0
    assert scarce.sentence.startswith("Nothing is left to buy")
    short = user(here(unique=1e12), sure(tmp_path), days=30, draws=100)
    assert short.sentence.startswith("You can still buy 1.4 doublings [1.4, 1.4]")
    assert "machine (100%)" in short.sentence
    assert short.loss_then is not None
    assert short.loss_then.value < short.loss_now.value


def test_the_laws_uncertainty_is_in_the_intervals() -> None:
    found = user(here(law(), unique=1e9), read_assumptions(), draws=2000, days=100)
    data = next(x for x in found.limits if x.name == "data").doublings
    assert data.low < data.value < data.high
    assert found.irreducible is not None
    assert found.irreducible.low < 1.8 < found.irreducible.high
    assert found == user(here(law(), unique=1e9), read_assumptions(), draws=2000, days=100)
    wide = user(here(law(), unique=1e9), read_assumptions(), draws=2000, days=100, level=0.5)
    assert wide.doublings.high - wide.doublings.low < found.doublings.high - found.doublings.low


def test_more_of_what_is_scarce_buys_more(tmp_path: Path) -> None:
    few, many = (user(here(unique=u), sure(tmp_path), draws=100).doublings.value for u in (1e8, 2e8))
    power = LAW.params["alpha"] / (LAW.params["alpha"] + LAW.params["beta"])  # D* grows as C to this
    assert many - few == pytest.approx(1 / power, rel=1e-6)


def test_without_time_or_money_that_is_said(tmp_path: Path) -> None:
    notes = " ".join(user(here(), sure(tmp_path), draws=100).notes)
    assert "give --days" in notes
    assert "no bootstrap draws" in notes
    assert "give --days" not in " ".join(user(here(), sure(tmp_path), draws=100, days=1).notes)


def test_a_law_without_an_irreducible_loss(tmp_path: Path) -> None:
    found = user(here(Fit.of_published("kaplan-2020")), sure(tmp_path), draws=100, days=1)
    assert "loss" not in left(found)
    assert found.irreducible is None
    assert any("no irreducible loss" in note for note in found.notes)


def test_amounts_that_make_no_sense(tmp_path: Path) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"days": 0.0}, "--days is 0"),
        ({"days": float("inf")}, "--days is inf"),
        ({"usd": -5.0, "usd_per_hour": 1.0}, "--usd is -5"),
        ({"usd": 5.0}, "belong together"),
        ({"usd_per_hour": 5.0}, "belong together"),
    )
    for amounts, words in cases:
        with pytest.raises(BudgetError, match=words):
            user(here(), sure(tmp_path), draws=100, **amounts)
    with pytest.raises(TrendError, match="10 draws"):
        user(here(), sure(tmp_path), draws=10)


def test_a_project_stands_where_its_ledger_says(tmp_path: Path) -> None:
    found = standing(ledger(tmp_path / "whole", law()))
    assert found.start == "plan plan"
    assert found.flops == 1e13
    assert found.unique_tokens == 10_000_000
    assert found.flops_per_second == pytest.approx(10.0 * 1e13 / 1_000_000)
    assert found.law == law()


def test_a_project_without_law_plan_or_corpus(tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match="no law yet"):
        standing(ledger(tmp_path / "lawless", None))
    with pytest.raises(ProjectError, match="neither a run nor a plan"):
        standing(ledger(tmp_path / "planless", law(), planned=False))
    home = ledger(tmp_path / "textless", law())
    home.delete("corpus", "text")
    with pytest.raises(CorruptError, match="no corpus text"):
        standing(home)
    with pytest.raises(ProjectError, match="no project here"):
        Project(tmp_path / "nowhere", create=False)


def test_the_last_run_is_counted_from_and_not_the_ladders(tmp_path: Path) -> None:
    home = ledger(tmp_path / "ran", law())
    home.put("run", run("final", 3e15, 20.0))
    home.put("run", run("ladder", 1e12, 90.0))
    found = standing(home)
    assert found.start == "run final"
    assert found.flops == 3e15
    assert found.flops_per_second == pytest.approx(20.0 * 3e15 / 1_000_000)
