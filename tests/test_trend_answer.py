"""Verdicts on series whose growth is known, forecasts whose bands hold, choices, questions refused."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from isoflop.errors import IsoflopError, TrendError
from isoflop.trend.answer import Question, Trend, answer, answer_to, forecasts, question
from isoflop.trend.breaks import NO_EVIDENCE, SLOWING, SPEEDING, false_breaks
from isoflop.trend.compare import REACH, UNDECIDED, Backtest, backtest, compare
from isoflop.trend.frontier import Frontier
from isoflop.trend.growth import fit, fit_all
from isoflop.trend.points import Floats, Points
from isoflop.trend.specification import specification
from isoflop.trend.tables import Table, read_table

YEARS = np.linspace(2012, 2025, 90)
T = YEARS - 2012


def asked(logs: Floats, frontier: str = "all", years: Floats = YEARS) -> Question:
    """A question put to points of many makers."""
    n = len(years)
    names, makers = tuple(f"m{i}" for i in range(n)), tuple(f"o{i % 30}" for i in range(n))
    points = Points("compute", "FLOP", names, makers, years, np.exp(logs), np.zeros(n), "abc")
    return Question(points, -np.inf, Frontier.named(frontier))


def noise(seed: int = 0, sd: float = 0.5) -> Floats:
    return sd * np.random.default_rng(seed).standard_normal(len(YEARS))


def models_csv(path: Path, rows: list[str]) -> Table:
    path.write_text("\n".join(["name,organisation,date,flops,domain,confidence", *rows]))
    return read_table(path)


@cache
def constant(interval: float = 0.9, seed: int = 1) -> Trend:
    """The answer to constant growth."""
    return answer_to(asked(3 + 1.4 * T + noise()), interval, seed)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Eighty models at 4x a year with two outliers, every third speculative."""
    rng = np.random.default_rng(1)
    rows = []
    for i in range(80):
        year, month = 2014 + i // 8, 1 + i % 8
        flops = 1e20 * 4 ** (year - 2014 + month / 12) * np.exp(0.4 * rng.standard_normal())
        flops *= 1e-5 if i in (30, 60) else 1
        domain = "language" if i % 2 else "vision"
        rows.append(f"m{i},o{i % 12},{year}-{month:02d}-05,{flops:.4g},{domain},"
                    f"{'speculative' if i % 3 == 0 else 'confident'}")  # fmt: skip
    return models_csv(tmp_path_factory.mktemp("tables") / "models.csv", rows)


def test_constant_growth_is_not_called_slowing() -> None:
    found = constant()
    assert found.interval[0] < np.exp(1.4) < found.interval[1]
    assert found.rate_per_year == pytest.approx(np.exp(1.4), rel=0.05)
    assert found.doubling_months == pytest.approx(12 * np.log(2) / 1.4, rel=0.04)
    assert found.slowing.verdict == NO_EVIDENCE
    assert found.verdict in (UNDECIDED, "exponential")
    assert found.forecast_model in ("exponential", "quadratic", "logistic")


@pytest.mark.parametrize(("change", "word"), [(-0.9, SLOWING), (0.9, SPEEDING)])
def test_a_kink_is_found_with_its_date(change: float, word: str) -> None:
    found = answer_to(asked(3 + 1.4 * T + change * np.maximum(T - 6, 0) + noise(1)))
    assert found.slowing.verdict == word
    kink = next(b for b in found.slowing.breaks if b.model == "kinked")
    assert kink.dates[0].value == pytest.approx(2018, abs=0.6)
    assert kink.dates[0].low <= 2018.3
    assert kink.dates[0].high >= 2017.7
    assert kink.bic_gain > 20
    assert kink.false_rate < 0.05
    change_found = found.slowing.change
    assert change_found is not None
    assert change_found.low < change < change_found.high
    kinked = next(m for m in found.models if m.name == "kinked")
    assert list(kinked.rates.values()) == pytest.approx([np.exp(1.4), np.exp(1.4 + change)], rel=0.1)


def test_breaks_are_imagined_at_the_rate_that_is_told() -> None:
    """BIC of fresh constant series prefers a break about as often as the simulation says."""
    rng = np.random.default_rng(5)
    growths, _ = fit_all(YEARS, 3 + 1.4 * T + noise(2))
    alone, some = false_breaks(growths, rng)
    assert some is not None
    assert some >= max(alone.values())
    count = 0
    for seed in range(100):
        logs = 3 + 1.4 * T + noise(seed + 100)
        count += fit(YEARS, logs, "kinked", refine=False).bic < fit(YEARS, logs).bic
    assert abs(count / 100 - alone["kinked"]) < 0.08


def test_backtests_forecast_with_the_past_alone() -> None:
    logs = 3 + 1.4 * T + noise(3)
    test = backtest(YEARS, logs)
    assert "exponential" in test.names
    assert test.ahead.min() > 0
    assert test.ahead.max() <= REACH
    ends = np.searchsorted(YEARS, YEARS[-1] - REACH)
    begin = len(YEARS) // 2
    past = fit(YEARS[:begin], logs[:begin])
    after = slice(begin, int(np.searchsorted(YEARS, YEARS[begin - 1] + REACH, side="right")))
    first = past.predict(YEARS[after]) - logs[after]
    assert test.of("exponential")[: len(first)] == pytest.approx(first)
    assert ends > begin
    # the future does not reach the past: another last point changes only its own errors
    other = logs.copy()
    other[-1] += 5
    again = backtest(YEARS, other).of("exponential")
    assert (np.abs(again - test.of("exponential")) > 1e-9).sum() < 0.1 * len(again)


def test_forecast_bands_hold_new_points() -> None:
    """Bands of 80% made up to 2022 hold about that share of the three years after."""
    held = []
    for seed in range(16):
        logs = 3 + 1.4 * T + noise(seed)
        known = YEARS < 2022
        test = backtest(YEARS[known], logs[known])
        for f in forecasts(fit(YEARS[known], logs[known]), test, 0.8):
            at = np.abs(YEARS - f.year).argmin()
            held.append(f.value.low < np.exp(logs[at]) < f.value.high)
    assert len(held) == 48
    assert 0.6 < np.mean(held) < 0.97


def test_no_forecast_without_past_ones() -> None:
    few = answer_to(asked(3 + 1.4 * T[::9] + noise(1)[::9], years=YEARS[::9]))
    assert few.n == 10
    assert few.forecast == ()
    assert any("no forecast" in note for note in few.notes)
    assert any("kinked-2 is left out" in note for note in few.notes)


def test_the_verdict_is_undecided_unless_criteria_and_forecasts_agree() -> None:
    def verdict(logs: Floats, errors: dict[str, float]) -> tuple[str, str, str]:
        growths = {name: fit(YEARS, logs, name) for name in errors}
        test = Backtest(tuple(errors), np.zeros(1, int), np.ones(1), np.array([[e] for e in errors.values()]))
        found = compare(growths, [], test)
        return found.verdict, found.why, found.chosen

    bent = 3 + 1.4 * T - 0.9 * np.maximum(T - 6, 0) + noise(1, 0.1)
    assert verdict(bent, {"exponential": 1.0, "kinked": 0.5})[0] == "kinked"
    word, why, chosen = verdict(bent, {"exponential": 0.4, "kinked": 0.5})
    assert (word, chosen) == (UNDECIDED, "exponential")
    assert "past forecasts favour exponential" in why
    seen = set()
    for seed in range(8):
        logs = 3 + 1.4 * T + 0.005 * T**2 + noise(seed)
        leads = [(fit(YEARS, logs, name).aicc or 0.0, name) for name in ("exponential", "quadratic")]
        (least, best), (next_best, _) = sorted(leads)
        word, why, chosen = verdict(logs, {name: 0.5 + (name != best) for _, name in leads})
        assert word == (best if next_best - least >= 2 else UNDECIDED)
        assert ("Within 2" in why) == (word == UNDECIDED)
        assert chosen == best
        seen.add(word)
    assert UNDECIDED in seen
    assert len(seen) > 1
    assert verdict(bent, {"exponential": -1.0, "kinked": np.inf})[2] == "exponential"


def test_forecasters_are_compared_from_origin_to_origin() -> None:
    origin = np.repeat(np.arange(4), 2)
    best = np.array([1.0, 1, 2, 2, 1, 1, 2, 2])
    rows = {
        "kinked": best,
        "exponential": best + np.array([0.4, 0.4, -0.3, -0.3, 0.4, 0.4, -0.3, -0.3]),
        "quadratic": best + 0.1,  # worse everywhere
        "hyperbolic": np.full(8, np.inf),
    }
    test = Backtest(tuple(rows), origin, np.ones(8), np.array([*rows.values()]))
    assert test.origins == 4
    assert test.no_worse() == ("kinked", "exponential")
    assert Backtest((), np.empty(0, int), np.empty(0), np.empty((0, 0))).no_worse() == ()


def test_nil_growth_never_doubles_for_sure() -> None:
    found = answer_to(asked(3 + noise(3)))
    assert found.interval[0] < 1 < found.interval[1]
    assert not np.isfinite(found.doubling_interval).all()
    assert any("no end on that side" in note for note in found.notes)
    assert Trend.from_json(found.to_json()) == found


def test_answers_repeat_and_the_seed_moves_them() -> None:
    one, other, wide = constant(), constant(seed=2), constant(interval=0.99)
    assert answer_to(asked(3 + 1.4 * T + noise()), seed=1) == one
    assert other.interval != one.interval
    assert other.interval == pytest.approx(one.interval, rel=0.05)
    assert wide.interval[0] < one.interval[0] < one.interval[1] < wide.interval[1]


def test_definitions_stand_side_by_side() -> None:
    found = answer_to(asked(3 + 0.5 * T + noise(0, 2.0), "top10"))
    named = {d.frontier: d for d in found.definitions}
    assert named.keys() == {"all", "top10", "records", "quantile 0.9"}
    assert named["top10"].rate_per_year == found.rate_per_year
    assert named["top10"].n == found.n < named["all"].n == found.of == 90
    for d in found.definitions:
        assert d.interval[0] < d.rate_per_year < d.interval[1]


def test_a_falling_metric_halves_and_its_frontier_is_the_cheapest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [f"2023-{1 + i % 12:02d}-0{1 + i // 12},{30 * np.exp(-0.2 * (i % 12) + rng.exponential()):.4g}"
             for i in range(36)]  # fmt: skip
    path = tmp_path / "prices.csv"
    path.write_text("\n".join(["date,price", *lines]))
    table, q = question("inference-price", path=path, value_column="price", frontier="records")
    found = answer_to(q)
    assert found.rate_per_year < 1
    assert found.doubling_months < 0
    assert q.chosen().values.tolist() == sorted(q.chosen().values, reverse=True)
    assert answer(table, "inference-price", frontier="records").interval == found.interval


def test_a_decline_slows_by_becoming_flatter() -> None:
    found = answer_to(asked(30 - 1.4 * T + 0.9 * np.maximum(T - 6, 0) + noise(1)))
    assert found.rate_per_year < 1
    assert found.slowing.verdict == SLOWING


def test_equal_values_do_not_change_their_rate() -> None:
    found = answer_to(asked(np.full(len(T), 5.0)))
    assert found.rate_per_year == pytest.approx(1)
    assert found.slowing.verdict == NO_EVIDENCE


def test_few_organisations_are_not_drawn() -> None:
    few = asked(3 + 1.4 * T + noise())
    alike = Question(
        few.points.__class__(**{**few.points.__dict__, "groups": ("one", "other") * 45}),
        -np.inf,
        few.frontier,
    )
    found = answer_to(alike)
    assert found.bootstrap == "rows"
    assert any("2 organisations are too few" in note for note in found.notes)


def test_every_reasonable_choice(table: Table) -> None:
    found = specification(table, "compute", since="2016", frontier="top10", seed=1)
    rates = [choice.rate_per_year for choice in found.choices]
    assert rates == sorted(rates)
    low, high = found.span()
    assert low <= found.median <= high
    assert {c.domain for c in found.choices} == {"any", "language"}
    assert {c.outliers for c in found.choices} == {c.speculative for c in found.choices} == {True, False}
    assert {"all", "top5", "top10", "records", "quantile 0.9"} <= {c.frontier for c in found.choices}
    [mine] = [c for c in found.choices if c.asked]
    plain = answer(table, "compute", since="2016", frontier="top10")
    assert mine.n == plain.n
    assert mine.rate_per_year == pytest.approx(plain.rate_per_year)
    without = next(c for c in found.choices if c.frontier == "all" and not c.outliers and c.speculative
                   and c.domain == "any" and c.since == 2016)  # fmt: skip
    kept = next(c for c in found.choices if c.frontier == "all" and c.outliers and c.speculative
                and c.domain == "any" and c.since == 2016)  # fmt: skip
    assert kept.n - 5 <= without.n <= kept.n - 2
    assert np.ptp(np.log(without.interval)) < np.ptp(np.log(kept.interval))


def test_json_has_what_was_promised(table: Table) -> None:
    found = json.loads(answer(table, "compute").to_json())
    promised = {"n", "rate_per_year", "doubling_months", "interval", "level", "models", "verdict", "snapshot"}
    assert promised <= found.keys()
    assert {"aicc", "bic", "forecast_error"} <= found["models"][0].keys()
    assert found["snapshot"] == table.snapshot


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"since": "2024", "until": "2015"}, "after --until"),
        ({"since": "2023-07"}, "rate needs 5"),
        ({"since": "soon"}, "not a date"),
        ({"frontier": "best"}, "no frontier 'best'"),
        ({"frontier": "top0"}, "no frontier 'top0'"),
        ({"domain": "chess"}, "domain 'chess'"),
        ({"interval": 90}, "interval of 90"),
        ({"interval": 0.0}, "interval of 0"),
    ],
)
def test_questions_that_cannot_be_answered(table: Table, words: dict[str, object], says: str) -> None:
    with pytest.raises(IsoflopError, match=says) as refused:
        answer(table, "compute", **words)  # type: ignore[arg-type]
    assert refused.value.hint


def test_metrics_that_the_package_has_no_table_of() -> None:
    with pytest.raises(TrendError, match="no table of inference-price"):
        question("inference-price")
    with pytest.raises(TrendError, match="no metric named 'computee'"):
        question("computee")


def test_points_of_five_dates_are_enough(tmp_path: Path) -> None:
    rows = [f"m{i},o{i},201{i}-03-01,{10.0 ** (20 + i):g},language,confident" for i in range(5)]
    found = answer(models_csv(tmp_path / "few.csv", rows), "compute")
    assert found.n == 5
    assert found.rate_per_year == pytest.approx(10, rel=0.01)
    assert [m.name for m in found.models] == ["exponential"]
    assert found.verdict == UNDECIDED
    with pytest.raises(TrendError, match="has 4 points of 4 dates"):
        answer(models_csv(tmp_path / "four.csv", rows[:4]), "compute")
