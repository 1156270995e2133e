"""The page of the whole trend: what `gathered` gathers as one HTML file that opens offline.

write_trend(gather(Window(since="2018")), Path("trend.html"))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.errors import TrendError
from isoflop.limits import IndustryAnswer
from isoflop.limits.answers import date_words, year_words
from isoflop.plots import PALETTE, power
from isoflop.plots.limits import draw_growth, draw_spans, industry_data
from isoflop.plots.style import SIZE
from isoflop.plots.trends import draw_residual, draw_trend, residual_data, specification_figure, trend_data
from isoflop.records import Interval
from isoflop.report.gathered import LEAD, Answered, Page
from isoflop.report.svg import environment, picture
from isoflop.report.tables import Table
from isoflop.store import atomic_write
from isoflop.trend import shown
from isoflop.trend.breaks import NO_EVIDENCE
from isoflop.trend.metrics import METRICS

PICTURED = ("compute", "parameters", "tokens", "flops-per-second", "memory", "bandwidth")
KINDS = (".html", ".htm")
FEW = 8  # disclosed rows of a year below which its share says little


def check_page(path: Path) -> None:
    """Raises TrendError unless a page can be written to a file of that name: before the work, not after."""
    if path.suffix.lower() not in KINDS or path.is_dir():
        raise TrendError(f"A page cannot be {path.name!r}.", hint="Name it FILE.html.")
    if not path.parent.is_dir():
        raise TrendError(
            f"There is no folder {path.parent} for {path.name}.", hint="Make it, or check the path."
        )


def write_trend(page: Page, path: Path) -> Path:
    """Write the page. Raises ProjectError where the file cannot be written."""
    atomic_write(path, render(page))
    return path


def render(page: Page) -> str:
    """The page as HTML."""
    trend = page.lead.trend
    return (
        environment()
        .get_template("trend.html.j2")
        .render(
            page=page,
            trend=trend,
            palette=PALETTE,
            shown=shown,
            about=lambda name: _sentence(METRICS[name].about),
            power=power,
            date_words=date_words,
            year_words=year_words,
            tables=tables(page),
            checks=[_table(rows) for rows in shown.tables(trend)],
            pictures=pictures(page),
            caption=caption,
            pictured=PICTURED,
            notes=notes(page),
            largest=largest_run(page),
        )
    )


def largest_run(page: Page) -> tuple[str, float] | None:
    """Name and FLOPs of the largest run that the table states in the window; None without compute."""
    found = page.answered.get(LEAD)
    if found is None:
        return None
    points = found.asked.points
    i = int(points.values.argmax())
    return points.names[i], float(points.values[i])


# --- Pictures ----------------------------------------------------------------------------------------


def pictures(page: Page) -> dict[str, Markup]:
    """By name: the metrics of `PICTURED` that are answered, the lead's checks, and the limits."""
    drawn = {
        name: picture(name, partial(_one, draw_trend, trend_data(a.asked, a.trend)))
        for name, a in page.answered.items() if name in PICTURED
    }  # fmt: skip
    drawn["residuals"] = picture("residuals", partial(_one, draw_residual, residual_data(page.lead.asked)))
    if page.choices is not None:
        drawn["choices"] = picture("choices", partial(specification_figure, page.choices))
    growth, dates = industry_data(page.limits)
    drawn["growth"] = picture("growth", partial(_one, draw_growth, growth))
    drawn["dates"] = picture("dates", partial(_one, draw_spans, dates, "year in which the limit binds"))
    return drawn


def _one(draw: Callable[..., None], *data: Any) -> Figure:
    """A figure of one picture."""
    drawn = Figure(figsize=SIZE, layout="constrained")
    ax: Axes = drawn.subplots()
    draw(ax, *data)
    return drawn


def caption(a: Answered) -> str:
    """What a metric's picture shows, in words."""
    t = a.trend
    rate = f"{shown.factor(t.rate_per_year, *t.interval)} a year {shown.span(*t.interval, t.rate_per_year)}"
    text = f"{rate}, n = {t.n}, {shown.points_words(t)}."
    if not t.forecast:
        return f"{text} Past forecasts do not allow one of the future."
    last = t.forecast[-1]
    return (
        f"{text} Forecast by {t.forecast_model} growth: {power(last.value.value)} {t.unit} in"
        f" {shown.date(last.year)} [{power(last.value.low)}, {power(last.value.high)}]."
    )


# --- Tables and notes --------------------------------------------------------------------------------


def tables(page: Page) -> dict[str, Table]:
    """Every table, by name."""
    return {
        "metrics": _metrics(page),
        "years": _years(page),
        "bounds": _bounds(page),
        "limits": _limits(page.limits),
        "sources": _sources(page),
    }


def _table(rows: shown.Rows) -> Table:
    title, columns, cells = rows
    return Table(title, tuple(columns), tuple(("", tuple(map(str, row))) for row in cells))


def _metrics(page: Page) -> Table:
    level = f"{100 * page.level:g}%"
    head = ("metric", "frontier", "from", "n", f"rate a year, {level}", f"doubles in, {level}",
            "growth model", "the rate is")  # fmt: skip
    rows = []
    for name, a in page.answered.items():
        t = a.trend
        rate = f"{shown.factor(t.rate_per_year, *t.interval)} {shown.span(*t.interval, t.rate_per_year)}"
        changes = "–" if t.slowing.verdict == NO_EVIDENCE else t.slowing.verdict
        cells = (name, t.frontier, shown.date(t.first), str(t.n), rate, shown.doubling(t), t.verdict, changes)
        rows.append(("", cells))
    return Table("Growth of every metric that the tables state", head, tuple(rows))


def _years(page: Page) -> Table:
    rows = tuple(
        ("" if s.rows >= FEW else "refused", (s.label, str(s.rows), str(s.stated), f"{s.share:.0%}"))
        for s in page.silent.by_year
    )
    about = METRICS[page.silent.metric].about
    return Table(f"Rows of the table that state {about}, by year", ("year", "rows", "stated", "share"), rows)


def _bounds(page: Page) -> Table:
    rows = tuple(
        ("", (f"{b.assumption}, within {b.factor:g}x", shown.span(b.low, b.high))) for b in page.silent.bounds
    )
    title = f"The rate of all points, {shown.factor(page.silent.rate_per_year)} a year, with the silent rows"
    return Table(title, ("where they may lie", "the rate could be"), rows)


def _limits(found: IndustryAnswer) -> Table:
    rows = tuple(
        ("", (x.name, date_words(x.date), _ends(x.doublings, "{:.1f}".format),
              _ends(x.feasible, power), f"{x.first:.0%}"))
        for x in found.limits
    )  # fmt: skip
    title = (
        f"The largest training run, {power(found.frontier.value)} FLOP in {found.start:.1f}, growing"
        f" {found.growth}; {found.draws:,} draws, {100 * found.level:g}%"
    )
    allowed = f"FLOP allowed in {found.feasible_year:.0f}"
    head = ("limit", "binds in", "doublings left", allowed, "binds first")
    return Table(title, head, rows)


def _ends(found: Interval, words: Callable[[float], str]) -> str:
    """A value and its interval; what is not finite in words."""
    value, low, high = (
        words(v) if math.isfinite(v) else "unbounded" for v in (found.value, found.low, found.high)
    )
    return f"{value} [{low}, {high}]"


def _sources(page: Page) -> Table:
    rows = [("", (t.path, str(len(t)), t.snapshot)) for t in page.tables.values()]
    rows.append(("", (f"assumptions: {Path(page.limits.assumptions).name}", "", page.limits.snapshot)))
    return Table(
        "Snapshots: the first digits of each file's SHA-256", ("file", "rows", "snapshot"), tuple(rows)
    )


def notes(page: Page) -> dict[str, list[str]]:
    """What is doubtful in the answers but the lead's: each sentence once, with the metrics it is about."""
    found: dict[str, list[str]] = {}
    for name, a in page.answered.items():
        for note in a.trend.notes:
            if a is not page.lead:
                found.setdefault(note, []).append(name)
    return found


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
