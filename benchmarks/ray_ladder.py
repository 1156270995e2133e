"""Wall time of one small ladder on Ray with a node a core, against packing it on this machine.

    python benchmarks/ray_ladder.py --record records/DATE_ray-ladder --rounds 5

The same members, round by round both ways in turn, each in a new project. Processes are started and have
imported torch before the first round; what is timed is `climb`. A round takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from keeping import keep
from ray.cluster_utils import Cluster as Nodes

from isoflop import ladder as rungs
from isoflop.cluster import connected
from isoflop.corpus import build_corpus
from isoflop.places import Place, here
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Ladder
from isoflop.store import Project
from isoflop.workers import cores

TARGET = 1.15  # of the packed wall time
EVAL_TOKENS = 32_768  # held-out scores are the same work both ways: a tenth of a run here


def ladder_of(corpus: Corpus, steps: int) -> Ladder:
    """Six members of three sizes; longest first they fill two cores evenly."""
    members = []
    for width, length in ((64, 4 * steps), (96, 2 * steps), (128, steps)):
        for seed in range(2):
            config = recipe(shape(width, corpus.vocab_size), 0, seed=seed, eval_tokens=EVAL_TOKENS)
            counts = [n * config.batch_tokens for n in (length // 2, length)]
            members.append(rungs.member(config, counts, width * 1e-6, 0.1))
    return Ladder(id="k", corpus_id=corpus.id, members=tuple(members), packed=cores(), seconds=1, flops=1)


def seconds(ladder: Ladder, corpus: Corpus, place: Place) -> tuple[float, list[tuple[str, float]]]:
    """Wall time of climbing it anew, and what came out, whatever finished first."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        runs = rungs.climb(Project(folder), corpus, ladder, progress=Silent(), place=place)
        return time.perf_counter() - start, sorted((r.id, r.loss) for r in runs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40, help="of the largest size's longest branch")
    args = parser.parse_args()
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(cores() - 1):
        nodes.add_node(num_cpus=1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, connected(nodes.address, Silent()) as on_ray:
        corpus = build_corpus(CorpusConfig(vocab_size=512), Path(folder))
        for place in (on_ray, here()):
            seconds(ladder_of(corpus, 8), corpus, place)
        ladder = ladder_of(corpus, args.steps)
        for number in range(args.rounds):
            row: dict[str, Any] = {"round": number, "load": os.getloadavg()[0]}
            found = {}
            ways = [("ray", on_ray), ("packed", here())]
            for name, place in ways if number % 2 else ways[::-1]:
                row[name], found[name] = seconds(ladder, corpus, place)
            assert found["ray"] == found["packed"], "not the same runs"
            rows.append({**row, "ratio": row["ray"] / row["packed"]})
    nodes.shutdown()  # type: ignore[no-untyped-call]
    ratios = sorted(r["ratio"] for r in rows)
    text = "\n".join([
        "# A ladder on Ray against packing it on one machine",
        "",
        f"{cores()} cores, a Ray node each, load {rows[0]['load']:.1f} before and {os.getloadavg()[0]:.1f}"
        f" after. On Ray the same ladder takes {statistics.median(ratios):.3f} of the packed wall time"
        f" (median of {len(ratios)} rounds, {ratios[0]:.3f} to {ratios[-1]:.3f}; the target is at most"
        f" {TARGET}), with the same runs to the last bit.",
        "",
        "| round | packed, s | on Ray, s | ratio |",
        "|---|---|---|---|",
        *(f"| {r['round']} | {r['packed']:.1f} | {r['ray']:.1f} | {r['ratio']:.3f} |" for r in rows),
        "",
    ])  # fmt: skip
    keep(args.record, rows, text)


if __name__ == "__main__":
    main()
