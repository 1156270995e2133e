"""Published figures beside ours: how they are read, and that none is forgotten."""

from __future__ import annotations

import numpy as np
import pytest
from test_tables import shared
from trend_published import CASES, FORMS, LIMITS, NOT_ASKED, Case, Ours, Tables, published, verdict

ROW = {"published": "3.0x then 3.7x/yr", "ci": "2.0-2.9 (v1: 95% 2.0-3.1)"}


def test_every_published_figure_is_asked_or_has_a_reason() -> None:
    tables = Tables(shared("headline_figures.csv").parent)
    asked = {case.row for case in CASES}
    assert not asked & (set(LIMITS) | set(NOT_ASKED))
    assert asked | set(LIMITS) | set(NOT_ASKED) == {row["metric"] for row in tables.published}
    for case in CASES:  # and is read as a number
        value, interval = published(tables.row(case.row), case)
        assert value > 0
        assert interval is None or interval[0] <= value <= interval[1]


def test_figures_are_read_with_their_interval() -> None:
    assert published(ROW, Case("", "cost", "factor")) == (3.0, (2.0, 2.9))
    assert published(ROW | {"ci": "none seen"}, Case("", "cost", "factor", nth=1)) == (3.7, None)


@pytest.mark.parametrize(
    ("ours", "says"),
    [
        (Ours(2.5, 2.4, 2.6, 9), "yes, inside it"),
        (Ours(3.2, 2.9, 3.5, 9), "yes, it is inside ours"),
        (Ours(3.4, 3.1, 3.6, 9), "no"),
    ],
)
def test_figures_agree_by_either_interval(ours: Ours, says: str) -> None:
    assert verdict(Case("", "cost", "factor"), ROW, ours) == says


def test_a_slope_in_every_form() -> None:
    found = {name: of(np.log(2.0)) for name, (_, of, _) in FORMS.items()}
    assert found == pytest.approx({"factor": 2, "percent": 100, "months": 12, "years": 1})
    assert Ours(2.0, 1.5, 2.5, 9).words("factor") == "2.00x/yr [1.50-2.50]"
