"""What the page of the whole trend says, before it is drawn: every metric that the tables state, and limits.

page = gather(Window(since="2018"))
page.lead.trend.rate_per_year, page.refused["cost"], page.limits.sentence
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isoflop.errors import TrendError
from isoflop.limits import Averaged, IndustryAnswer, industry, read_assumptions
from isoflop.limits.growth import FRONTIER, SINCE
from isoflop.progress import Progress, Silent
from isoflop.trend.answer import Question, Trend, answer_to
from isoflop.trend.disclosure import Disclosure, disclosure
from isoflop.trend.metrics import HARDWARE, METRICS, MODELS, Metric
from isoflop.trend.specification import Choices, specification
from isoflop.trend.tables import Table, read_table

LEAD = "compute"
FITTED = "the growth models fitted on this page"
LEVEL = 0.9


@dataclass(frozen=True)
class Window:
    """What is asked of the tables; hardware has no domain, and its frontier is all devices."""

    since: str | None = None  # None: models from `SINCE` on, hardware from the first
    until: str | None = None
    domain: str | None = None
    frontier: str = FRONTIER

    def words(self, kind: str) -> dict[str, str | None]:
        """The arguments of a question to a table of this kind."""
        if kind == HARDWARE:
            return {"since": self.since, "until": self.until, "domain": None}
        return {"since": self.since or SINCE, "until": self.until, "domain": self.domain}

    def question(self, table: Table, metric: Metric) -> Question:
        """Raises TrendError for what the table does not hold, or too few points."""
        frontier = "all" if metric.kind == HARDWARE else self.frontier
        return Question.of(table, metric.name, frontier=frontier, **self.words(metric.kind))


@dataclass(frozen=True)
class Answered:
    """One metric: the question and its answer."""

    metric: Metric
    asked: Question
    trend: Trend


@dataclass(frozen=True)
class Page:
    """All that the page says."""

    answered: dict[str, Answered]  # by metric, in the order of METRICS
    refused: dict[str, str]  # by metric, the reason
    lead: Answered  # compute, or the first that is answered
    choices: Choices | None  # of the lead's rate; None where no choice leaves points enough
    silent: Disclosure  # about the lead
    limits: IndustryAnswer  # growth at the rate that is assumed
    limits_fitted: IndustryAnswer | None  # as fitted on this page; None without compute of today
    tables: dict[str, Table]  # by kind
    level: float
    seed: int


def gather(
    window: Window,
    *,
    table: Path | None = None,
    hardware: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Page:
    """Everything; `table` and `hardware` (None: the package's own) are files of models and accelerators.

    Raises TrendError where a table or the window cannot be read, or no metric of models can be answered.
    """
    shown, done = progress or Silent(), 0
    tables = {MODELS: read_table(table), HARDWARE: read_table(hardware, kind=HARDWARE)}
    if tables[HARDWARE].kind == MODELS:
        raise TrendError(f"{hardware} is a table of models.", hint="Give it as --table.")
    answered, refused, asked = {}, dict[str, TrendError](), dict[str, Question]()
    for metric in METRICS.values():
        try:
            asked[metric.name] = window.question(_table_of(metric, tables), metric)
        except TrendError as error:
            refused[metric.name] = error
    lead = _lead(asked, refused)
    shown.start("trend", len(asked) + 2)
    for name, question in asked.items():
        shown.update("trend", done, name)
        try:
            answered[name] = Answered(METRICS[name], question, answer_to(question, LEVEL, seed))
        except TrendError as error:
            if name == lead:
                raise
            refused[name] = error
        done += 1
    shown.update("trend", done, "other choices")
    first = answered[lead]
    words = window.words(first.metric.kind)
    source = _table_of(first.metric, tables)
    choices = _choices(source, lead, first.asked.frontier.name, words, seed)
    silent = disclosure(source, lead, words["since"], words["until"], words["domain"])
    shown.update("trend", done + 1, "limits")
    assumed = read_assumptions()
    # A window that ends early says nothing about growth from the largest run on.
    fitted = None if LEAD not in answered or window.until is not None else industry(
        assumed, growth=Averaged.of_points(answered[LEAD].asked.chosen(), FITTED), seed=seed, level=LEVEL
    )  # fmt: skip
    limits = industry(assumed, seed=seed, level=LEVEL)
    shown.finish("trend", f"{len(answered)} metrics answered, {len(refused)} refused")
    reasons = {name: error.message for name, error in refused.items()}
    return Page(answered, reasons, first, choices, silent, limits, fitted, tables, LEVEL, seed)


def _table_of(metric: Metric, tables: dict[str, Table]) -> Table:
    """Metrics that only a table of the user's can state are asked of the table of models."""
    return tables[HARDWARE if metric.kind == HARDWARE else MODELS]


def _lead(asked: dict[str, Question], refused: dict[str, TrendError]) -> str:
    """Compute, or the first metric of models that can be answered."""
    found = next(
        (name for name in (LEAD, *METRICS) if name in asked and METRICS[name].kind != HARDWARE), None
    )
    if found is None:
        why = refused[LEAD]
        raise TrendError(f"No metric of models can be answered: {why.message}", hint=why.hint)
    return found


def _choices(
    table: Table, metric: str, frontier: str, words: dict[str, str | None], seed: int
) -> Choices | None:
    try:
        return specification(table, metric, frontier=frontier, level=LEVEL, seed=seed, **words)
    except TrendError:
        return None
