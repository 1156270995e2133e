"""isoflop's whole main job against nanoGPT's own train.py: bits per byte on the same held-out documents.

    python benchmarks/vs_nanogpt.py --nanogpt DIR --work DIR --record records/DATE_vs-nanogpt \\
        --what default tuned isoflop

Both train on the same split of the standard library: documents are held out by a hash of their text,
whatever the vocabulary. nanoGPT gets a vocabulary of 4,096 and its training budget in steps: its time a
step is measured first with all cores and nothing else running, and the budget buys that many steps. Its
start-up, evaluation and checkpoints are not charged to it; isoflop's 5 minutes hold everything but the
corpus. Since steps are fixed, the peer's result does not depend on how fast they are then run, and
`--threads 1` lets them share a machine. Rows are appended to `rows.jsonl` as they end; a row that is there
is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ours
from comparing import above, checkout
from keeping import once, read, write_readme
from nanogpt import Peer, prepare, run_peer, score_peer

from isoflop.corpus import build_corpus
from isoflop.records import Corpus, CorpusConfig

TUNED = ("2.2M", "0.8M", "0.3M")


def peers_of(what: str, seeds: int) -> list[Peer]:
    """The default recipe with 40 minutes, or three sizes and two rates with 5."""
    if what == "default":
        return [Peer(seed=1337 + s) for s in range(seeds)]
    return [
        Peer(size, batch=4, lr=lr, minutes=5.0, seed=1337 + s)
        for s in range(seeds) for size in TUNED for lr in (1e-3, 3e-3)
    ]  # fmt: skip


def steps_for(repository: Path, peer: Peer, work: Path, corpus: Corpus) -> int:
    """Steps that the peer's minutes buy, measured alone with all cores; kept in `work`."""
    path = work / "steps.json"
    known: dict[str, int] = json.loads(path.read_text()) if path.exists() else {}
    key = f"{peer.size} {peer.batch} {peer.minutes}"
    if key not in known:
        probe = run_peer(repository, peer, 60, work / "peer", corpus.id, os.cpu_count() or 1)
        known[key] = int(peer.minutes * 60_000 / statistics.median(probe[1:]))
        path.write_text(json.dumps(known, indent=1))
    return known[key]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--nanogpt", type=checkout("train.py"), required=True, help="a checkout of karpathy/nanoGPT"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and projects")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument(
        "--what", nargs="+", choices=("measure", "default", "tuned", "isoflop"), required=True
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the peer's runs")
    args = parser.parse_args()
    args.record.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    corpus = build_corpus(CorpusConfig(vocab_size=4096), args.work / "corpora")
    prepare(args.nanogpt, corpus, corpus.id)
    for what in args.what:
        if what == "isoflop":
            for seed in range(args.seeds):
                key = {"what": what, "budget": args.budget, "seed": seed}
                job = partial(ours.whole_job, args.work / f"isoflop-{seed}", args.budget, seed, corpus)
                once(args.record, key, job)
            continue
        for peer in peers_of("default" if what == "measure" else what, args.seeds):
            steps_for(args.nanogpt, peer, args.work, corpus)
            if what != "measure":
                job = partial(score, args.nanogpt, peer, args.work, corpus, args.threads)
                once(args.record, {"what": what, **asdict(peer)}, job)
    write_readme(args.record, summary(read(args.record)))


def score(repository: Path, peer: Peer, work: Path, corpus: Corpus, threads: int) -> dict[str, Any]:
    """Train and score one peer."""
    steps, start = steps_for(repository, peer, work, corpus), time.perf_counter()
    times = run_peer(repository, peer, steps, work / "peer", corpus.id, threads)
    row = {"steps": steps, "threads": threads, "ms_per_step": statistics.median(times)}
    wall = time.perf_counter() - start
    return row | {"wall_seconds": wall, "bpb": score_peer(repository, work / "peer", corpus)["bpb"]}


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README: settings with mean and spread over seeds, and how far above isoflop."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        name = f"isoflop run --budget {row['budget']}" if row["what"] == "isoflop" else (
            f"nanoGPT {row['size']}, batch {row['batch']}, rate {row['lr']:g}, {row['minutes']:g} minutes"
        )  # fmt: skip
        groups.setdefault(name, []).append(row["bpb"])
    base = next((v for k, v in groups.items() if k.startswith("isoflop")), [])
    lines = [
        f"| {name} | {len(v)} | {statistics.mean(v):.4f} | {min(v):.4f} to {max(v):.4f}"
        f" | {'' if v is base else above(v, base)} |"
        for name, v in sorted(groups.items(), key=lambda item: statistics.mean(item[1]))
    ]
    return "\n".join([
        "# Bits per byte: isoflop's whole job against nanoGPT",
        "",
        (__doc__ or "").split("\n\n")[2].replace("\n", " "),
        "",
        "| what | seeds | bits per byte | range over seeds | above isoflop, 90% interval |",
        "|---|---|---|---|---|",
        *lines,
        "",
        f"{rows[0]['cores']} cores. Commands, steps, loads and isoflop's stages are in rows.jsonl.",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
