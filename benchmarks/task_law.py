"""Whether the law of a task foretells what twice the labels buy.

    python benchmarks/task_law.py --data .demo-tasks --record records/DATE_task-law

DATA is the folder that `make demo-tasks` fills. Of each case so many training examples are drawn; the law is
fitted to runs on half of them and less, as `isoflop adapt` runs them, and foretells the score of a run on
all, which is then made. It held where that score lies in the law's 90% interval of a new run. Every row is
appended to `rows.jsonl` of the record as it ends, and is not measured again.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from keeping import machine, once, read, write_readme
from tasks import ENTRIES, Bench

from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, some
from isoflop.adapting.law import CHOSEN, Price, Wanted, epochs_of, task_law
from isoflop.adapting.loop import fine_tune, predict_all
from isoflop.adapting.records import AdaptConfig, LawPoint
from isoflop.adapting.usual import unlearned
from isoflop.devices import preferred_precision
from isoflop.metrics import METRICS, Score, scored

TESTED, VALIDATED = 500, 100  # examples
PAID = 1e9  # seconds: every run that the law can ask for is made


@dataclass(frozen=True)
class Case:
    """What is learned from, and how."""

    name: str  # of its folder in data/
    examples: int  # of which the law sees half
    passes: float
    lr: float
    batch: int = 16
    max_length: int | None = None  # tokens


CASES = (
    Case("names", 1000, 2, 1e-4),
    Case("spam", 400, 3, 1.5e-4, max_length=64),
    Case("fashion", 4000, 6, 3e-3, batch=64),
    Case("reviews-zh", 8000, 3, 1e-3, batch=32, max_length=64),
    Case("ner-zh", 4000, 3, 1e-3, max_length=64),
)


@dataclass(frozen=True)
class Learner:
    """Runs of one case and draw."""

    case: Case
    bench: Bench
    draw: int

    def __call__(self, wanted: Wanted, passes: float, examples: int) -> Score:
        """The score on the test examples after so many passes over a share of that many examples.

        Subsets of one seed are nested; a draw's half is the same for all of its runs.
        """
        task, rows = self.bench.task, self.bench.rows
        there = some(some(rows[TRAIN], self.case.examples, self.draw), examples, self.draw)
        train = some(there, max(2, round(wanted.share * examples)), wanted.seed)
        config = AdaptConfig(
            task=task.name, lr=self.case.lr, batch=self.case.batch, evaluations=1, patience=0,
            epochs=epochs_of(passes, len(train), self.case.batch), precision=preferred_precision(),
            seed=self.draw + wanted.seed,
        )  # fmt: skip
        held = some(rows[VALIDATION], VALIDATED, 0)
        tuned = fine_tune(task, self.bench.base, self.bench.spec, train, held, config)
        test = some(rows[TEST], TESTED, 0)
        found = predict_all(task, self.bench.base, self.bench.spec, tuned.model, test)
        metric = METRICS[task.metrics[0]]
        return scored(metric, found, task.references(self.bench.spec, test))


def measured(case: Case, bench: Bench, draw: int) -> dict[str, Any]:
    """The law of half of the examples, and the run that it foretells."""
    learn, half, began = Learner(case, bench, draw), case.examples // 2, time.monotonic()

    def point(wanted: Wanted, passes: float) -> LawPoint:
        start = time.monotonic()
        score = learn(wanted, passes, half)
        return LawPoint(
            who=CHOSEN, params=1, examples=round(wanted.share * half), seed=wanted.seed, score=score,
            seconds=time.monotonic() - start,
        )  # fmt: skip

    law = task_law(
        point, METRICS[bench.task.metrics[0]], half, PAID, Price(0.0, 1.0, {}), passes=case.passes,
        known=case.passes, default=False,
        unlearned=unlearned(bench.task, bench.spec, bench.rows[TRAIN], some(bench.rows[TEST], TESTED, 0)),
    )  # fmt: skip
    told = law.twice_labels
    if told is None:  # all runs were paid for: no curve goes through them
        return {"metric": law.metric, "examples": case.examples, "told": None, "why": law.sentences[0],
                "points": [(p.examples, p.seed, p.score.value) for p in law.points]}  # fmt: skip
    score = learn(Wanted(CHOSEN, 1.0, 0), case.passes, case.examples)
    return {
        "metric": law.metric, "examples": case.examples, "now": law.now, "told": told.value, "low": told.low,
        "high": told.high, "found": score.value, "held": told.low <= score.value <= told.high,
        "law": law.law, "seconds": time.monotonic() - began,
        "points": [(p.examples, p.seed, p.score.value) for p in law.points],
    }  # fmt: skip


HEADER = (
    "data", "metric", "draw", "examples", "half, by the law", "all, foretold", "90% interval", "found", "held"
)  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    if row["told"] is None:
        return (
            f"| {row['data']} | {row['metric']} | {row['draw']} | {row['examples']:,} |"
            + " – |" * 4
            + " no law |"
        )
    cells = (
        row["data"], row["metric"], row["draw"], f"{row['examples']:,}", f"{row['now']:.4g}",
        f"{row['told']:.4g}", f"{row['low']:.4g} to {row['high']:.4g}", f"{row['found']:.4g}",
        "yes" if row["held"] else "no",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README."""
    told = [row for row in rows if row["told"] is not None]
    held = sum(row["held"] for row in told)
    silent = len(rows) - len(told)
    return "\n".join([
        "# Whether the law of a task foretells what twice the labels buy", "",
        f"In {held} of {len(told)} cases the run on twice the examples scored within the law's 90% "
        f"interval of a new run; in {silent} more it told nothing, as they had but begun to learn. "
        "The law is fitted to ten runs on an eighth to all of half of the examples; "
        "the run on all of them is made afterwards. Draws are of other training examples; test examples "
        "are the same.", "",
        "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|", *map(line, rows), "",
        f"Machine: {machine()}.", "",
    ])  # fmt: skip


def case_bench(case: Case, args: argparse.Namespace) -> Bench:
    """Data and base of the case, as the tasks' benchmark has them; inputs are cut as the case says."""
    entry = next(e for e in ENTRIES if e.name == case.name)
    bench = Bench(entry, args.data, args.data / "work" / case.name, args.record, math.inf, args.pretrain)
    bench.read_to(case.max_length)
    return bench


def main() -> None:
    """Measure what is missing, then print and record the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--pretrain", default="2m", help="budget of each of our own bases")
    parser.add_argument("--cases", nargs="*", default=[case.name for case in CASES])
    parser.add_argument("--draws", type=int, default=2)
    args = parser.parse_args()
    for case in (case for case in CASES if case.name in args.cases):
        bench = case_bench(case, args)
        for draw in range(args.draws):
            key = {"data": case.name, "draw": draw}
            once(args.record, key, partial(measured, case, bench, draw))
    write_readme(args.record, summary(read(args.record)))


if __name__ == "__main__":
    main()
