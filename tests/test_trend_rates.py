"""Frontiers against plain loops, bootstraps against resampled tables, doubling times at zero, influence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import TrendError
from isoflop.trend.frontier import Frontier, quantile_line
from isoflop.trend.points import Floats, Points
from isoflop.trend.rates import (
    BOOTSTRAPS,
    as_they_are,
    doubling,
    ends,
    influences,
    rate_of,
    resampled,
    slopes,
)


def growing(n: int = 60, rate: float = 1.4, noise: float = 1.0, seed: int = 0, groups: int = 20) -> Points:
    """Points of a known exponential, `groups` makers taking turns."""
    rng = np.random.default_rng(seed)
    years = np.sort(2015 + 10 * rng.random(n)).round(2)
    logs = 40 + rate * (years - 2015) + noise * rng.standard_normal(n)
    names, makers = (
        tuple(f"{word} {i % k}" for i in range(n)) for word, k in (("model", n), ("maker", groups))
    )
    return Points("compute", "FLOP", names, makers, years, np.exp(logs), np.full(n, 0.3), "abc")


def running(years: Floats, logs: Floats, top: int) -> list[int]:
    """Rows among the `top` largest of all rows up to their date, by the definition."""
    return [i for i in range(len(years)) if (logs[years <= years[i]] > logs[i]).sum() < top]


@pytest.mark.parametrize("top", [1, 3, 10])
def test_running_top_is_as_defined(top: int) -> None:
    p = growing(80)
    found = as_they_are(p, -np.inf, Frontier.named(f"top{top}")).weights[0]
    assert np.flatnonzero(found).tolist() == running(p.years, np.log(p.values), top)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_a_resampled_table_has_the_frontier_of_its_rows(seed: int, top: int) -> None:
    rng = np.random.default_rng(seed)
    years = np.sort(rng.integers(2010, 2016, 14).astype(float))  # dates in common
    logs = rng.integers(0, 8, (1, 14)).astype(float)  # and ties
    counts = rng.multinomial(14, np.full(14, 1 / 14), size=1).astype(float)
    members = Frontier.named(f"top{top}").members(years, logs, counts)[0]
    rows = np.repeat(np.arange(14), counts[0].astype(int))
    slow = {int(rows[i]) for i in running(years[rows], logs[0, rows], top)}
    assert set(np.flatnonzero(members).tolist()) == slow


def test_records_are_above_all_that_came_before() -> None:
    years = np.array([2010.0, 2011, 2011, 2012, 2013, 2014])
    logs = np.array([[1.0, 2, 3, 3, 2, 4]])
    found = Frontier.named("records").members(years, logs, np.ones((1, 6)))
    assert np.flatnonzero(found[0]).tolist() == [0, 2, 5]
    falling = Frontier.named("records", falls=True).members(years, -logs, np.ones((1, 6)))
    assert (falling == found).all()


@pytest.mark.parametrize("name", ["best", "top", "top0", "top-3", "Top10", ""])
def test_unknown_frontiers(name: str) -> None:
    with pytest.raises(TrendError, match=f"no frontier '{name}'"):
        Frontier.named(name)


def test_slopes_of_weighted_tables_are_numpys() -> None:
    p, rng = growing(), np.random.default_rng(1)
    for bootstrap in BOOTSTRAPS:
        tables = resampled(p, 2018.0, Frontier.named("all"), bootstrap, 5, rng)
        logs = np.broadcast_to(tables.logs, tables.weights.shape)
        slow = [np.polyfit(tables.years, y, 1, w=np.sqrt(w))[0]
                for w, y in zip(tables.weights, logs, strict=True)]  # fmt: skip
        assert slopes(tables) == pytest.approx(slow)


def test_the_window_begins_after_the_frontier_is_found() -> None:
    p = growing(rate=0.3)
    whole = as_they_are(p, -np.inf, Frontier.named("top5"))
    late = as_they_are(p, 2020.0, Frontier.named("top5"))
    assert (late.weights == whole.weights * (p.years >= 2020)).all()
    inside = p.take(np.flatnonzero(p.years >= 2020))
    assert as_they_are(inside, -np.inf, Frontier.named("top5")).weights.sum() > late.weights.sum()


def test_organisations_are_drawn_whole_and_errors_move_values() -> None:
    p, rng = growing(), np.random.default_rng(2)
    drawn = resampled(p, -np.inf, Frontier.named("all"), "organisations", 50, rng).weights
    makers = np.array(p.groups)
    for maker in set(p.groups):
        assert np.ptp(drawn[:, makers == maker], axis=1).max() == 0
    moved = resampled(p, -np.inf, Frontier.named("all"), "errors", 4000, rng).logs
    assert moved.shape == (4000, 60)
    assert (moved - np.log(p.values)).std() == pytest.approx(0.3, rel=0.02)


def test_intervals_cover_the_true_rate() -> None:
    """Of 200 series, 90% intervals of rows hold the truth in about 90%."""
    held = 0
    for seed in range(200):
        p, rng = growing(seed=seed), np.random.default_rng(seed)
        drawn = slopes(resampled(p, -np.inf, Frontier.named("all"), "rows", 300, rng))
        low, high = ends(drawn, 0.9)
        held += low < 1.4 < high
    assert 165 <= held <= 193  # binomial, 3 sd about 0.87, the pairs bootstrap's known shortfall counted


def test_doubling_time_is_the_rates_inverse_and_may_be_unbounded() -> None:
    month = 12 * np.log(2)
    found = doubling(1.0, 0.5, 2.0, 0.9)
    assert (found.low, found.value, found.high) == pytest.approx((month / 2, month, 2 * month))
    found = doubling(1.0, -0.5, 2.0, 0.9)
    assert found.low == pytest.approx(month / 2)
    assert found.high == np.inf
    found = doubling(1.0, 0.0, 2.0, 0.9)
    assert found.high == np.inf
    found = doubling(-1.0, -2.0, -0.5, 0.9)
    assert (found.low, found.value, found.high) == pytest.approx((-2 * month, -month, -month / 2))
    found = doubling(-1.0, -2.0, 0.5, 0.9)
    assert found.low == -np.inf
    assert found.high == pytest.approx(-month / 2)
    assert doubling(0.0, -1.0, 1.0, 0.9).value == np.inf


def test_a_rate_is_a_factor_a_year() -> None:
    found = rate_of(np.log(4.35), np.log(np.linspace(4, 5, 1001)), 0.8, "rows")
    assert found.per_year.value == pytest.approx(4.35)
    assert (found.per_year.low, found.per_year.high) == pytest.approx((4.1, 4.9), rel=1e-3)
    assert found.doubling_months.value == pytest.approx(12 * np.log(2) / np.log(4.35))
    assert found.draws == 1001
    with pytest.raises(TrendError, match="More than half"):
        rate_of(1.0, np.array([np.nan, np.nan, 1.0]), 0.9, "rows")


@pytest.mark.parametrize("name", ["all", "top5", "records"])
def test_influence_is_the_rate_without_each_point(name: str) -> None:
    p, frontier = growing(40), Frontier.named(name)
    rate = float(np.exp(slopes(as_they_are(p, 2016.0, frontier))[0]))
    without = {}
    for i in range(40):
        others = p.take([j for j in range(40) if j != i])
        without[p.names[i]] = float(np.exp(slopes(as_they_are(others, 2016.0, frontier))[0]))
    slow = sorted(without, key=lambda at: -abs(rate - without[at]))[:5]
    found = influences(p, 2016.0, frontier)
    assert [i.name for i in found] == slow
    assert [i.rate_without for i in found] == pytest.approx([without[at] for at in slow])
    assert [i.change for i in found] == pytest.approx([rate - without[at] for at in slow])


def test_a_quantile_line_leaves_its_share_below_and_counts_weights() -> None:
    rng = np.random.default_rng(3)
    years = np.sort(rng.uniform(2010, 2025, 400))
    logs = 1.2 * years + rng.exponential(size=400)
    level, slope = quantile_line(years, logs, np.ones(400), 0.9)
    below = logs <= level + slope * (years - years.mean()) + 1e-9
    assert below.mean() == pytest.approx(0.9, abs=0.006)
    assert slope == pytest.approx(1.2, abs=0.05)
    counts = rng.multinomial(60, np.full(60, 1 / 60)).astype(float)
    rows = np.repeat(np.arange(60), counts.astype(int))
    direct = quantile_line(years[rows], logs[rows], np.ones(60), 0.9)[1]
    assert quantile_line(years[:60], logs[:60], counts, 0.9)[1] == pytest.approx(direct, abs=1e-6)
