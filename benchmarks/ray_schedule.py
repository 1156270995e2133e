"""What Ray costs a member of a ladder: scheduling, carrying, keeping, without training.

    python benchmarks/ray_schedule.py --record records/DATE_ray-schedule

A ladder of many members on Ray on this machine, none of which trains. "jobs" are empty tasks through our
driver loop: submitting them few at a time, the board, the results. "ladder" is the whole of `climb`: run
ids, a folder, its lock, a record of usual size for each run, the ledger.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keeping import keep

from isoflop import ladder as rungs
from isoflop.branches import CURVE_POINTS
from isoflop.cluster import Cluster, connected
from isoflop.corpus import build_corpus
from isoflop.identity import run_id, trunk_id
from isoflop.on_node import Job
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, CurvePoint, Ladder, Run, RunConfig
from isoflop.store import Project
from isoflop.workers import cores

TARGET_MS = 5.0  # a member


def nothing(*, progress: object, stopping: object) -> None:
    """The work of an empty job."""


def simulated(
    config: RunConfig, token_counts: Sequence[int], first: int, corpus: Corpus, *_: object, progress: Any,
    stopping: object,
) -> list[Run]:  # fmt: skip
    """What a trunk's training would hand back."""
    curve = tuple(CurvePoint(tokens=i, seconds=i / 7, loss=5 - i / 60) for i in range(CURVE_POINTS))
    runs = []
    for tokens in token_counts[:first]:
        final = config.model_copy(update={"tokens": tokens})
        zeros = {
            name: 0 for name, field in Run.model_fields.items() if field.is_required() and name != "config"
        }
        known: dict[str, Any] = {"id": run_id(final, corpus), "trunk": trunk_id(config, corpus),
                                 "corpus_id": corpus.id, "config": final, "role": "ladder", "curve": curve,
                                 "params_matmul": config.model.d_model, "tokens": tokens}  # fmt: skip
        runs.append(Run.model_validate(zeros | known))
    progress.update("train", config.tokens)
    return runs


def one(members: int, corpus: Corpus, folder: Path) -> dict[str, float]:
    """Milliseconds a member of each way."""
    runner = Cluster(train=simulated)
    start = time.perf_counter()
    jobs = [Job(f"{i}", "empty", nothing) for i in range(members)]
    assert len(list(runner.do(jobs, "jobs", Silent(), lambda: False))) == members
    empty = time.perf_counter() - start
    configs = [
        recipe(shape(width, corpus.vocab_size), 0, seed=seed)
        for seed in range((members + 1) // 2)
        for width in (64, 96)
    ][:members]
    ladder = Ladder(
        id="k", corpus_id=corpus.id, packed=cores(), seconds=1, flops=1,
        members=tuple(rungs.member(c, [c.batch_tokens, 2 * c.batch_tokens], 1e-5, 0.1) for c in configs),
    )  # fmt: skip
    start = time.perf_counter()
    runs = rungs.climb(Project(folder / "p"), corpus, ladder, progress=Silent(), place=runner.place())
    whole = time.perf_counter() - start
    assert len(runs) == 2 * members
    return {"jobs": 1e3 * empty / members, "ladder": 1e3 * whole / members}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--members", type=int, nargs="+", default=[100, 300, 1000])
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, connected("local", Silent()):
        corpus = build_corpus(CorpusConfig(vocab_size=512), Path(folder))
        one(50, corpus, Path(folder) / "warm")  # processes start, torch is imported
        for members in args.members:
            load = os.getloadavg()[0]
            row = one(members, corpus, Path(folder) / f"{members}")
            rows.append({"members": members, "load": load, "cores": cores(), **row})
    worst = max(r["ladder"] for r in rows)
    lines = (f"| {r['members']} | {r['jobs']:.2f} | {r['ladder']:.2f} | {r['load']:.1f} |" for r in rows)
    text = "\n".join([
        "# What Ray costs a member that does not train",
        "",
        f"{cores()} cores. A simulated member costs at most {worst:.2f} ms ({TARGET_MS:g} are the target),"
        " its folder, its lock and two records in the ledger included.",
        "",
        "| members | ms an empty job | ms a simulated member | load before |",
        "|---|---|---|---|",
        *lines,
        "",
    ])  # fmt: skip
    keep(args.record, rows, text)


if __name__ == "__main__":
    main()
