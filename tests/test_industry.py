"""Dates of limits against closed forms and published figures; growth by tables; the conversions to FLOPs."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from assumed import applying, changed, known, only

from isoflop.errors import TrendError
from isoflop.laws import Fit
from isoflop.limits import Averaged, IndustryAnswer, conversions, industry, of_table, read_assumptions
from isoflop.limits.industry import crossing
from isoflop.trend.growth import Growth, fit

TREND = Path(__file__).parents[2] / "shared/data/trend"
LAW = Fit.of_published("besiroglu-2024")
STEADY = [known("growth", "frontier", 5e26), known("growth", "rate", 4.0)]


def answer(path: Path, *edits: tuple[str, str], draws: int = 200) -> IndustryAnswer:
    return industry(read_assumptions(changed(path / "mine.toml", *edits)), draws=draws)


# Conversions


def test_power_chips_and_money_agree_with_published_runs() -> None:
    """Llama 3 405B (2407.21783): 16,384 H100 at about 40% of 989 TFLOP/s for 54 days; 3.8e25 FLOP."""
    peak, used, seconds = np.log(989e12), np.log(0.4), np.log(54 * 86_400)
    chips = conversions.of_chips(np.log(16_384), peak, seconds, used)
    assert np.exp(chips) == pytest.approx(3.02e25, rel=0.01)
    power = conversions.of_power(np.log(16_384 * 1_700), seconds, peak - np.log(1_700), used)
    assert power == pytest.approx(chips)
    usd = np.log(16_384 * 54 * 24 * 2.0)
    assert conversions.of_money(usd, np.log(2.0), peak, used) == pytest.approx(chips)


@pytest.mark.parametrize("name", ["besiroglu-2024", "muennighoff-2023"])
def test_tokens_become_the_compute_whose_best_split_they_are(name: str) -> None:
    """In closed form, and by search: with repeats a law has none."""
    law = Fit.of_published(name)
    others = {"unique_tokens": 1e12} if "unique_tokens" in law.columns else {}
    _, tokens, _ = law.split(**others).optimum(law.theta, 1e21)
    found = conversions.of_tokens(law, np.log(tokens), law.theta, **others)
    assert found == pytest.approx(np.log(1e21), abs=0.01)


def test_a_gap_becomes_the_compute_that_leaves_it() -> None:
    found = np.exp(conversions.of_gap(LAW, np.log([0.02]), LAW.theta))
    assert LAW.split().optimum(LAW.theta, found)[2] - LAW.params["E"] == pytest.approx(0.02)


# Dates


def test_crossing_by_hand() -> None:
    years = np.array([2025.0, 2026.0, 2027.0])
    growth = np.array([[0.0, 2.0, 4.0]] * 4)
    limit = np.array([[3.0], [-1.0], [9.0], [4.0]]) * np.ones(3)
    dates, flops = crossing(years, growth, limit)
    assert dates.tolist() == [2026.5, 2025.0, np.inf, 2027.0]
    assert flops.tolist() == [3.0, -1.0, np.inf, 4.0]


def test_a_known_limit_binds_when_steady_growth_gets_there(tmp_path: Path) -> None:
    found = answer(tmp_path, *STEADY, *only("latency"), known("latency", "flops", 5e29))
    assert [x.name for x in found.limits] == ["latency"]
    date = 2025.5 + np.log(1000) / np.log(4)
    assert found.date.low == pytest.approx(date, abs=1e-6)
    assert found.date.high == pytest.approx(date, abs=1e-6)
    assert found.doublings.value == pytest.approx(np.log2(1000), abs=1e-6)
    assert found.flops.value == pytest.approx(5e29)
    assert found.limits[0].first == 1.0
    assert found.band.middle[2] == pytest.approx(5e26 * 16)


def test_limits_that_grow_are_met_later(tmp_path: Path) -> None:
    """Power: W0 g^(t - 2030) eff0 e^(t - 2024) of one run's days and share, against 4x a year."""
    run = {"days": 100, "utilisation": 0.4, "precision": 2, "flops_per_joule": 6e11, "efficiency_growth": 1.3}
    edits = [known("run", name, value) for name, value in run.items()]
    found = answer(
        tmp_path, *STEADY, *edits, *only("spread-power"), known("spread-power", "watts", 1e10),
        known("spread-power", "growth", 1.2),
    )  # fmt: skip
    at_start = 1e10 * 1.2**-4.5 * 6e11 * 1.3**1.5 * 0.4 * 2 * 100 * 86_400
    date = 2025.5 + np.log(at_start / 5e26) / np.log(4 / (1.2 * 1.3))
    assert found.date.value == pytest.approx(date, abs=1e-6)
    feasible = at_start * (1.2 * 1.3) ** 4.5
    assert found.limits[0].feasible.value == pytest.approx(feasible, rel=1e-6)


def test_money_buys_more_as_chips_get_cheaper(tmp_path: Path) -> None:
    run = {"utilisation": 0.5, "precision": 1, "usd_per_chip_hour": 2, "price_performance": 1.3}
    edits = [known("run", name, value) for name, value in run.items()]
    money = [known("money", "usd", 1e11), known("money", "growth", 1.0)]
    found = answer(tmp_path, *STEADY, *edits, *money, *only("money")).limits[0].feasible
    assert found.value == pytest.approx(1e11 / 2 * 1.3**5 * 3600 * 9.89e14 * 0.5, rel=1e-6)


def test_overtraining_makes_data_bind_sooner(tmp_path: Path) -> None:
    data = {"tokens": 3e14, "growth": 1.0, "beyond_text": 1.0, "overtraining": 3.0}
    edits = [known("data", name, value) for name, value in data.items()]
    found = answer(tmp_path, *STEADY, *edits, *only("data")).flops.value
    assert LAW.split().optimum(LAW.theta, found)[1] == pytest.approx(1e14, rel=1e-6)


def test_what_binds_from_the_start_is_behind(tmp_path: Path) -> None:
    both = [known("latency", "flops", 1e26), known("loss", "gap", 0.1)]
    found = answer(tmp_path, *STEADY, *both, *only("latency", "loss"))
    assert found.date.value == 2025.5
    assert {x.name: x.first for x in found.limits} == {"latency": 0.0, "loss": 1.0}  # 7e24 FLOP: the lower
    assert found.doublings.value == pytest.approx(np.log2(7.2937668e24 / 5e26), abs=1e-3)


class Over:
    """Growth whose singularity has passed before the first year."""

    def draws(self, at_years: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        return np.full((n, len(at_years)), np.nan)


def test_growth_past_its_singularity_meets_every_limit_at_once() -> None:
    over = Averaged([Over()], np.ones(1), "over")
    found = industry(read_assumptions(), growth=over, draws=200)
    latency = next(limit for limit in found.limits if limit.name == "latency")
    assert latency.date.value == 2025.5
    assert found.free == 0.0


def test_no_limit_no_date(tmp_path: Path) -> None:
    found = answer(tmp_path, *STEADY, *only())
    assert found.limits == ()
    assert found.free == 1.0
    assert np.isinf(found.date.value)
    assert "no limit binds" in found.sentence.lower()
    slow = answer(tmp_path, STEADY[0], known("growth", "rate", 0.9), *only("latency"))
    assert slow.free == 1.0
    assert slow.limits[0].reached == 0.0


def test_a_limit_by_dates(tmp_path: Path) -> None:
    edit = (
        r"^\[latency\.flops\]\nlow = .*\nhigh = .*\nunit.*\n",
        '[latency.binds]\nlow = 2027\nlikeliest = 2028\nhigh = 2034\nunit = "year"\n',
    )
    found = answer(tmp_path, *STEADY, edit, *only("latency"), draws=4000).limits[0]
    assert found.date.value == pytest.approx(2034 - np.sqrt(0.5 * 7 * 6), abs=0.1)  # a triangle's median
    assert found.doublings.value == pytest.approx(2 * (found.date.value - 2025.5), abs=0.25)


def test_a_limit_that_applies_in_half_of_the_draws(tmp_path: Path) -> None:
    half = applying("latency", 0.5)
    found = answer(tmp_path, *STEADY, known("latency", "flops", 5e29), *only(), half, draws=4000)
    assert found.free == pytest.approx(0.5, abs=0.03)
    assert found.limits[0].reached == 1.0  # of the draws in which it holds


def test_probabilities_add_up_and_a_seed_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[industry.__module__], "BLOCK", 300)
    one, two, other = (industry(read_assumptions(), draws=500, seed=s) for s in (3, 3, 4))
    assert one == two
    assert one.date != other.date
    assert sum(x.first for x in one.limits) + one.free == pytest.approx(1.0)
    assert one.date.low <= one.date.value <= one.date.high
    assert one.date.value <= min(x.date.value for x in one.limits)
    for x in one.limits:
        assert x.date.low <= x.date.value <= x.date.high


def test_too_few_draws() -> None:
    with pytest.raises(TrendError, match="99 draws"):
        industry(read_assumptions(), draws=99)


# Growth


def test_growth_of_a_table_has_its_shape_and_the_largest_runs_level(tmp_path: Path) -> None:
    """4x a year from 1e21 FLOP, which is far below the largest run."""
    noise = np.exp(0.02 * np.random.default_rng(1).standard_normal(30))
    rows = [
        f"m{i},org {i},{2018 + i // 4}-{3 * (i % 4) + 1:02d}-01,{1e21 * 4.0 ** (i / 4) * noise[i]:g}"
        for i in range(30)
    ]
    table = tmp_path / "models.csv"
    table.write_text("\n".join(["name,organisation,date,flops", *rows]))
    path = changed(tmp_path / "mine.toml", known("growth", "frontier", 5e26), known("latency", "flops", 5e27),
                   *only("latency"))  # fmt: skip
    answered = industry(read_assumptions(path), growth=of_table(table), draws=400)
    assert answered.date.value == pytest.approx(2025.5 + np.log(10) / np.log(4), abs=0.15)
    assert "the top10 since 2018 of models.csv" in answered.growth


def test_models_are_drawn_in_the_shares_of_their_weights() -> None:
    years = np.linspace(2018, 2025, 40)
    logs = 1.5 * (years - 2018) + 0.3 * np.random.default_rng(0).standard_normal(40)
    exponential = fit(years, logs)
    flat = replace(exponential, c=np.array([0.0, 0.0]), aicc=(exponential.aicc or 0.0) + 2 * np.log(3))

    class Flat(Growth):
        def draws(self, at_years: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
            return np.zeros((n, len(at_years)))

    both = Averaged.of([exponential, Flat(**vars(flat))], "two")
    assert both.shares == pytest.approx([0.75, 0.25])
    drawn = both.draws(np.array([2026.0, 2030.0]), 4000, np.random.default_rng(0))
    assert (drawn[:, 1] == 0).mean() == pytest.approx(0.25, abs=0.03)
    assert (drawn[:200, 1] == 0).mean() == pytest.approx(0.25, abs=0.12)  # mixed, not one after the other


def test_the_shared_tables_growth_is_wide() -> None:
    """Of 2025 and 2026 few large runs are disclosed, which broken models take for slowing."""
    table = TREND / "notable_models.csv"
    if not table.exists():
        pytest.skip(f"{table.name} is not beside the project (shared/data/trend)")
    free = industry(read_assumptions(), growth=of_table(table), draws=1000).free
    assert 0.05 < free < 0.95


# Published figures


def test_ours_lie_within_what_epoch_expects_of_2030() -> None:
    """Epoch AI 2024 for 2030: a campus of 1e28 to 3e29 FLOP, 20M to 400M H100e, 400T to 20,000T tokens."""
    table = TREND / "headline_figures.csv"
    if not table.exists():
        pytest.skip(f"{table.name} is not beside the project (shared/data/trend)")
    with table.open() as file:
        row = next(r for r in csv.DictReader(file) if r["metric"] == "2030 feasible run")
    words = "1e28-3e29; chips 100M H100e (20M-400M); data 400T-20000T tokens"
    assert words in row["published"]
    assumed = read_assumptions()
    drawn = assumed.draws(20_000, np.random.default_rng(0))
    campus = next(x for x in industry(assumed).limits if x.name == "campus-power").feasible
    chips = drawn["chips.made"] * drawn["chips.growth"] ** 6 * drawn["chips.years"] * drawn["chips.share"]
    tokens = drawn["data.tokens"] * drawn["data.growth"] ** 6 * drawn["data.beyond_text"]
    for ours, low, high in (
        ((campus.low, campus.value, campus.high), 1e28, 3e29),
        (tuple(np.quantile(chips, [0.05, 0.5, 0.95])), 2e7, 4e8),
        (tuple(np.quantile(tokens, [0.05, 0.5, 0.95])), 4e14, 2e16),
    ):
        assert low < ours[1] < high
        assert low / 2 < ours[0] < 2 * low
        assert high / 2 < ours[2] < 2 * high
