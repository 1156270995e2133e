"""Pictures of trends: the arrays behind them, and files light and dark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import ProjectError, TrendError
from isoflop.plots.trends import (
    residual_data,
    save_trend,
    specification_data,
    trend_data,
)
from isoflop.trend.answer import Question, Trend, answer_to, question
from isoflop.trend.specification import Choices, specification

Scene = tuple[Question, Trend, Choices]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    rng = np.random.default_rng(0)
    rows = [f"m{i},o{i % 9},{2014 + i // 10}-{1 + i % 10:02d}-09,{1e20 * 4 ** (i / 10 + rng.normal()):.4g}"
            for i in range(80)]  # fmt: skip
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    path.write_text("\n".join(["name,organisation,date,flops", *rows]))
    table, asked = question("compute", path=path, since="2016", frontier="top10")
    return asked, answer_to(asked), specification(table, "compute", since="2016", frontier="top10")


def test_the_curve_runs_through_the_forecasts(scene: Scene) -> None:
    asked, trend, _ = scene
    data = trend_data(asked, trend)
    assert len(data.frontier_years) == trend.n
    assert len(data.years) == trend.of - trend.n
    assert data.years.min() >= 2016
    assert data.grid[0] == trend.first
    assert data.grid[-1] == pytest.approx(trend.forecast[-1].year)
    assert data.curve[-1] == pytest.approx(trend.forecast[-1].value.value)
    assert (data.band[0] < data.curve).all()
    assert (data.curve < data.band[1]).all()


def test_residuals_of_constant_growth_add_up_to_nothing(scene: Scene) -> None:
    data = residual_data(scene[0])
    assert data.residual.sum() == pytest.approx(0, abs=1e-9)
    width = len(data.residual) - len(data.rolling) + 1
    assert width >= 5
    assert data.rolling[3] == pytest.approx(data.residual[3 : 3 + width].mean())
    assert data.rolling_years[3] == pytest.approx(data.years[3 : 3 + width].mean())


def test_the_specification_curve_rises_and_marks_every_choice(scene: Scene) -> None:
    data = specification_data(scene[2])
    assert (np.diff(data.rate) >= 0).all()
    assert data.chosen.shape == (len(data.labels), len(data.rate))
    frontiers = [
        i for i, label in enumerate(data.labels) if not label.startswith(("from", "domain", "without"))
    ]
    assert (data.chosen[frontiers].sum(axis=0) == 1).all()
    assert data.asked is not None
    assert data.chosen[data.labels.index("top10"), data.asked] == 1
    assert data.chosen[data.labels.index("from 2016"), data.asked] == 1


def test_pictures_are_written_light_and_dark(scene: Scene, tmp_path: Path) -> None:
    asked, trend, found = scene
    save_trend(asked, trend, found, tmp_path / "light.svg")
    save_trend(asked, trend, found, tmp_path / "dark.svg", in_dark=True)
    light, dark = ((tmp_path / name).read_text() for name in ("light.svg", "dark.svg"))
    assert "#fdfdfc" in light
    assert "#14181c" in dark
    assert "#14181c" not in light
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(ProjectError, match="cannot be written"):
        save_trend(asked, trend, found, tmp_path / "folder.svg")
    with pytest.raises(TrendError, match=r"cannot be 'x\.pdf'"):
        save_trend(asked, trend, found, tmp_path / "x.pdf")
