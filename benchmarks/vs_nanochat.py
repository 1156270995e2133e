"""nanochat's d-series recipe against isoflop: bits per byte on the same held-out text at equal wall time.

    python benchmarks/vs_nanochat.py --nanochat DIR --work DIR --record records/DATE_vs-nanochat

    nanochat       depth 3 (width 192, N = 2.1M) by its own model, optimizer and schedules
    isoflop-same   our recipe for the same width, depth and vocabulary, for the same time
    isoflop        `isoflop run` of that time: corpus apart, ladder included, the size of its own choice

nanochat's GPT, MuonAdamW and initial weights come from the folder given; the loop around them
(nanochat_loop.py) follows the rates, schedules and scaling rules of its scripts/base_train.py. Changed to
run on a CPU, as its runs/runcpu.sh does: float32 throughout (its own choice without a GPU), torch's
attention in place of flash attention with every layer's window full, heads of 64, a context of 512, 32 rows
at a time. Changed besides: a vocabulary of 4,096 for 32,768; batches of 16,384 tokens (runcpu.sh) and of
4,096, of which the better counts, since its rule's 131,072 would leave it some 20 steps in five minutes;
windows of our token file in our order for its best-fit packing of documents. Model and optimizer are
compiled, as they are there. Its time is charged for steps alone: as many as its speed, measured on all
cores, buys. Start-up, compilation and evaluation are free; ours pays for them, evaluation apart. `--minutes
5 20` also gives nanochat four times the time: where ours in 5 is still lower, it is lower by two doublings.
Not compared: chat, its tokenizer, GPUs. Rows are appended to `rows.jsonl` as they end; a row that is there
is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ours
from comparing import above, ask, checkout
from keeping import machine, once, read, write_readme
from nanochat_loop import ASPECT

from isoflop.corpus import build_corpus
from isoflop.devices import has_compiler
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig
from isoflop.store import Project
from isoflop.workers import cores

Row = dict[str, Any]
CONTEXT, VOCAB, MICRO_ROWS = 512, 4096, 32
PROBE_STEPS = 25
PLANNED = 0.97  # of our time; speeds drift


def loop(args: argparse.Namespace, corpus: Corpus, batch: int, seed: int, steps: int, score: bool) -> Row:
    """One run of nanochat's recipe."""
    asked = {
        "nanochat": str(args.nanochat), "corpus": str(corpus.folder.absolute()),
        "depth": args.depth, "context": CONTEXT, "batch": batch, "rows": MICRO_ROWS, "steps": steps,
        "seed": seed, "threads": cores(), "compile": has_compiler(), "score": score,
    }  # fmt: skip
    line = [sys.executable, str(Path(__file__).with_name("nanochat_loop.py"))]
    answer: Row = ask(line, input=json.dumps(asked))
    return answer | {"steps": steps, "compile": asked["compile"]}


def nanochat(args: argparse.Namespace, corpus: Corpus, batch: int, minutes: float, seed: int) -> Row:
    """Its row: as many steps as its measured speed buys in that time."""
    size = {"what": "nanochat speed", "depth": args.depth, "batch": batch}
    probe = once(args.record, size, partial(loop, args, corpus, batch, 0, PROBE_STEPS, False))
    steps = max(1, int(60 * minutes / probe["step_seconds"]))
    key = {"what": "nanochat", "depth": args.depth, "batch": batch, "minutes": minutes, "seed": seed}
    return once(args.record, key, partial(loop, args, corpus, batch, seed, steps, True))


def same(args: argparse.Namespace, corpus: Corpus, minutes: float, seed: int) -> Row:
    """Our recipe at the same width, depth and vocabulary; its whole wall time within the minutes."""
    model = shape(ASPECT * args.depth, VOCAB, n_layers=args.depth, context=CONTEXT)
    config = ours.as_trained(recipe(model, 0, seed=seed), corpus, Project(args.work / "speeds"), 60 * minutes)
    speed = once(
        args.record, {"what": "our speed", "depth": args.depth, **ours.how(config)},
        partial(ours.speed, config, corpus, args.probe),
    )  # fmt: skip
    left = PLANNED * 60 * minutes - speed["start_seconds"]
    steps = max(1, int(left * speed["tokens_per_second"] / config.batch_tokens))
    config = config.model_copy(update={"tokens": steps * config.batch_tokens})
    key = {"what": "isoflop-same", "depth": args.depth, "minutes": minutes, "seed": seed}
    return once(args.record, key, partial(ours.whole_run, config, corpus, CONTEXT))


def whole(args: argparse.Namespace, corpus: Corpus, minutes: float, seed: int) -> Row:
    """`isoflop run` of the same time."""
    project, budget = args.work / f"isoflop-{minutes:g}m-{seed}", f"{60 * minutes:g}s"
    job = partial(ours.whole_job, project, budget, seed, corpus)
    return once(args.record, {"what": "isoflop", "minutes": minutes, "seed": seed}, job)


def summary(rows: list[Row]) -> str:
    """The record's README: means over seeds, and how far above each of ours nanochat is."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if "bpb" in row:
            name = row["what"] + (f", batch {row['batch']:,}" if "batch" in row else "")
            groups.setdefault((name, row["minutes"]), []).append(row)
    values = {name: [r["bpb"] for r in part] for name, part in groups.items()}
    shortest = min((minutes for name, minutes in values if name.startswith("isoflop")), default=0.0)
    bases = [values.get((name, shortest), []) for name in ("isoflop-same", "isoflop")]
    lines = []
    for name, part in groups.items():
        v = values[name]
        params = part[0].get("params") or part[0]["result"]["params"]
        over = ["" if v is base else above(v, base) for base in bases]
        seconds = [r["wall_seconds"] if "steps" not in r else r["steps"] * r["step_seconds"] for r in part]
        cells = (name[0], f"{name[1]:g}", f"{params:,}", len(v), f"{np.mean(seconds):.0f}",
                 f"{np.mean(v):.4f}", f"{min(v):.4f} to {max(v):.4f}", *over)  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([
        "# Bits per byte: isoflop against nanochat's recipe on a CPU",
        "",
        " ".join((__doc__ or "").split("\n\n")[3].split()),
        "",
        "| what | minutes | N | seeds | seconds charged | bits per byte | range"
        f" | above isoflop-same in {shortest:g} minutes, 90% | above isoflop in {shortest:g} minutes, 90% |",
        "|---" * 9 + "|",
        *lines,
        "",
        f"{machine()}; highest load before a run {max(r['load_before'] for r in rows):.1f}, where one"
        " ahead of it counts. Steps, commands and speeds are in rows.jsonl.",
        "",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ("nanochat", "isoflop-same", "isoflop")
    parser.add_argument(
        "--nanochat",
        type=checkout("scripts/base_train.py"),
        required=True,
        help="a checkout of karpathy/nanochat",
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for corpora and projects")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    parser.add_argument("--what", nargs="+", choices=kinds, default=kinds)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[5.0], help="nanochat's; ours has the first"
    )
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[16384, 4096], help="nanochat's, in tokens")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--probe", type=float, default=20.0, help="seconds to measure our speed for")
    args = parser.parse_args()
    corpus = build_corpus(CorpusConfig(vocab_size=VOCAB), args.work / "corpora")
    for seed in range(args.seeds):
        if "isoflop-same" in args.what:
            same(args, corpus, args.minutes[0], seed)
        if "isoflop" in args.what:
            whole(args, corpus, args.minutes[0], seed)
        for minutes in args.minutes if "nanochat" in args.what else ():
            for batch in args.batches:
                nanochat(args, corpus, batch, minutes, seed)
    write_readme(args.record, summary(read(args.record)))


if __name__ == "__main__":
    main()
