"""The words and rows in which trends are shown."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.records import Interval
from isoflop.trend.answer import Trend
from isoflop.trend.breaks import NO_EVIDENCE, UNTOLD
from isoflop.trend.diff import Diff
from isoflop.trend.disclosure import Disclosure
from isoflop.trend.specification import Choices

Rows = tuple[str, Sequence[str], Sequence[Sequence[object]]]  # title, columns, rows
MOST_CHANGES, ENDS = 20, 3  # rows shown of a diff; choices shown at either end
LONGEST = 40  # letters of a name
YEARS_FROM, LONG = 24, 12e4  # months: doubling times told in years, and as never
RECENT = 3  # years whose share of stated rows is told


def factor(rate: float, *beside: float) -> str:
    """Growth a year: 4.69x, or as a percentage where it is small, as are those it stands beside."""
    return percent(rate) if _small(rate, *beside) else times(rate)


def span(low: float, high: float, *beside: float) -> str:
    """Both ends in one form, that of the rate beside them."""
    return f"[{factor(low, high, *beside)}, {factor(high, low, *beside)}]"


def _small(*rates: float) -> bool:
    return min(rates) > 0.5 and max(rates) < 2


def percent(rate: float) -> str:
    return f"{round(100 * (rate - 1), 1) + 0.0:+.1f}%"


def times(rate: float) -> str:
    return f"{rate:.2f}x"


def _rate(rate: float, interval: tuple[float, float]) -> tuple[str, str]:
    """Two cells."""
    return factor(rate, *interval), span(*interval, rate)


def headline(t: Trend) -> str:
    """Rate, interval and doubling time."""
    level = f"{100 * t.level:g}%"
    return (
        f"{t.metric}: {factor(t.rate_per_year, *t.interval)} a year {span(*t.interval, t.rate_per_year)},"
        f" {level} by bootstrap of {t.bootstrap}\nit {verb(t)} every {doubling(t)}\n"
        f"n = {t.n} of {t.of} points on the frontier {t.frontier}, {date(t.first)} to {date(t.last)};"
        f" {t.undisclosed} more rows do not state it; snapshot {t.snapshot}"
    )


def verb(t: Trend) -> str:
    return "doubles" if t.doubling_months > 0 else "halves"


def doubling(t: Trend) -> str:
    """The doubling or halving time with its interval: 6.5 [5.7, 7.7] months, in years from two on."""
    value, (low, high) = abs(t.doubling_months), sorted(map(abs, t.doubling_interval))
    unit, size = ("months", 1) if value < YEARS_FROM else ("years", 12)
    mid, least, most = (f"{v / size:.1f}" if v < LONG else "never" for v in (value, low, high))
    return f"{mid} [{least}, {most}] {unit}"


def points_words(t: Trend) -> str:
    """Which points are fitted: top10, 2018-06 to 2026-02."""
    return f"{t.frontier}, {date(t.first)} to {date(t.last)}"


def change(t: Trend) -> str:
    """Whether the rate changes, in words."""
    return {
        NO_EVIDENCE: "No evidence that the rate changes",
        UNTOLD: "Whether growth slows cannot be told, the frontier being that of a table's beginning",
    }.get(t.slowing.verdict, f"Growth is {t.slowing.verdict}")


def date(year: float) -> str:
    """2024.5 is 2024-07."""
    return f"{int(year)}-{int(12 * (year % 1)) + 1:02d}"


def tables(t: Trend) -> list[Rows]:
    """Intervals, definitions, models, breaks, forecast and influences; those that there are."""
    level = f"{100 * t.level:g}%"
    rates: list[tuple[object, ...]] = []
    for r in t.bootstraps:
        ends = (r.per_year.low, r.per_year.high)
        rates.append((f"{t.frontier}, by bootstrap of {r.bootstrap}", t.n, *_rate(r.per_year.value, ends)))
    rates += [(d.frontier, d.n, *_rate(d.rate_per_year, d.interval)) for d in t.definitions]
    parts: list[Rows] = [
        ("Rate a year by bootstrap and by frontier", ("frontier", "n", "rate", level), rates),
        _models(t),
        ("Breaks of the rate", ("model", "break", level, "BIC gain", "by chance"), _breaks(t)),
        ("Forecast of a new point of the frontier, its band from past forecasts",
         ("date", t.unit or "value", level, "past errors"), _forecast(t)),
        ("Largest influences on the rate", ("without", "date", t.unit or "value", "rate", "change"),
         [(i.name[:LONGEST], date(i.year), f"{i.value:.3g}", factor(i.rate_without), f"{i.change:+.3f}")
          for i in t.influences]),
    ]  # fmt: skip
    return [(title, columns, rows) for title, columns, rows in parts if rows]


def _models(t: Trend) -> Rows:
    best = min((m.aicc for m in t.models if m.aicc is not None), default=0.0)
    rows = [
        (m.name, m.k, "" if m.aicc is None else f"{m.aicc - best:.1f}", f"{m.bic - t.models[0].bic:.1f}",
         "" if m.forecast_error is None else f"{m.forecast_error:.2f}",
         ", ".join(factor(r) for r in m.rates.values()))
        for m in t.models
    ]  # fmt: skip
    columns = ("model", "k", "AICc over best", "BIC over it", "forecast error, ln", "rates of its parts")
    return "Growth models", columns, rows


def _breaks(t: Trend) -> list[Sequence[object]]:
    return [
        (b.model, " and ".join(date(d.value) for d in b.dates),
         " and ".join(f"[{date(d.low)}, {date(d.high)}]" for d in b.dates), f"{b.bic_gain:+.1f}",
         f"{b.false_rate:.1%}")
        for b in t.slowing.breaks
    ]  # fmt: skip


def _forecast(t: Trend) -> list[Sequence[object]]:
    return [(date(f.year), f"{f.value.value:.2g}", f"[{f.value.low:.2g}, {f.value.high:.2g}]", f.tested)
            for f in t.forecast]  # fmt: skip


def sentences(t: Trend) -> list[str]:
    """The verdicts in words."""
    s, found = t.slowing, [f"Best growth model: {t.verdict}. {t.why}"]
    parts = [
        f"{name} {part.value:+.3f} [{part.low:+.3f}, {part.high:+.3f}]"
        for name, part in (("last rate less the one before", s.change), ("change a year", s.curvature))
        if isinstance(part, Interval)
    ]
    found.append(f"{change(t)}: {', '.join(parts) or 'the points are too few'} (of ln a year).")
    if s.false_breaks is not None:
        found.append(
            f"BIC prefers some break in {s.false_breaks:.1%} of {s.simulations} series simulated without one."
        )
    if t.forecast:
        found.append(
            f"The forecast is by {t.forecast_model} growth, the simplest of the best forecasters of the past."
        )
    return found


def disclosure_sentences(d: Disclosure) -> list[str]:
    """Who states the metric, and how far the rate of all points may be off."""
    if d.stated == d.rows:
        return [f"All {d.rows} rows state it."]
    years = ", ".join(f"{s.label} {s.share:.0%}" for s in d.by_year[-RECENT:])
    widest = max((b for b in d.bounds if b.assumption == "about the trend"), key=lambda b: b.factor)
    mid, ends = _rate(d.rate_per_year, (widest.low, widest.high))
    return [
        f"{d.stated / d.rows:.0%} of {d.rows} rows state it (lately {years}). With the others anywhere within"
        f" {widest.factor:g}x of the trend of all points, its rate of {mid} could be {ends}."
    ]


def choices(found: Choices) -> Rows:
    """The ends and the middle of the specification curve, and how it was asked."""
    n = len(found.choices)
    near = {*range(min(ENDS, n)), n // 2, *range(max(n - ENDS, 0), n)}
    rows = [
        (f"{c.frontier}, from {date(c.since)}, {c.domain}", "" if c.outliers else "no",
         "" if c.speculative else "no", c.n, *_rate(c.rate_per_year, c.interval), "asked" * c.asked)
        for i, c in enumerate(found.choices) if i in near or c.asked
    ]  # fmt: skip
    columns = ("choice", "outliers", "speculative", "n", "rate", f"{100 * found.level:g}%", "")
    return f"Rate under {n} reasonable choices: ends, middle, and the one asked", columns, rows


def choices_sentence(found: Choices) -> str:
    mid, ends = _rate(found.median, found.span())
    return (
        f"Over {len(found.choices)} choices the rate's median is {mid}, nine of ten lie in {ends};"
        f" {found.left_out} leave too few points."
    )


def diff_sentence(d: Diff) -> str:
    return (
        f"{d.before} to {d.after}: {len(d.added)} rows added, {len(d.removed)} removed,"
        f" {len(d.changed)} cells changed."
    )


def diff_tables(d: Diff) -> list[Rows]:
    """How the rates moved, and the first of the rows that differ."""
    rates = [(m.metric, m.n_before, m.n_after, factor(m.rate_before), factor(m.rate_after)) for m in d.rates]
    rows = [(c.name[:LONGEST], c.column, c.before[:LONGEST], c.after[:LONGEST]) for c in d.changed]
    rows += [(name[:LONGEST], "added", "", "") for name in d.added]
    rows += [(name[:LONGEST], "removed", "", "") for name in d.removed]
    more = f", the first {MOST_CHANGES} of {len(rows)}" if len(rows) > MOST_CHANGES else ""
    return [
        ("Rates of all points", ("metric", "n before", "n after", "rate before", "rate after"), rates),
        (f"What differs{more}", ("row", "column", "before", "after"), rows[:MOST_CHANGES]),
    ]
