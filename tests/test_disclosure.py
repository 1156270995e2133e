"""Who states a metric, and the worst rates that silence allows."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from test_tables import written

from isoflop.errors import TrendError
from isoflop.trend.disclosure import ASSUMPTIONS, disclosure
from isoflop.trend.tables import Table, read_table

YEARS = (2018, 2019, 2020, 2021, 2022, 2023, 2024, 2025)
SILENT = {2019: "Open", 2023: "Closed", 2025: "Closed"}


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """Growth of 4x a year, exactly; three rows do not state it."""
    rows = [
        f"m{y},{SILENT.get(y, 'Open')},{y}-07-02,{'' if y in SILENT else 1e20 * 4.0 ** (y - 2018)}"
        for y in YEARS
    ]
    return read_table(written(tmp_path, "\n".join(["name,organisation,date,flops", *rows])))


def test_shares_by_year_and_organisation(table: Table) -> None:
    found = disclosure(table, "compute")
    assert (found.rows, found.stated) == (8, 5)
    assert [(s.label, s.share) for s in found.by_year] == [(str(y), float(y not in SILENT)) for y in YEARS]
    assert [(s.label, s.rows, s.stated) for s in found.by_organisation] == [("Open", 6, 5), ("Closed", 2, 0)]
    assert found.rate_per_year == pytest.approx(4.0, rel=1e-3)
    assert type(found).from_json(found.to_json()) == found


def test_bounds_hold_every_value_that_is_assumed_and_are_reached(table: Table) -> None:
    """All corners of the silent rows' intervals, fitted one by one: the largest and the least slope."""
    found = disclosure(table, "compute", factors=(10.0,))
    years = table.years
    logs = np.log(table.values("flops"))
    silent = np.isnan(logs)
    trend = np.polyval(np.polyfit(years[~silent], logs[~silent], 1), years)
    frontier = np.array([np.nanmax(logs[: i + 1]) for i in range(len(logs))])
    for bound in found.bounds:
        about, low, high = ASSUMPTIONS[bound.assumption]
        centre = trend if about == "trend" else frontier
        slopes = []
        for corner in itertools.product((low, high), repeat=int(silent.sum())):
            filled = logs.copy()
            filled[silent] = centre[silent] + np.array(corner) * math.log(10)
            slopes.append(np.polyfit(years, filled, 1)[0])
        assert bound.low == pytest.approx(math.exp(min(slopes)))
        assert bound.high == pytest.approx(math.exp(max(slopes)))


def test_without_silence_nothing_is_open(tmp_path: Path) -> None:
    rows = "\n".join(f"{y},{2.0 ** (y - 2018)}" for y in YEARS)
    found = disclosure(read_table(written(tmp_path, f"date,flops\n{rows}\n")), "compute")
    assert all(b.low == pytest.approx(b.high) == pytest.approx(found.rate_per_year) for b in found.bounds)


def test_a_price_that_falls_mirrors_one_that_rises(tmp_path: Path) -> None:
    rising = "".join(f"{y},{'' if y in SILENT else 3.0 ** (y - 2018)}\n" for y in YEARS)
    falling = "".join(f"{y},{'' if y in SILENT else 3.0 ** (2018 - y)}\n" for y in YEARS)
    tables = [
        read_table(written(tmp_path, f"date,usd\n{rows}", f"{i}.csv"), value_column="usd")
        for i, rows in enumerate((rising, falling))
    ]
    up, down = disclosure(tables[0], "score"), disclosure(tables[1], "inference-price")
    assert down.rate_per_year == pytest.approx(1 / up.rate_per_year)
    for one, other in zip(up.bounds, down.bounds, strict=True):
        assert (other.low, other.high) == pytest.approx((1 / one.high, 1 / one.low))


def test_a_wider_factor_opens_the_bounds(table: Table) -> None:
    found = disclosure(table, "compute", factors=(2.0, 20.0))
    width = {(b.assumption, b.factor): b.high / b.low for b in found.bounds}
    assert all(width[name, 20.0] > width[name, 2.0] > 1 for name in ASSUMPTIONS)


def test_too_few_stated_rows(table: Table) -> None:
    with pytest.raises(TrendError, match="1 of 3 rows state compute, on fewer than three days"):
        disclosure(table, "compute", since="2023")


def test_frontier_laboratories_of_our_table_state_less_compute_since_2023() -> None:
    table = read_table()
    found = disclosure(table, "compute", since="2023")
    shares = {s.label: s.share for s in found.by_organisation}
    assert shares["OpenAI"] == shares["Anthropic"] == 0
    assert shares["Meta AI"] > 0.9
    assert shares["Allen Institute for AI"] == 1
