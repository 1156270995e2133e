"""The file of assumptions: what it says, and what is wrong with a changed one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from assumed import applying, changed

from isoflop.errors import TrendError
from isoflop.limits import LIMITS, Quantity, read_assumptions


def quantity(**fields: object) -> Quantity:
    common = {"low": 2.0, "high": 50.0, "unit": "x", "date": "2026-01-01", "source": "a test"}
    return Quantity.model_validate(common | fields)


def test_the_packaged_file_says_a_source_and_a_date_for_everything() -> None:
    found = read_assumptions()
    assert set(found.applies) == set(LIMITS)
    assert all(q.source and q.date[:2] == "20" for q in found.quantities.values())
    assert found.snapshot == read_assumptions().snapshot


def test_draws_have_the_quantiles_of_the_file() -> None:
    drawn = quantity().draws(200_000, np.random.default_rng(0))
    low, middle, high = np.quantile(drawn, [0.05, 0.5, 0.95])
    assert low == pytest.approx(2.0, rel=0.02)
    assert middle == pytest.approx(10.0, rel=0.02)
    assert high == pytest.approx(50.0, rel=0.02)


def test_a_triangle_ends_where_it_says_and_a_known_number_is_one() -> None:
    drawn = quantity(low=2027, likeliest=2028, high=2034).draws(100_000, np.random.default_rng(0))
    assert 2027 <= drawn.min() < 2027.1
    assert 2033.5 < drawn.max() <= 2034
    assert drawn.mean() == pytest.approx((2027 + 2028 + 2034) / 3, abs=0.02)
    assert quantity(low=3.0, high=3.0).draws(9, np.random.default_rng(0)) == pytest.approx(np.full(9, 3.0))
    assert set(quantity(low=9, likeliest=9, high=9).draws(9, np.random.default_rng(0))) == {9.0}


def test_a_share_does_not_pass_one() -> None:
    drawn = quantity(low=0.5, high=1.0, unit="share").draws(10_000, np.random.default_rng(0))
    assert drawn.max() == 1.0
    assert quantity(low=0.5, high=1.0).draws(10_000, np.random.default_rng(0)).max() > 1.0


BAD = {
    "missing field": ([(r'(\[data\.tokens\]\nlow = .*\nhigh = .*\n)unit.*\n', r"\1")], "no unit", "It needs"),
    "missing year": ([(r"^year = 2025.5\n", "")], "[growth.frontier]", "year"),
    "a year of two digits": ([(r"^year = 2025.5", "year = 25")], "of the year 25", "2025.5"),
    "missing quantity": ([(r"^\[chips\.share\]$", "[chips.shares]")], "'shares'", "'share'"),
    "unknown limit": ([(r"^\[latency\]$", "[latensy]")], "'latensy'", "'latency'"),
    "no source": ([(r'^source = "Epoch AI 2024: 2 to.*\n', "")], "[spread-power.watts]", "source"),
    "reversed": ([(r"^low = 1e14$", "low = 1e16")], "above high", "Swap"),
    "negative": ([(r"^low = 60$", "low = -60")], "no number above zero", "e.g."),
    "infinite": ([(r"^high = 270$", "high = inf")], "no number above zero", "e.g."),
    "a word": ([(r"^high = 270$", 'high = "long"')], "'long'", "e.g."),
    "true": ([(r"^high = 270$", "high = true")], "True", "e.g."),
    "other unit": ([(r'^unit = "W"$', 'unit = "GW"')], "'GW', not in 'W'", "unit ="),
    "more than all": ([(r"^high = 0.45$", "high = 45")], "share of 45", "1"),
    "unknown field": ([(r"^likel|^date = 2025-07-09$", "dat = 2025-07-09")], "'dat'", "'date'"),
    "unknown law": ([(r'^law = ".*?"', 'law = "besiroglu"')], "'besiroglu'", "besiroglu-2024"),
    "a law of size alone": ([(r'^law = ".*?"', 'law = "kaplan-2020"')], "law", "."),
    "no law": ([(r"^law = .*$", "")], "None", "."),
    "applies": ([applying("chips", 50)], "applies = 50", "from 0 to 1"),
    "not TOML": ([(r"^law = ", "law : ")], "cannot be read", "Copy"),
    "likeliest outside": (
        [(r"^\[latency\.flops\]\nlow = .*\nhigh = .*\nunit.*\n",
          '[latency.binds]\nlow = 2027\nlikeliest = 2040\nhigh = 2034\nunit = "year"\n')],
        "outside [2027, 2034]", "between",
    ),
    "dates without the likeliest": (
        [(r"^\[latency\.flops\]\nlow = .*\nhigh = .*\nunit.*\n",
          '[latency.binds]\nlow = 2027\nhigh = 2034\nunit = "year"\n')],
        "no likeliest", "needs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_with_its_place(case: str, tmp_path: Path) -> None:
    edits, message, hint = BAD[case]
    path = changed(tmp_path / "mine.toml", *edits)
    with pytest.raises(TrendError) as caught:
        read_assumptions(path)
    assert "mine.toml" in caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_file_that_is_not_there_or_lacks_a_table(tmp_path: Path) -> None:
    with pytest.raises(TrendError, match="No such file"):
        read_assumptions(tmp_path / "none.toml")
    (tmp_path / "empty.toml").write_text("")
    with pytest.raises(TrendError, match=r"no table \[growth\]"):
        read_assumptions(tmp_path / "empty.toml")
    path = changed(tmp_path / "cut.toml", (r"(?s)^\[latency\].*?(?=^\[loss)", ""))
    with pytest.raises(TrendError) as caught:
        read_assumptions(path)
    assert "no table [latency]" in caught.value.message
    assert "applies = 0" in caught.value.hint
