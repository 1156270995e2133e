"""Published figures of growth against ours, as the Markdown table of docs/trend.md.

    python benchmarks/trend_published.py FOLDER

FOLDER holds headline_figures.csv, notable_models.csv and accelerators.csv. Every row of the first is asked of
the other two, and of the package's own tables, in the published window and with the published definition of
the frontier where there is one. Intervals are 90%, by bootstrap of rows, as most of the published ones are; a
frontier is found again in every draw.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.errors import TrendError
from isoflop.limits import IndustryAnswer, industry, read_assumptions
from isoflop.plots import power
from isoflop.records import Interval
from isoflop.trend.answer import Question
from isoflop.trend.metrics import HARDWARE, METRICS, MODELS
from isoflop.trend.rates import as_they_are, ends, resampled, slopes
from isoflop.trend.tables import Table, read_table

LEVEL, DRAWS, SEED = 0.9, 2000, 0
WIDTH = 118  # of lines of text
FILES = {MODELS: "notable_models.csv", HARDWARE: "accelerators.csv"}
FORMS: dict[str, tuple[str, Callable[[float], float], str]] = {
    # A form of figures: how to find one, what a slope of ln(value) a year is in it, how ours is written.
    "factor": (r"([\d.]+)x", math.exp, "{:.2f}x/yr"),
    "percent": (r"([\d.]+)%", lambda slope: 100 * math.expm1(slope), "{:.0f}%/yr"),
    "months": (r"([\d.]+) mo", lambda slope: 12 * math.log(2) / slope, "{:.1f} mo"),
    "years": (r"([\d.]+) y", lambda slope: math.log(2) / slope, "{:.2f} y"),
}


@dataclass(frozen=True)
class Case:
    """A row of headline_figures.csv as a question."""

    row: str  # its metric
    metric: str
    form: str
    since: str | None = None
    until: str | None = None
    domain: str | None = None
    frontier: str = "all"
    nth: int = 0  # of the figures in the row
    why: str = ""  # ours may be another


@dataclass(frozen=True)
class Ours:
    """A rate in the form of the published one."""

    value: float
    low: float
    high: float
    n: int

    def words(self, form: str) -> str:
        shape = FORMS[form][2]
        bare = shape.partition("}")[0] + "}"
        return f"{shape.format(self.value)} [{bare.format(self.low)}-{bare.format(self.high)}]"


PARTIAL = "the shared table lacks the database's other domains, mostly games and biology; with them"
CASES = (
    Case("compute DL era", "compute", "months", "2010", "2022"),
    Case("compute notable", "compute", "factor", "2010", "2024-05"),
    Case("compute notable since 2022-02", "compute", "factor", "2022-02", "2024-05"),
    Case("compute frontier running top-10", "compute", "factor", "2010", "2024-05", frontier="top10"),
    Case(
        "compute frontier since 2018 exAlphaGo",
        "compute",
        "factor",
        "2018",
        "2024-05",
        frontier="top10",
        why=f"{PARTIAL}, fewer small models of 2018 are among the ten largest, and it is 4.69x",
    ),
    Case("compute notable LMs", "compute", "factor", "2017-06", "2024-05", "language only"),
    Case("compute top-10 LMs after 2020-06", "compute", "factor", "2020-06", "2024-05", "language", "top10"),
    Case("compute notable (OWID)", "compute", "factor", "2010", why=f"{PARTIAL} it is 4.35x"),
    Case("compute frontier (Epoch trends page 2026-09-11)", "compute", "factor", "2018", frontier="top10"),
    Case("LM dataset size", "unique-tokens", "factor", "2010", nth=2),
    Case("parameters (Epoch 2023 page)", "parameters", "factor", "2018", why=f"{PARTIAL} it is 2.86x"),
    Case(
        "training cost amortised",
        "cost",
        "factor",
        "2016",
        "2024",
        frontier="top10",
        why="costs by another method; the paper itself gives 3.0x without TPUs (headline_figures.csv)",
    ),
    Case("training cost cloud", "cost", "factor", "2016", "2024", frontier="top10"),
    Case(
        "GPU FP32 performance",
        "flops-per-second",
        "years",
        "2006",
        "2021",
        why="all GPUs there, accelerators for machine learning here",
    ),
    Case("ML hardware FP16/FP32 performance", "flops-per-second", "percent"),
    Case("memory capacity / bandwidth", "memory", "years", "2010", "2023"),
    Case(
        "memory capacity / bandwidth",
        "bandwidth",
        "years",
        "2010",
        "2023",
        nth=1,
        why="rows were added to the database since, likely those with stacked memory",
    ),
    Case(
        "GPU price-performance",
        "flops-per-dollar",
        "years",
        "2006",
        "2021",
        why="470 prices corrected for inflation there, launch prices as stated here",
    ),
    Case(
        "GPU price-performance ML GPUs",
        "flops-per-dollar",
        "years",
        "2006",
        "2021",
        why="FP32 alone here; with the fastest precision of each it is 1.98 y (headline_figures.csv)",
    ),
    Case(
        "performance per dollar",
        "flops-per-dollar-fp16",
        "percent",
        None,
        "2025-01",
        why="FP16 alone here; with precisions mixed it is 42% (headline_figures.csv)",
    ),
)
LIMITS = ("data stock", "2030 feasible run")
NOT_ASKED = {
    "compute pre-DL": "the tables begin in 2012",
    "compute large-scale": "its points were chosen by their distance from a trend; none of our frontiers is",
    "aggregate AI compute capacity (Epoch trends 2026-09-11)": "no table of chips shipped",
    "algorithmic progress LM": "no table of losses",
    "algorithmic progress ECI": "no table of benchmark scores",
    "vision algorithmic efficiency": "no table of training costs at equal accuracy",
    "densing law": "no table of densities",
    "METR time horizon TH1.0": "no table of time horizons",
    "METR TH1.1 since 2023": "no table of time horizons",
    "METR TH1.1 since 2024": "no table of time horizons",
    "ECI acceleration": "no table of benchmark scores",
    "inference price decline": "no table of prices; the published fits are on 4 to 9 points, which we refuse",
}


class Tables:
    """The tables of a folder, and the package's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.read: dict[tuple[str, bool], Table] = {}
        with (folder / "headline_figures.csv").open(encoding="utf-8") as file:
            self.published = list(csv.DictReader(file))

    def table(self, kind: str, own: bool) -> Table:
        """Of models or hardware; the package's `own`, or the folder's."""
        if (kind, own) not in self.read:
            path = None if own else self.folder / FILES[kind]
            self.read[kind, own] = read_table(path, kind=kind)
        return self.read[kind, own]

    def row(self, metric: str) -> dict[str, str]:
        return next(row for row in self.published if row["metric"] == metric)


def ours(case: Case, table: Table) -> Ours:
    """Raises TrendError where the table cannot answer."""
    q = Question.of(table, case.metric, since=case.since, until=case.until, domain=case.domain,
                    frontier=case.frontier)  # fmt: skip
    slope = float(slopes(as_they_are(q.points, q.since, q.frontier))[0])
    drawn = slopes(resampled(q.points, q.since, q.frontier, "rows", DRAWS, np.random.default_rng(SEED)))
    of = FORMS[case.form][1]
    low, high = sorted(map(of, ends(drawn, LEVEL)))
    return Ours(of(slope), low, high, len(q.chosen()))


def published(row: dict[str, str], case: Case) -> tuple[float, tuple[float, float] | None]:
    """The figure and its interval, if there is one."""
    value = float(re.findall(FORMS[case.form][0], row["published"])[case.nth])
    found = re.match(r"([\d.]+)-([\d.]+)", row["ci"])
    return value, None if found is None else (float(found[1]), float(found[2]))


def verdict(case: Case, row: dict[str, str], found: Ours) -> str:
    value, interval = published(row, case)
    if interval is not None and interval[0] <= found.value <= interval[1]:
        return "yes, inside it"
    return "yes, it is inside ours" if found.low <= value <= found.high else "no"


def answered(case: Case, tables: Tables) -> tuple[list[str], str]:
    """A line of the table, and why the shared table differs, where it does."""
    row = tables.row(case.row)
    kind = METRICS[case.metric].kind
    cells = [
        f"{case.row} ({case.metric})",
        row["window"] or f"from {case.since}",
        row["published"],
        row["ci"],
    ]
    why = ""
    for own in (False, True):
        try:
            found = ours(case, tables.table(kind, own))
        except TrendError:
            cells += ["", "", ""]
            continue
        agrees = verdict(case, row, found)
        cells += [found.words(case.form), str(found.n), agrees]
        if agrees == "no" and not own:
            why = f"{case.row} ({case.metric}): {case.why or 'unexplained'}."
    return cells, why


def limits_lines(tables: Tables, found: IndustryAnswer) -> list[list[str]]:
    """The two published limits beside ours."""
    limits = {limit.name: limit for limit in found.limits}
    parts: dict[str, tuple[str, Interval, Callable[[float], str]]] = {
        "data stock": ("when data bind", limits["data"].date, "{:.1f}".format),
        "2030 feasible run": ("FLOP by power of one campus", limits["campus-power"].feasible, power),
    }
    lines = []
    for name in LIMITS:
        row, (what, interval, words) = tables.row(name), parts[name]
        value, low, high = map(words, (interval.value, interval.low, interval.high))
        lines.append([name, row["published"], row["ci"], f"{what}: {value} [{low}, {high}]"])
    return lines


def markdown(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *([cell.replace("|", "/") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(textwrap.fill(f"- {line}", WIDTH, subsequent_indent="  ") for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    tables = Tables(parser.parse_args().folder)
    answers = [answered(case, tables) for case in CASES]
    head = ["figure", "window", "published", "its interval", "shared table, 90%", "n", "agrees",
            "our facts, 90%", "n", "agrees"]  # fmt: skip
    print(markdown(head, [cells for cells, _ in answers]))
    yes = sum(cells[6].startswith("yes") for cells, _ in answers)
    print(f"\n{yes} of {len(answers)} agree on the shared tables. Where they differ:\n")
    print(bullets(why for _, why in answers if why))
    print("\nLimits, whose assumptions rest on the same sources, so they are no independent evidence:\n")
    found = industry(read_assumptions(), seed=SEED, level=LEVEL)
    print(markdown(["figure", "published", "its interval", "ours, 90%"], limits_lines(tables, found)))
    print("\nNot asked:\n")
    print(bullets(f"{name}: {why}." for name, why in NOT_ASKED.items()))
    snapshots = [f"{Path(t.path).name} `{t.snapshot}`" for t in tables.read.values()]
    print("", textwrap.fill(f"Snapshots: {', '.join(snapshots)}.", WIDTH), sep="\n")


if __name__ == "__main__":
    main()
