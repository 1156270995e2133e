"""Metrics of tables as dated points: published counts and rates, windows, domains, errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from test_tables import EPOCH, shared, written

from isoflop.errors import TrendError
from isoflop.trend.metrics import METRICS
from isoflop.trend.points import Points
from isoflop.trend.series import series
from isoflop.trend.tables import read_table


def rate(points: Points) -> float:
    """Times a year, least squares."""
    return math.exp(np.polyfit(points.years, np.log(points.values), 1)[0])


def test_fp32_of_hardware_as_published() -> None:
    points = series(read_table(shared("accelerators.csv")), "flops-per-second")
    assert len(points) == 126  # headline_figures.csv: 28% a year, doubling in 2.77 years
    assert rate(points) == pytest.approx(1.285, abs=0.005)
    assert math.log(2) / math.log(rate(points)) == pytest.approx(2.77, rel=0.01)
    assert not points.log_sd.any()  # data sheets
    assert any("announced only" in note for note in points.notes)


@pytest.mark.parametrize(
    ("metric", "doubling"), [("memory", 2.99), ("bandwidth", 2.84), ("flops-per-dollar", 4.35)]
)
def test_doubling_years_of_hardware(metric: str, doubling: float) -> None:
    found = rate(series(read_table(shared("accelerators.csv")), metric))
    assert math.log(2) / math.log(found) == pytest.approx(doubling, rel=0.01)


def test_the_shared_models_are_fewer_than_the_published_ones() -> None:
    """The headline counts are of Epoch AI's whole file; this table keeps 492 of its 1,036 notable rows."""
    table = read_table(shared("notable_models.csv"))
    compute, sizes = series(table, "compute", since="2010"), series(table, "parameters", since="2018")
    assert (len(compute), len(sizes)) == (378, 358)  # published: 467 and 495
    assert rate(compute) == pytest.approx(4.80, abs=0.01)  # published: 4.35
    assert rate(sizes) == pytest.approx(3.10, abs=0.01)  # published: 2.86
    assert compute.undisclosed == 492 - 378


def test_language_is_alone_or_beside_others() -> None:
    table = read_table(shared("notable_models.csv"))
    both = series(table, "compute", "2017-06", "2024-05", "language")
    alone = series(table, "compute", "2017-06", "2024-05", "language only")
    assert (len(both), len(alone)) == (191, 163)
    assert 7.4 < rate(both) < rate(alone) < 12.2  # published: 9.5 [7.4, 12.2]


def test_tokens_leave_out_rows_that_count_images(tmp_path: Path) -> None:
    points = series(read_table(written(tmp_path, EPOCH)), "tokens")
    assert points.names == ("A", "B")
    assert points.values.tolist() == [1e9, 2e9]
    assert "1 row left out: images or samples are counted, not tokens." in points.notes
    assert "1 of 2 rows state no epochs: taken as one." in points.notes


def test_confidence_is_the_width_of_a_90_percent_interval(tmp_path: Path) -> None:
    points = series(read_table(written(tmp_path, EPOCH)), "parameters")
    np.testing.assert_allclose(np.exp(points.log_sd * 1.6449), [3, 10, 31], rtol=1e-4)
    assert points.groups == ("Lab", "Lab", "Lab")


def test_windows_count_months_whole(tmp_path: Path) -> None:
    path = written(tmp_path, "date,value\n2020-05-31,3\n2020-06-01,1\n2019-12-31,2\n2020-01-01,4\n")
    table = read_table(path, value_column="value")
    assert series(table, "price", "2020", "2020-05").values.tolist() == [4, 3]
    assert series(table, "price").values.tolist() == [2, 4, 3, 1]  # the earliest first
    with pytest.raises(TrendError, match="--since 2021 is after --until 2020"):
        series(table, "price", "2021", "2020")
    with pytest.raises(TrendError, match="has no price in this window") as caught:
        series(table, "price", "2021")
    assert "2019-12-31 to 2020-06-01" in caught.value.hint


def test_user_tables_state_known_metrics_and_their_own(tmp_path: Path) -> None:
    table = read_table(
        written(tmp_path, "model,date,params_total,Time Horizon\na,2020,7B,2\nb,2021,70e9,9\n")
    )
    assert series(table, "parameters").values.tolist() == [7e9, 7e10]
    assert series(table, "time-horizon").values.tolist() == [2, 9]
    assert series(table, "time horizon").values.tolist() == [2, 9]
    with pytest.raises(TrendError, match="no column 'time horizont'") as caught:
        series(table, "time horizont")
    assert "Time Horizon" in caught.value.hint
    with pytest.raises(TrendError, match="states no 'flops'"):
        series(table, "compute")


def test_few_prices_are_refused(tmp_path: Path) -> None:
    rows = "".join(f"2024-0{i},{10 / i}\n" for i in range(1, 6))
    path = written(tmp_path, f"date,usd\n{rows}")
    with pytest.raises(TrendError, match="5 points of inference-price; fewer than 6 are refused"):
        series(read_table(path, value_column="usd"), "inference-price")
    path.write_text(f"date,usd\n{rows}2024-07,1\n")
    assert len(series(read_table(path, value_column="usd"), "inference-price")) == 6


def test_density_says_what_else_raises_it(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "name,date,capability-density\na,2023-02,1\nb,2024-11,9\n"))
    points = series(table, "capability-density")
    assert points.values.tolist() == [1, 9]
    assert "a small model for longer" in points.notes[-1]


def test_costs_of_the_packages_models_are_too_few() -> None:
    with pytest.raises(TrendError, match="few publish a cost"):
        series(read_table(), "cost")


def test_a_table_of_another_kind_is_refused() -> None:
    with pytest.raises(TrendError, match="a table of models, which does not state memory"):
        series(read_table(), "memory")
    with pytest.raises(TrendError, match="no metric named 'computes'") as caught:
        series(read_table(), "computes")
    assert "compute" in caught.value.hint
    with pytest.raises(TrendError, match="no rows of the domain 'langauge'") as caught:
        series(read_table(), "compute", domain="langauge")
    assert "language" in caught.value.hint


def test_the_packages_models_state_most_metrics() -> None:
    table = read_table()
    for name, metric in METRICS.items():
        if metric.kind == "models" and name not in ("cost", "unique-tokens"):
            points = series(table, name, since="2017")
            assert len(points) > 100, name
            assert points.undisclosed > 0
            assert (np.diff(points.years) >= 0).all()


def test_compute_far_from_6nd_and_blind_mixtures_are_said() -> None:
    notes = series(read_table(), "compute").notes
    assert any("more than 1.5x from 6 N D" in note for note in notes)
    assert any(note.startswith("2 rows of mixtures whose active parameters are not stated") for note in notes)
