"""Pictures of limits: the arrays behind them, and the files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from assumed import changed, known, only
from matplotlib.figure import Figure

from isoflop.errors import TrendError
from isoflop.laws import Fit
from isoflop.limits import IndustryAnswer, Standing, UserAnswer, industry, read_assumptions, user
from isoflop.plots.limits import draw_growth, draw_spans, industry_data, save_limits, spans_data, user_data
from isoflop.records import Interval


@pytest.fixture(scope="module")
def world() -> IndustryAnswer:
    return industry(read_assumptions(), draws=500)


@pytest.fixture(scope="module")
def own() -> UserAnswer:
    law = Fit.of_published("besiroglu-2024")
    here = Standing(law=law, start="plan x", flops=1e18, unique_tokens=1e10, flops_per_second=1e12)
    return user(here, read_assumptions(), days=30, draws=500)


def test_rows_are_sorted_and_cut() -> None:
    late = Interval(value=2031.0, low=2030.0, high=np.inf)
    never = Interval(value=np.inf, low=2035.0, high=np.inf)
    soon = Interval(value=2027.0, low=2026.0, high=2028.0)
    found = spans_data([("late", late, 0.1), ("never", never, 0.0), ("soon", soon, 0.9)], 2025.5, 2036.0)
    assert found.names == ("soon", "late", "never")
    assert found.middle.tolist() == [2027.0, 2031.0, 2036.0]
    assert found.high.tolist() == [2028.0, 2036.0, 2036.0]
    assert found.first.tolist() == [0.9, 0.1, 0.0]


def test_the_band_begins_at_the_largest_run_and_ends_after_the_last_limit(world: IndustryAnswer) -> None:
    growth, dates = industry_data(world)
    assert growth.years[0] == world.start
    assert growth.middle[0] == pytest.approx(world.frontier.value, rel=0.01)
    assert np.all(growth.low <= growth.middle)
    assert np.all(growth.middle <= growth.high)
    assert growth.years[-1] > dates.high.max() - 1
    assert sum(dates.first) == pytest.approx(1.0)


def test_what_is_drawn(world: IndustryAnswer, own: UserAnswer) -> None:
    growth, dates = industry_data(world)
    top, below = Figure().subplots(2, 1)
    draw_growth(top, growth)
    draw_spans(below, dates, "year")
    assert top.get_yscale() == "log"
    assert [tick.get_text() for tick in below.get_yticklabels()] == list(dates.names)
    assert {text.get_text() for text in below.texts} == {f"{share:.0%}" for share in dates.first}
    mine = user_data(own)
    assert set(mine.names) == {"loss", "data", "machine"}
    assert np.isfinite([mine.low, mine.middle, mine.high]).all()


def test_pictures_are_written(world: IndustryAnswer, own: UserAnswer, tmp_path: Path) -> None:
    save_limits(tmp_path / "new" / "a.svg", world, own)
    save_limits(tmp_path / "b.svg", world, own, in_dark=True)
    light, dark = ((tmp_path / name).read_text() for name in ("new/a.svg", "b.svg"))
    assert "#fdfdfc" in light
    assert "#14181c" in dark
    with pytest.raises(TrendError, match=r"'c\.gif'"):
        save_limits(tmp_path / "c.gif", world)


def test_a_world_without_limits_is_drawn_too(tmp_path: Path) -> None:
    path = changed(tmp_path / "mine.toml", known("growth", "rate", 0.9), *only("latency"))
    save_limits(tmp_path / "free.png", industry(read_assumptions(path), draws=100))
    assert (tmp_path / "free.png").stat().st_size > 5_000
