"""Seconds to 1.28 bits per byte on the standard library: one line of LEADERBOARD.md, measured here.

    python benchmarks/leaderboard.py --what 'the recipe of today'

Trains the planned run below once a seed, as `isoflop train` does it, each in a fresh process, and scores it
on all held-out text. The clock counts from the start of that process to the last step of the cooldown:
interpreter, imports, worker processes, compilation without a cache, checkpoints. The corpus is there
beforehand, and the evaluation for the verdict is not counted. The line counts when the upper end of the 90%
interval of the mean bits per byte over the seeds is at or under the threshold; then, and when nothing is
uncommitted, it is appended to the board. Seeds that are done are kept in --work, by commit and
configuration, and not run again.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import ours
from comparing import mean
from keeping import machine, once

from isoflop.corpus import build_corpus
from isoflop.records import Corpus, CorpusConfig, RunConfig, digest
from isoflop.starting import chosen_config
from isoflop.store import Project

HOME = Path(__file__).resolve().parents[1]
THRESHOLD = 1.28  # bits per byte
HELDOUT = (40, 921_975)  # documents and bytes of the default corpus that the threshold is for: Python 3.11.7
WIDTH, TOKENS, VOCAB = 64, 2_080_000, 2048  # the best planned run so far


def the_corpus(folder: Path, vocab: int) -> Corpus:
    """The default corpus; ends the program when its held-out part is not the board's."""
    corpus = build_corpus(CorpusConfig(vocab_size=vocab), folder)
    found = (corpus.heldout_documents, corpus.heldout_bytes)
    if found != HELDOUT:
        sys.exit(
            f"the held-out part of this Python's standard library has {found[0]} documents of {found[1]:,}"
            f" bytes, the board's has {HELDOUT[0]} of {HELDOUT[1]:,}; hint: use Python 3.11.7"
        )
    return corpus


def commit() -> tuple[str, bool]:
    """Its name, with that of the changes since, and whether there are none."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HOME, check=True, capture_output=True, text=True).stdout

    name, code = git("rev-parse", "--short", "HEAD").strip(), ("--", "isoflop", "benchmarks")
    changes = git("status", "--porcelain", *code) + git("diff", "HEAD", *code)
    return (f"{name}+{digest(changes)[:6]}", False) if changes else (name, True)


def command(args: argparse.Namespace) -> str:
    """What reproduces the line."""
    words = ["python", "benchmarks/leaderboard.py"]
    words += [] if args.width == WIDTH else ["--width", str(args.width)]
    words += [] if args.layers is None else ["--layers", str(args.layers)]
    words += [] if args.tokens == TOKENS else ["--tokens", str(args.tokens)]
    words += [] if args.vocab == VOCAB else ["--vocab", str(args.vocab)]
    words += [] if args.seeds == 3 else ["--seeds", str(args.seeds)]
    return shlex.join(words)


def verdict(rows: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether it counts, and its bits per byte with the upper bound."""
    bits = mean([row["bpb"] for row in rows])
    return bits.high <= THRESHOLD, f"{bits.value:.4f} (at most {bits.high:.4f})"


def line(rows: list[dict[str, Any]], args: argparse.Namespace, name: str) -> str:
    """One line of the board."""
    seconds = mean([row["wall_seconds"] for row in rows])
    load = max(row["load_before"] for row in rows)
    cells = (
        datetime.date.today().isoformat(), f"{seconds.value:.1f} [{seconds.low:.1f}, {seconds.high:.1f}]",
        len(rows), verdict(rows)[1], args.what, f"{rows[0]['params']:,}", f"{rows[0]['tokens']:,}",
        f"`{command(args)}`", name, f"{machine()}, load {load:.1f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def config_of(project: Project, corpus: Corpus, args: argparse.Namespace, seed: int) -> RunConfig:
    """As `isoflop train --width --layers --tokens --seed` makes it.

    For a run long enough to be compiled, speeds with and without are measured here, before the clock starts;
    `isoflop train` pays for that once a machine and shape.
    """
    return chosen_config(
        project, corpus, width=args.width, layers=args.layers, tokens=args.tokens, lr_scale=1.0, seed=seed
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", default="the default recipe", help="what changed, for the board")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--vocab", type=int, default=VOCAB)
    parser.add_argument("--seeds", type=int, default=3, help="at least three")
    parser.add_argument(
        "--work", type=Path, default=HOME / "build" / "leaderboard", help="corpus and seeds done"
    )
    parser.add_argument("--board", type=Path, default=HOME / "LEADERBOARD.md")
    args = parser.parse_args()
    if args.seeds < 3:
        parser.error("a line takes three seeds or more")
    corpus, project = the_corpus(args.work / "corpora", args.vocab), Project(args.work / "project")
    name, clean = commit()
    rows = []
    for seed in range(args.seeds):
        config = config_of(project, corpus, args, seed)
        key = {"commit": name, "run": digest([corpus.id, config.model_dump(mode="json")])}
        rows.append(once(args.work, key, partial(ours.whole_run, config, corpus, config.model.context)))
    made = line(rows, args, name)
    print(made)
    if not verdict(rows)[0]:
        sys.exit(f"not appended: the mean over {args.seeds} seeds is not surely at or under {THRESHOLD}")
    if not clean:
        sys.exit("not appended: isoflop/ or benchmarks/ has changes that are not committed")
    with args.board.open("a") as file:
        file.write(made + "\n")


if __name__ == "__main__":
    main()
