"""Two snapshots of a table compared."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_tables import EPOCH, shared, written

from isoflop.errors import TrendError
from isoflop.trend.diff import diff
from isoflop.trend.tables import read_table

HEAD = "name,organisation,date,params_total,flops,confidence\n"
BEFORE = HEAD + "A,X,2020,1e9,1e20,Likely\nB,X,2021,2e9,4e20,\nC,Y,2022,3e9,1.6e21,\nC,Y,2022-09,4e9,2e21,\n"
AFTER = (
    HEAD
    + "A,X,2020,1B,1e20,Confident\nC,Y,2022,3e9,,\nC,Z,2022-09,5e9,2e21,\n"
    + "D,Y,2023,4e9,6e21,\nE,Y,2024,,1e23,\n"
)


def test_rows_cells_and_rates(tmp_path: Path) -> None:
    a, b = read_table(written(tmp_path, BEFORE, "a.csv")), read_table(written(tmp_path, AFTER, "b.csv"))
    found = diff(a, b)
    assert (found.before, found.after) == (a.snapshot, b.snapshot)
    assert (found.added, found.removed) == (("D", "E"), ("B",))
    changes = {(c.name, c.column): (c.before, c.after) for c in found.changed}
    assert changes == {
        ("A", "confidence"): ("Likely", "Confident"),  # 1e9 and 1B are one number
        ("C", "flops"): ("1.6e+21", ""),
        ("C (2)", "organisation"): ("Y", "Z"),
        ("C (2)", "params_total"): ("4e+09", "5e+09"),
    }
    rates = {moved.metric: moved for moved in found.rates}
    assert (rates["compute"].n_before, rates["compute"].n_after) == (4, 4)
    assert rates["compute"].rate_before != rates["compute"].rate_after
    assert type(found).from_json(found.to_json()) == found


def test_a_table_does_not_differ_from_itself(tmp_path: Path) -> None:
    for table in (read_table(), read_table(written(tmp_path, EPOCH))):
        found = diff(table, table)
        assert (found.added, found.removed, found.changed) == ((), (), ())
        assert all(moved.rate_before == moved.rate_after for moved in found.rates)


def test_the_rate_moves_by_the_rows_that_were_added(tmp_path: Path) -> None:
    rows = [f"m{y},X,{y},1e9,{1e18 * 2.0 ** (y - 2015)},\n" for y in range(2015, 2024)]
    late = [f"n{y},X,{y},1e9,{1e18 * 2.0**8 * 8.0 ** (y - 2023)},\n" for y in (2024, 2025)]
    a = read_table(written(tmp_path, HEAD + "".join(rows), "a.csv"))
    b = read_table(written(tmp_path, HEAD + "".join(rows + late), "b.csv"))
    moved = next(m for m in diff(a, b).rates if m.metric == "compute")
    assert moved.rate_before == pytest.approx(2.0, rel=1e-3)
    assert moved.rate_after > 2.2


def test_formats_may_differ_and_kinds_may_not(tmp_path: Path) -> None:
    epoch = read_table(written(tmp_path, EPOCH, "epoch.csv"))
    ours = read_table()
    assert {m.metric for m in diff(epoch, ours).rates} == {"parameters", "active-parameters"}
    with pytest.raises(TrendError, match=r"a table of models and .* one of hardware"):
        diff(read_table(shared("notable_models.csv")), read_table(shared("accelerators.csv")))


def test_user_values_are_compared_by_their_column(tmp_path: Path) -> None:
    a = read_table(
        written(tmp_path, "date,name,usd\n2020,a,1\n2021,b,2\n2022,c,4\n", "a.csv"), value_column="usd"
    )
    b = read_table(
        written(tmp_path, "date,name,usd\n2020,a,1\n2021,b,2\n2022,c,8\n", "b.csv"), value_column="usd"
    )
    found = diff(a, b)
    assert [(c.name, c.column, c.before, c.after) for c in found.changed] == [("c", "usd", "4", "8")]
    assert [m.metric for m in found.rates] == ["usd"]
