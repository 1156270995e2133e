"""isoflop's whole main job against nanoGPT's own train.py: bits per byte on the same held-out text.

    python benchmarks/vs_nanogpt.py --nanogpt DIR --project DIR --record records/DATE_vs_nanogpt

Both read the same packed files (same split, same tokenizer of 4,096) and are scored on the same held-out
windows. nanoGPT gets the training budget in steps: its time a step is measured first with nothing else
running, and `minutes` buy that many steps. Its start-up, evaluation and checkpoint are not charged to it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isoflop.corpus import heldout_tokens, load_corpus, token_bytes, train_tokens
from isoflop.evaluate import heldout_windows
from isoflop.records import Corpus

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


def run_peer(repository: Path, peer: Peer, steps: int, out: Path, dataset: str) -> list[float]:
    """Run train.py in its own folder; returns its milliseconds a step, as it logs them."""
    source = (repository / "train.py").read_text()
    seeded = source.replace("torch.manual_seed(1337 + seed_offset)", f"torch.manual_seed({peer.seed})")
    (repository / "train.py").write_text(seeded)
    try:
        text = subprocess.run(
            command(peer, steps, out, dataset), cwd=repository, check=True, capture_output=True, text=True
        ).stdout
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
            nats += float(model(w[:, :-1], w[:, 1:])[1]) * w[:, 1:].numel()
    return nats / math.log(2) / float(token_bytes(corpus)[windows[:, 1:].numpy()].sum())


def run_isoflop(project: Path, budget: str, seed: int, corpus: Corpus) -> dict[str, Any]:
    """`isoflop run` from an empty run list; its model scored on the whole held-out part."""
    from isoflop.evaluate import heldout
    from isoflop.export import load_pretrained

    line = [sys.executable, "-m", "isoflop", "run", "--budget", budget, "--seed", str(seed)]
    line += ["--vocab", str(corpus.vocab_size), "--project", str(project), "--json"]
    start = time.perf_counter()
    done = subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    result["wall_seconds"] = time.perf_counter() - start
    result["command"] = shlex.join(line[1:])
    result["bpb_all_heldout"] = heldout(
        load_pretrained(Path(result["model"])), corpus, eval_tokens=1 << 30
    ).bpb
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of karpathy/nanoGPT")
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder made by `isoflop corpus`")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and projects")
    parser.add_argument("--what", choices=("default", "tuned", "isoflop"), required=True)
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--steps", type=int, help="skip the speed measurement: that many steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", default="5m")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, help="append each result to this JSON-lines file")
    args = parser.parse_args()
    corpus = load_corpus(args.corpus)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)

    def report(row: dict[str, Any]) -> None:
        row |= {"load": os.getloadavg(), "corpus": corpus.id}
        print(json.dumps(row), flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.write(json.dumps(row) + "\n")

    if args.what == "isoflop":
        for seed in range(args.seeds):
            report(run_isoflop(args.work / f"isoflop-{seed}", args.budget, seed, corpus))
        return
    prepare(args.nanogpt, corpus, corpus.id)
    peers = [Peer(minutes=args.minutes, seed=1337 + s) for s in range(args.seeds)]
    if args.what == "tuned":
        peers = [
            Peer(size, batch=4, lr=lr, minutes=args.minutes, seed=1337 + s)
            for size in SIZES for lr in (1e-3, 3e-3) for s in range(args.seeds)
        ]  # fmt: skip
    for peer in peers:
        out = args.work / "peer"
        steps = args.steps
        if steps is None:
            probe = run_peer(args.nanogpt, peer, 40, out, corpus.id)
            steps = int(peer.minutes * 60_000 / statistics.median(probe[1:]))
        start = time.perf_counter()
        times = run_peer(args.nanogpt, peer, steps, out, corpus.id)
        row = {"peer": asdict(peer), "steps": steps, "ms_per_step": statistics.median(times)}
        report(row | {"wall": time.perf_counter() - start, "bpb": score_peer(args.nanogpt, out, corpus)})


if __name__ == "__main__":
    main()
