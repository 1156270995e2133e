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
import math
import os
import pickle
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import ttest_ind

from isoflop.corpus import build_corpus, heldout_tokens, load_corpus, token_bytes, train_tokens
from isoflop.evaluate import heldout, heldout_windows
from isoflop.export import load_pretrained
from isoflop.records import Corpus, CorpusConfig

CONTEXT = 256
SIZES = {"2.2M": (5, 6, 192), "0.8M": (4, 4, 128), "0.3M": (3, 3, 96)}  # layers, heads, width


@dataclass(frozen=True)
class Peer:
    """One nanoGPT run: its default recipe unless said otherwise."""

    size: str = "2.2M"
    batch: int = 12
    lr: float = 1e-3
    minutes: float = 40.0
    seed: int = 1337


def prepare(repository: Path, corpus: Corpus, name: str) -> None:
    """Put the corpus where nanoGPT's train.py looks for it."""
    folder = repository / "data" / name
    folder.mkdir(parents=True, exist_ok=True)
    np.asarray(train_tokens(corpus), dtype=np.uint16).tofile(folder / "train.bin")
    np.asarray(heldout_tokens(corpus), dtype=np.uint16).tofile(folder / "val.bin")
    # Without it train.py falls back on GPT-2's 50,304 tokens, a head twelve times too large.
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.vocab_size}))


def command(peer: Peer, steps: int, out: Path, dataset: str) -> list[str]:
    """nanoGPT's own command line."""
    layers, heads, width = SIZES[peer.size]
    options: dict[str, Any] = {
        "out_dir": str(out), "dataset": dataset, "device": "cpu", "dtype": "float32", "compile": False,
        "block_size": CONTEXT, "batch_size": peer.batch, "gradient_accumulation_steps": 1,
        "n_layer": layers, "n_head": heads, "n_embd": width, "dropout": 0.0, "learning_rate": peer.lr,
        "min_lr": peer.lr / 10, "beta2": 0.99, "warmup_iters": 100, "max_iters": steps,
        "lr_decay_iters": steps, "eval_interval": steps, "eval_iters": 1, "log_interval": 10,
        "always_save_checkpoint": True,
    }  # fmt: skip
    return [sys.executable, "train.py", *(f"--{k}={v}" for k, v in options.items())]


def run_peer(repository: Path, peer: Peer, steps: int, out: Path, dataset: str, threads: int) -> list[float]:
    """Run train.py in its own folder; returns its milliseconds a step, as it logs them."""
    source = (repository / "train.py").read_text()
    seeded = source.replace("torch.manual_seed(1337 + seed_offset)", f"torch.manual_seed({peer.seed})")
    (repository / "train.py").write_text(seeded)
    try:
        text = subprocess.run(
            command(peer, steps, out, dataset), cwd=repository, check=True, capture_output=True, text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        ).stdout  # fmt: skip
    finally:
        (repository / "train.py").write_text(source)
    return [float(line.split("time ")[1].split("ms")[0]) for line in text.splitlines() if "ms, mfu" in line]


def score_peer(repository: Path, out: Path, corpus: Corpus) -> float:
    """Bits per byte of nanoGPT's checkpoint on isoflop's held-out windows."""
    sys.path.insert(0, str(repository))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    sys.path.pop(0)
    saved = torch.load(out / "ckpt.pt", weights_only=False)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    windows = heldout_windows(corpus, CONTEXT, 1 << 30)
    nats = 0.0
    with torch.no_grad():
        for w in torch.split(windows, 16):
            nats += float(model(w[:, :-1].contiguous(), w[:, 1:].contiguous())[1]) * w[:, 1:].numel()
    return nats / math.log(2) / float(token_bytes(corpus)[windows[:, 1:].numpy()].sum())


def run_isoflop(project: Path, budget: str, seed: int, peers: Corpus) -> dict[str, Any]:
    """`isoflop run` with its defaults in an empty folder; its model scored on the whole held-out part."""
    line = [sys.executable, "-m", "isoflop", "run", "--budget", budget, "--seed", str(seed)]
    start = time.perf_counter()
    done = subprocess.run(
        [*line, "--project", str(project), "--json"], check=True, stdout=subprocess.PIPE, text=True
    )
    wall = time.perf_counter() - start
    result: dict[str, Any] = json.loads(done.stdout)
    corpus = load_corpus(project / "corpora" / result["corpus_id"])
    assert (corpus.heldout_documents, corpus.heldout_bytes) == (peers.heldout_documents, peers.heldout_bytes)
    scored = heldout(load_pretrained(Path(result["model"])), corpus, eval_tokens=1 << 30)
    kept = ("loss", "bpb", "predicted", "interval", "within_interval", "params", "tokens", "flops",
            "flops_total", "seconds", "doublings")  # fmt: skip
    return {
        "command": shlex.join(["isoflop", *line[3:]]), "bpb": scored.bpb, "wall_seconds": wall,
        "vocabulary": corpus.vocab_size, "result": {key: result[key] for key in kept},
    }  # fmt: skip


def peers_of(what: str, seeds: int) -> list[Peer]:
    """The default recipe with 40 minutes, or three sizes and two rates with 5."""
    if what == "default":
        return [Peer(seed=1337 + s) for s in range(seeds)]
    return [
        Peer(size, batch=4, lr=lr, minutes=5.0, seed=1337 + s)
        for s in range(seeds) for size in SIZES for lr in (1e-3, 3e-3)
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
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
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
                job = partial(run_isoflop, args.work / f"isoflop-{seed}", args.budget, seed, corpus)
                once(args.record, key, job)
            continue
        for peer in peers_of("default" if what == "measure" else what, args.seeds):
            steps_for(args.nanogpt, peer, args.work, corpus)
            if what != "measure":
                job = partial(score, args.nanogpt, peer, args.work, corpus, args.threads)
                once(args.record, {"what": what, **asdict(peer)}, job)
    (args.record / "README.md").write_text(summary(read(args.record)))


def score(repository: Path, peer: Peer, work: Path, corpus: Corpus, threads: int) -> dict[str, Any]:
    """Train and score one peer."""
    steps, start = steps_for(repository, peer, work, corpus), time.perf_counter()
    times = run_peer(repository, peer, steps, work / "peer", corpus.id, threads)
    row = {"steps": steps, "threads": threads, "ms_per_step": statistics.median(times)}
    wall = time.perf_counter() - start
    return row | {"wall_seconds": wall, "bpb": score_peer(repository, work / "peer", corpus)}


def read(record: Path) -> list[dict[str, Any]]:
    """The rows so far."""
    path = record / "rows.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def once(record: Path, key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
    """Append the row of `key`, unless it is there."""
    if any(all(row.get(k) == v for k, v in key.items()) for row in read(record)):
        return
    row = key | {"load_before": os.getloadavg()[0], "cores": os.cpu_count()} | work()
    with (record / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def above(theirs: list[float], ours: list[float]) -> str:
    """How far the mean of `theirs` lies above that of `ours`, with Welch's interval over seeds."""
    if not ours or theirs is ours:
        return ""
    base = statistics.mean(ours)
    value = f"{statistics.mean(theirs) / base - 1:+.1%}"
    if min(len(theirs), len(ours)) < 2:
        return value
    ends = ttest_ind(theirs, ours, equal_var=False).confidence_interval(0.9)
    return f"{value} [{ends.low / base:+.1%}, {ends.high / base:+.1%}]"


def summary(rows: list[dict[str, Any]]) -> str:
    """The record's README: settings with mean and spread over seeds, and how far above isoflop."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        name = f"isoflop run --budget {row['budget']}" if row["what"] == "isoflop" else (
            f"nanoGPT {row['size']}, batch {row['batch']}, rate {row['lr']:g}, {row['minutes']:g} minutes"
        )  # fmt: skip
        groups.setdefault(name, []).append(row["bpb"])
    ours = next((v for k, v in groups.items() if k.startswith("isoflop")), [])
    lines = [
        f"| {name} | {len(v)} | {statistics.mean(v):.4f} | {min(v):.4f} to {max(v):.4f} | {above(v, ours)} |"
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
