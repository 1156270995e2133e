"""The page of the whole trend: what it gathers, that it is whole, and that it needs nothing from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_report import Page as Html

from isoflop.errors import TrendError
from isoflop.plots import PALETTE
from isoflop.report.gathered import Page, Window, gather
from isoflop.report.trend import PICTURED, check_page, render
from isoflop.trend.answer import answer
from isoflop.trend.metrics import METRICS
from isoflop.trend.tables import read_table


def models(folder: Path, rows: int = 60, column: str = "flops") -> Path:
    """A table of models whose compute grows 4 times a year; one of their names is not harmless."""
    rng = np.random.default_rng(0)
    lines = [
        f"m{i},o{i % 9},{2016 + i // 10}-{1 + i % 10:02d}-09,{1e20 * 4 ** (i / 10 + 0.3 * rng.normal()):.4g},"
        f"{1e8 * 1.1**i:.4g}" for i in range(rows - 1)
    ]  # fmt: skip
    lines.append(f"<b>x</b>,o1,{2016 + rows // 10}-01-09,9e27,9e12")
    path = folder / "models.csv"
    path.write_text("\n".join([f"name,organisation,date,{column},params_total", *lines]))
    return path


def devices(folder: Path) -> Path:
    """A table of accelerators that states their memory alone."""
    lines = [f"d{i},v{i % 3},{2012 + i // 3}-0{1 + i % 3}-09,{1.1**i:.3g}GB" for i in range(30)]
    path = folder / "devices.csv"
    path.write_text("\n".join(["name,manufacturer,release_date,memory_bytes", *lines]))
    return path


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("tables")
    return gather(Window(since="2017"), table=models(folder), hardware=devices(folder), seed=3)


@pytest.fixture(scope="module")
def text(page: Page) -> str:
    return render(page)


def test_every_metric_is_answered_or_refused_with_a_reason(page: Page) -> None:
    assert set(page.answered) | set(page.refused) == set(METRICS)
    assert not set(page.answered) & set(page.refused)
    assert {"compute", "parameters", "memory"} <= set(page.answered)
    assert "states no 'tokens'" in page.refused["tokens"]
    assert "fp32" in page.refused["flops-per-second"]


def test_answers_are_those_of_the_single_commands(page: Page) -> None:
    path = page.tables["models"].path
    alone = answer(read_table(path), "compute", since="2017", frontier="top10", seed=3)
    assert page.lead.trend == alone
    assert page.choices is not None
    assert any(choice.asked for choice in page.choices.choices)
    assert page.limits.seed == 3
    assert page.limits_fitted is not None
    assert page.limits_fitted.growth != page.limits.growth
    assert page.answered["memory"].trend.frontier == "all"


def test_the_page_is_self_contained(text: str) -> None:
    found = Html(text)
    assert all(address.startswith("#") for address in found.addresses)
    assert not re.search(r"url\((?!#)|@import|https?://|<script", text)
    assert len(text) < 1_500_000


def test_ids_are_unique_links_have_targets_and_headings_do_not_skip(text: str) -> None:
    found = Html(text)
    assert len(found.ids) == len(set(found.ids))
    assert {address[1:] for address in found.addresses} <= set(found.ids)
    assert found.headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(found.headings))


def test_every_section_is_there_or_its_reason(page: Page, text: str) -> None:
    for name in ("metrics", "pictures", "certainty", "disclosure", "limits", "sources"):
        assert f'<section id="{name}"' in text
    for name in PICTURED:  # each has its place: a drawing, or the reason why not
        assert f'aria-label="{METRICS[name].about[0].upper()}{METRICS[name].about[1:]}. ' in text
    drawn = {"compute", "parameters", "memory", "residuals", "choices", "growth", "dates"}
    assert set(re.findall(r'id="(\w+)-figure_1"', text)) == drawn
    for says in (
        "Largest influences on the rate", "campus-power", "quantile 0.9", "What this page cannot say",
        page.lead.trend.snapshot, page.limits.snapshot, "Seed 3", "about the frontier, within 10x",
    ):  # fmt: skip
        assert says in text, says


def test_pictures_take_the_pages_colours_and_tables_are_named(text: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 7
    assert not any(colour in drawing for colour in PALETTE.values() for drawing in drawings)
    assert all('aria-hidden="true"' in drawing for drawing in drawings)
    assert text.count("<table") == text.count('<table aria-label="') == 10


def test_names_from_a_table_are_escaped(text: str) -> None:
    assert "<b>x</b>" not in text
    assert "&lt;b&gt;x&lt;/b&gt;" in text


def test_without_compute_another_metric_leads_and_few_points_leave_parts_out(tmp_path: Path) -> None:
    window = Window(since="2016", frontier="all")
    few = gather(window, table=models(tmp_path, 8, "batch"), hardware=devices(tmp_path))
    assert few.lead.metric.name == "parameters"
    assert few.choices is None
    assert few.limits_fitted is None
    shown = render(few)
    assert "No choice leaves points enough." in shown
    assert "states no &#39;flops&#39;, which compute needs" in shown


def test_tables_that_answer_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrendError, match=r"No metric of models can be answered.*in this window"):
        gather(Window(since="2025"), table=models(tmp_path), hardware=devices(tmp_path))
    with pytest.raises(TrendError, match="is after --until"):
        gather(Window(since="2020", until="2018"), table=models(tmp_path), hardware=devices(tmp_path))
    with pytest.raises(TrendError, match="cannot be read"):
        gather(Window(), table=models(tmp_path), hardware=tmp_path / "none.csv")
    with pytest.raises(TrendError, match="is a table of models"):
        gather(Window(), table=models(tmp_path), hardware=models(tmp_path))


def test_a_window_that_ends_early_says_nothing_of_growth_from_now_on(tmp_path: Path) -> None:
    early = gather(
        Window("2016", "2021", frontier="records"), table=models(tmp_path), hardware=devices(tmp_path)
    )
    assert early.lead.metric.name == "compute"
    assert early.limits_fitted is None
    assert "And were the largest run" not in render(early)


def test_a_page_cannot_be_a_folder_or_a_picture(tmp_path: Path) -> None:
    (tmp_path / "page.html").mkdir()
    for name in ("page.html", "page.png"):
        with pytest.raises(TrendError, match="A page cannot be"):
            check_page(tmp_path / name)


def test_the_page_loads_no_torch() -> None:
    code = "import sys, isoflop.report.trend; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
