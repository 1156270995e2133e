"""One training run on all cores: joined processes of one thread each, against the threads of one process.

    python benchmarks/ranks_speed.py --record records/DATE_ranks-speed

Round by round each shape is timed three ways: as many runs side by side as there are cores, one thread each
("packed", what the cores can do at most); one run shared by that many processes ("joined"); one process with
that many threads ("threads"). Ratios are to the packed sum of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path

from isoflop import flops
from isoflop.corpus import build_corpus
from isoflop.devices import whole_machine
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, RunConfig
from isoflop.throughput import probe_alone, probe_in
from isoflop.workers import cores, pool


def one_round(config: RunConfig, corpus: Corpus) -> dict[str, float]:
    """Tokens a second of each way."""
    n = cores()
    with pool(n) as executor:
        packed = list(executor.map(probe_in, [corpus.folder] * n, [config] * n, [n] * n))
    return {
        "packed": sum(t.tokens_per_second for t in packed),
        "joined": probe_alone(whole_machine(config), corpus).tokens_per_second,
        "threads": probe_alone(config.model_copy(update={"threads": n}), corpus).tokens_per_second,
    }


def line(width: int, rounds: list[dict[str, float]], config: RunConfig) -> str:
    """One row of the table: medians, then ranges."""
    cells = [f"{width}", f"{flops.params_matmul(config.model):,}"]
    cells.append(f"{statistics.median(r['packed'] for r in rounds):,.0f}")
    for way in ("joined", "threads"):
        ratios = sorted(r[way] / r["packed"] for r in rounds)
        cells.append(f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--record", type=Path, required=True, help="folder for result.json and README.md")
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 96, 128, 192])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        corpus = build_corpus(CorpusConfig(vocab_size=2048), Path(folder))
        configs = {w: recipe(shape(w, corpus.vocab_size), 0) for w in args.widths}
        found: dict[int, list[dict[str, float]]] = {w: [] for w in configs}
        for _ in range(args.rounds):
            for width, config in configs.items():
                found[width].append(one_round(config, corpus))
    args.record.mkdir(parents=True, exist_ok=True)
    result = {"cores": cores(), "load_before": load, "load_after": os.getloadavg()[0], "rounds": found}
    (args.record / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n".join([
        "# One run on all cores: joined processes against threads",
        "",
        f"`python benchmarks/ranks_speed.py --rounds {args.rounds}`, {cores()} cores, load {load:.1f} before."
        " Ratios to the sum of as many packed one-thread runs, median and range over rounds.",
        "",
        "| width | N | packed, tokens/s | joined processes | threads of one process |",
        "|---|---|---|---|---|",
        *(line(w, rounds, configs[w]) for w, rounds in found.items()),
        "",
    ])  # fmt: skip
    (args.record / "README.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
