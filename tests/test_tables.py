"""Tables of dated facts: the package's own, those of others by their columns, the user's, and bad ones."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import TrendError
from isoflop.trend.cells import bound, day, number, numbers
from isoflop.trend.checks import doubts
from isoflop.trend.tables import Table, read_table

SHARED = Path(__file__).parents[2] / "shared/data/trend"


def shared(name: str) -> Path:
    if not (SHARED / name).exists():
        pytest.skip(f"{name} is not beside the project (shared/data/trend)")
    return SHARED / name


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_the_packages_models_are_many_dated_and_consistent() -> None:
    table = read_table()
    assert len(table) >= 150
    assert len(set(table.names)) == len(table)
    days = [d for d in table.dates if d is not None]
    assert len(days) == len(table)
    assert days == sorted(days)
    assert (days[0].year, days[-1].year) == (2012, 2026)
    assert all(table.words("source"))
    assert set(table.words("confidence")) == {"confident", "likely", "speculative"}
    assert set(table.words("open_weights")) <= {"yes", "no", ""}
    total, active = table.stated("params_total"), table.stated("params_active")
    assert (active[~np.isnan(active)] < total[~np.isnan(active)]).all()
    for column in ("params_total", "tokens", "epochs", "flops", "cost_usd", "hardware_count"):
        assert np.nanmin(table.stated(column)) > 0


def test_compute_that_the_packages_models_derive_is_6nd() -> None:
    table = read_table()
    how = np.array(table.words("flops_how"))
    flops, product = table.stated("flops"), 6 * table.values("params_active") * table.values("tokens")
    derived = how == "6ND"
    assert derived.sum() > 100
    np.testing.assert_allclose(flops[derived], product[derived], rtol=1e-4)
    assert (~np.isnan(flops) == (derived | (how == "stated"))).all()


def test_known_figures_of_the_packages_models() -> None:
    table = read_table()
    row = {name: i for i, name in enumerate(table.names)}
    assert table.stated("flops")[row["GPT-3 175B"]] == 3.14e23  # Brown et al. 2005.14165, table D.1
    assert table.stated("flops")[row["PaLM 540B"]] == 2.5272e24  # Chowdhery et al. 2204.02311
    assert table.stated("params_active")[row["DeepSeek-V3"]] == 37e9
    assert table.dates[row["Llama 3.1 405B"]] == date(2024, 7, 23)
    assert np.isnan(table.stated("flops")[row["GPT-4"]])  # not published


EPOCH = (
    "Model,Organization,Publication date,Domain,Parameters,Training compute (FLOP),"
    "Training dataset size (total),Epochs,Confidence,Notability criteria,Parameters notes\n"
    "A,Lab,2020-01-01,Language,1000000000.0,6e18,1e9,,Confident,SOTA improvement,\n"
    'B,Lab,2021-01-01,"Multimodal,Language,Vision",2e9,2.4e19,1e9,2.0,Likely,Highly cited,"1B active"\n'
    "C,Lab,2022-01-01,Vision,3e9,,5e6,,Speculative,SOTA improvement,\n"
    "D,Shop,2022-02-01,Language,3e9,6e18,5e6,,,,\n"
    'E,Shop,,Language,3e9,6e18,"5,6",,,Highly cited,mixture of experts\n'
)


def test_an_epoch_table_of_models_is_known_by_its_columns(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "\ufeff" + EPOCH))
    assert (table.format.name, table.kind) == ("Epoch AI models", "models")
    assert table.names == ("A", "B", "C", "E")  # D is not notable
    assert table.notes == ("1 row left out: not called notable by Epoch AI.",)
    assert table.dates[3] is None
    np.testing.assert_array_equal(table.values("tokens"), [1e9, 2e9, 5e6, np.nan])  # unique x epochs
    assert table.mixture.tolist() == [False, True, False, True]
    np.testing.assert_array_equal(table.values("params_active"), [1e9, 1e9, 3e9, np.nan])
    assert len(read_table(written(tmp_path, EPOCH), every_row=True)) == 5


def test_the_shared_tables_are_known_by_their_columns() -> None:
    models, hardware = read_table(shared("notable_models.csv")), read_table(shared("accelerators.csv"))
    assert (models.kind, len(models)) == ("models", 492)
    assert (hardware.kind, len(hardware)) == ("hardware", 189)
    row = hardware.names.index("NVIDIA Tesla T4")
    assert hardware.stated("memory_bytes")[row] == 16e9
    assert hardware.stated("bandwidth_bytes")[row] == 320e9
    left = {hardware.names[d.row]: d for d in doubts(hardware)}
    assert left["NVIDIA GeForce RTX 4090"].columns == ("fp16", "fp8")
    assert left["AMD Instinct MI455X"].columns == ()
    assert "Baidu Kunlun R200 (150W)" not in left


def test_active_parameters_are_read_from_names(tmp_path: Path) -> None:
    text = "name,date,params_total,flops\nQwen3-235B-A22B,2025-04-28,235B,1e24\nDense,2025,7B,1e22\n"
    table = read_table(written(tmp_path, text))
    np.testing.assert_array_equal(table.values("params_active"), [22e9, 7e9])


def test_the_snapshot_is_of_the_bytes(tmp_path: Path) -> None:
    one = read_table(written(tmp_path, EPOCH, "one.csv"))
    same = read_table(written(tmp_path, EPOCH, "two.csv"))
    other = read_table(written(tmp_path, EPOCH.replace("2e9", "3e9"), "three.csv"))
    assert one.snapshot == same.snapshot != other.snapshot
    assert len(one.snapshot) == 16


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [("7e9", 7e9, ""), ("7B", 7e9, ""), ("7 B", 7e9, ""), ("1,234,567", 1234567.0, ""),
     ("80GB", 80e9, "bytes"), ("80 GiB", 80 * 2.0**30, "bytes"), ("3.35TB/s", 3.35e12, "bytes/s")],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, value: float, unit: str) -> None:
    assert number(text) == (value, unit)


@pytest.mark.parametrize("text", ["about 7", "7 parsecs", "1,2", "2260275840,2290000001", "80Gb"])
def test_what_is_no_number(text: str) -> None:
    with pytest.raises(ValueError):
        number(text)


def test_days_of_months_and_years() -> None:
    assert day("2024-07-02") == date(2024, 7, 2)
    assert day("2024-02", "last") == date(2024, 2, 29)
    assert day("2024") == date(2024, 7, 2)
    assert bound("--since", "2024", "first") == date(2024, 1, 1)
    assert bound("--until", "2024", "last") == date(2024, 12, 31)
    for text in ("2026-H2", "02/07/2024", "2024-13", "2024-02-30", ""):
        with pytest.raises(ValueError):
            day(text)
    with pytest.raises(TrendError, match=r"--since is 'soon'"):
        bound("--since", "soon", "first")


MEMORY = "name,release,memory_bytes,bandwidth_bytes\nA,2020,80e9,1\nB,2021,{},2\n"


@pytest.mark.parametrize(
    ("cell", "said"),
    [("0", "is '0', which is not a number above zero"), ("-3", "above zero"), ("much", "not a number"),
     ("80 GB", "mixes units: row 1 is '80e9', row 2 is '80 GB'")],
)  # fmt: skip
def test_a_bad_cell_names_file_row_and_column(tmp_path: Path, cell: str, said: str) -> None:
    table = read_table(written(tmp_path, MEMORY.format(cell)))
    with pytest.raises(TrendError, match=said) as caught:
        table.values("memory_bytes")
    assert str(tmp_path) in caught.value.message
    assert "memory_bytes" in caught.value.message
    np.testing.assert_array_equal(table.values("bandwidth_bytes"), [1, 2])  # a column that is not asked


def test_cells_of_other_peoples_tables_are_left_empty_where_bad() -> None:
    found = numbers(["1e9", "0", "1,2", "", "n/a"], "size", "t.csv", list("abcde"), strict=False)
    np.testing.assert_array_equal(found, [1e9, np.nan, np.nan, np.nan, np.nan])


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "has no rows", "a row a fact"),
        ("date,value\n", "has no rows", "a row a fact"),
        ("date,value\n2020\n", "row 1 has 1 cells", "quotation marks"),
        ("date,date\n2020,1\n", "two columns named 'date'", "Rename"),
        ("when,value\n2020,1\n", "has no column of dates", "--date-column"),
        ("date,value\nlast week,1\n", "row 1, column 'date' is 'last week'", "2024-07-02"),
        ("name,date,value\nGPT,2199-01-01,1\n", r"row 1 \(GPT\).*which lies ahead", "Mend"),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, said: str, hint: str) -> None:
    with pytest.raises(TrendError, match=said) as caught:
        read_table(written(tmp_path, text))
    assert hint in caught.value.hint


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(TrendError, match="cannot be read"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(TrendError, match="cannot be read"):
        read_table(tmp_path)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TrendError, match="not a table of text"):
        read_table(tmp_path / "bytes.csv")


def test_an_unknown_column_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "day,price\n2020,1\n")
    with pytest.raises(TrendError, match="no column 'prize'") as caught:
        read_table(path, date_column="day", value_column="prize")
    assert "'price'" in caught.value.hint
    table: Table = read_table(path, date_column="day", value_column="price")
    np.testing.assert_array_equal(table.own_column("price"), [1.0])
    assert table.names == ("row 1",)


def test_hardware_that_lies_ahead_is_announced(tmp_path: Path) -> None:
    text = (
        "Hardware name,Manufacturer,Release date,Memory (bytes)\nX1,Y,2199-01-01,8e9\nX0,Y,2020-01-01,4e9\n"
    )
    table = read_table(written(tmp_path, text))
    assert [(d.row, d.why) for d in doubts(table)] == [(0, "announced only")]
