"""Whether the law of a peer foretells what twice the labels buy.

    python benchmarks/task_peer_law.py --data .demo-tasks --record records/DATE_task-peer-law

DATA is the folder that `make demo-tasks` fills. Of each data set so many training examples are drawn; the
peer's law is fitted as `isoflop adapt` does to runs on half of them and less, and foretells the score of a
peer of all, which is then made. It held where that score lies in the law's 90% interval of a new run. Every
row is appended to `rows.jsonl` of the record as it ends, and is not measured again.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from keeping import machine, once, read, write_readme
from task_law import HEADER, line
from tasks import MINILM

from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, Sources, some
from isoflop.adapting.peer_law import law_of_peer
from isoflop.adapting.peers import Learned, learned
from isoflop.metrics import METRICS, value_of
from isoflop.progress import Silent
from isoflop.tasks import load_base, task_of

CASES = {  # training examples, of which the law sees half
    "spam": ("classification", 4000), "reviews-zh": ("classification", 12_000), "ner-zh": ("tagging", 4000),
    "en-de": ("translation", 12_000), "en-fr": ("translation", 12_000), "en-zh": ("translation", 12_000),
    "pages": ("summarisation", 590),
}  # fmt: skip
TESTED = 1000  # examples
PAID = 1e9  # seconds: all runs are made


def measured(name: str, data: Path, draw: int) -> dict[str, Any]:
    """The law of half of the examples, and the run that it foretells."""
    task, examples = task_of(CASES[name][0]), CASES[name][1]
    base: Any = load_base(data / MINILM)
    rows, _ = Sources([data / "data" / name]).read(task, {}, 0, [], Silent())
    train, test = some(rows[TRAIN], examples, draw), some(rows[TEST], TESTED, 0)
    writes = name not in ("spam", "reviews-zh", "ner-zh")
    base = SimpleNamespace(kind="encoder-decoder") if writes else base
    spec: Any = SimpleNamespace(source="{}", labels=()) if writes else task.spec(train, base)
    metric = METRICS[task.metrics[0]]
    work: Any = SimpleNamespace(
        task=task, base=base, spec=spec, metric=metric, seed=draw, part=lambda _: nullcontext(),
        rows={TRAIN: some(train, examples // 2, draw), VALIDATION: test.select(range(1)), TEST: test},
    )  # fmt: skip
    found = _learned(work)
    law = law_of_peer(work, found, PAID)
    assert law is not None
    points = [(p.examples, p.seed, p.score.value) for p in law.points]
    told = law.twice_labels
    if told is None:
        return {"metric": law.metric, "examples": len(train), "told": None, "why": law.sentences[0],
                "points": points}  # fmt: skip
    work.rows[TRAIN] = train
    made = _learned(work).alone(TEST)
    score = value_of(metric, made, task.references(spec, test))
    return {
        "metric": law.metric, "examples": len(train), "now": law.now, "told": told.value, "low": told.low,
        "high": told.high, "found": score, "held": told.low <= score <= told.high, "law": law.law,
        "points": points,
    }  # fmt: skip


def _learned(work: Any) -> Learned:
    found = learned(work, PAID)
    assert found is not None and found.examples == len(work.rows[TRAIN])  # noqa: PT018
    return found


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README."""
    told = [row for row in rows if row["told"] is not None]
    held = sum(row["held"] for row in told)
    return "\n".join([
        "# Does the law of a peer foretell what twice the labels buy?", "",
        f"In {held} of {len(told)} cases the score with twice the examples lies in the law's 90% interval of "
        f"a new run; of {len(rows) - len(told)} others it told nothing.", "",
        "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|", *map(line, rows), "",
        f"Machine: {machine()}.", "",
    ])  # fmt: skip


def main() -> None:
    """Measure what is missing, then print and record the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=CASES)
    parser.add_argument("--draws", type=int, default=3)
    args = parser.parse_args()
    for name in args.cases:
        for draw in range(args.draws):
            key = {"data": name, "draw": draw}
            once(args.record, key, partial(measured, name, args.data, draw))
    write_readme(args.record, summary(read(args.record)))


if __name__ == "__main__":
    main()
