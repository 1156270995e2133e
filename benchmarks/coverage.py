"""Does the interval that is written before the final run hold what the run then measures?

    python benchmarks/coverage.py --corpus stdlib= --corpus man=DIR --corpus chinese=DIR \\
        --budget 5m --seeds 4 --work DIR --record records/DATE_coverage

Every row is a whole `isoflop run` on a project folder of its own. `--corpus NAME=` without a path is the
standard library. Rows are appended to `rows.jsonl` of the record as they end, and a row that is there is
not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Run what is missing, then print and record how often the interval held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--work", type=Path, required=True, help="folder for the projects")
    parser.add_argument("--record", type=Path, required=True, help="folder for rows.jsonl and README.md")
    args = parser.parse_args()
    args.record.mkdir(parents=True, exist_ok=True)
    path = args.record / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(r["corpus"], r["budget"], r["seed"]) for r in rows}
    for seed in range(args.seeds):
        for name, _, source in (c.partition("=") for c in args.corpus):
            if (name, args.budget, seed) in done:
                continue
            row = one(name, source, args.budget, seed, args.work / f"{name}-{args.budget}-{seed}")
            rows.append(row)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(line(row), flush=True)
    (args.record / "README.md").write_text(summary(rows))
    print(summary(rows))


def one(name: str, source: str, budget: str, seed: int, project: Path) -> dict[str, Any]:
    """One whole job."""
    words = ["run", *filter(None, [source]), "--budget", budget, "--seed", str(seed), "--json"]
    start, load = time.perf_counter(), os.getloadavg()[0]
    done = subprocess.run(
        [sys.executable, "-m", "isoflop", *words, "--project", str(project)],
        check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    result = json.loads(done.stdout)
    shown = [name.upper() if word == source else word for word in words]
    kept = ("loss", "loss_se", "bpb", "predicted", "interval", "within_interval", "params", "tokens", "flops",
            "flops_total", "seconds", "doublings", "doublings_total")  # fmt: skip
    return {
        "corpus": name, "budget": budget, "seed": seed, "command": "isoflop " + shlex.join(shown),
        "wall_seconds": time.perf_counter() - start, "load_before": load, "load_after": os.getloadavg()[0],
        "cores": os.cpu_count(), **{key: result[key] for key in kept},
    }  # fmt: skip


def half_width(row: dict[str, Any]) -> float:
    """Of the interval, relative to the prediction."""
    low, high = row["interval"]
    return float((high - low) / 2 / row["predicted"])


HEADER = ("corpus", "budget", "seed", "predicted", "90% interval", "half-width", "measured", "miss", "held",
          "bits per byte", "N", "D", "seconds")  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """One row of the table."""
    low, high = row["interval"]
    cells = (
        row["corpus"], row["budget"], row["seed"], f"{row['predicted']:.4f}", f"{low:.4f} to {high:.4f}",
        f"{half_width(row):.1%}", f"{row['loss']:.4f}", f"{row['loss'] / row['predicted'] - 1:+.1%}",
        "yes" if row["within_interval"] else "NO", f"{row['bpb']:.4f}", f"{row['params']:,}",
        f"{row['tokens']:,}", f"{row['seconds']['total']:.0f}",
    )  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README."""
    held = sum(r["within_interval"] for r in rows)
    return "\n".join([
        "# The interval written before the final run, and what the run measured",
        "",
        f"{held} of {len(rows)} final runs fell within their 90% interval; the widest half-width is "
        f"{max(map(half_width, rows)):.1%}. A calibrated 90% interval holds 9 of 10 on average.",
        "",
        "Each row is a whole job (`command` in rows.jsonl): corpus, ladder, law, plan, final run. Losses are "
        "nats a token.",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|---" * len(HEADER) + "|",
        *map(line, rows),
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
