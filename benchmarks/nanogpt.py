"""nanoGPT's own train.py: how the benchmarks give it a corpus, run it, time it and score it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparing import SETTLE_STEPS, score, steady
from torch import Tensor

from isoflop.corpus import heldout_tokens, train_tokens
from isoflop.records import Corpus

CONTEXT = 256
SIZES = {  # layers, heads, width; the names count the blocks' weights alone
    "10M": (6, 6, 384), "2.2M": (5, 6, 192), "0.8M": (4, 4, 128), "0.3M": (3, 3, 96),
}  # fmt: skip
SEED = "torch.manual_seed(1337 + seed_offset)"
ENDLESS_STEPS = 10**8  # of a run that is stopped once its speed is known


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
    np.asarray(train_tokens(corpus)[:], dtype=np.uint16).tofile(folder / "train.bin")
    np.asarray(heldout_tokens(corpus)[:], dtype=np.uint16).tofile(folder / "val.bin")
    # Without it train.py falls back on GPT-2's 50,304 tokens, a head twelve times too large.
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.vocab_size}))


def command(
    repository: Path, peer: Peer, steps: int, out: Path, dataset: str, log_interval: int = 10
) -> list[str]:
    """nanoGPT's own command line, for its own folder."""
    layers, heads, width = SIZES[peer.size]
    options: dict[str, Any] = {
        "out_dir": str(out.absolute()), "dataset": dataset, "device": "cpu", "dtype": "float32",
        "compile": False, "block_size": CONTEXT, "batch_size": peer.batch, "gradient_accumulation_steps": 1,
        "n_layer": layers, "n_head": heads, "n_embd": width, "dropout": 0.0, "learning_rate": peer.lr,
        "min_lr": peer.lr / 10, "beta2": 0.99, "warmup_iters": 100, "max_iters": steps,
        "lr_decay_iters": steps, "eval_interval": steps, "eval_iters": 1, "log_interval": log_interval,
        "always_save_checkpoint": True,
    }  # fmt: skip
    source = _seeded(repository, peer.seed)
    return [sys.executable, "-u", "-c", source, *(f"--{k}={v}" for k, v in options.items())]


def _seeded(repository: Path, seed: int) -> str:
    """Its train.py with another seed, which is written in it; the checkout stays as it is."""
    source = (repository / "train.py").read_text()
    if SEED not in source:
        sys.exit(f"{repository / 'train.py'} does not set its seed by {SEED}: it cannot be given another")
    return source.replace(SEED, f"torch.manual_seed({seed})")


def _milliseconds(line: str) -> float | None:
    """Of the step that a line of its log is about."""
    return float(line.split("time ")[1].split("ms")[0]) if "ms, mfu" in line else None


def run_peer(repository: Path, peer: Peer, steps: int, out: Path, dataset: str, threads: int) -> list[float]:
    """Run train.py in its own folder; returns its milliseconds a step, as it logs them."""
    text = subprocess.run(
        command(repository, peer, steps, out, dataset), cwd=repository, check=True, stdout=subprocess.PIPE,
        text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ).stdout  # fmt: skip
    return [ms for line in text.splitlines() if (ms := _milliseconds(line)) is not None]


def speed(
    repository: Path, peer: Peer, out: Path, dataset: str, threads: int, seconds: float
) -> dict[str, float]:
    """Start-up and steady speed of train.py, which is stopped after `seconds` of steady state.

    Its start-up holds an evaluation of two batches, which it begins with.
    """
    marks: list[tuple[float, float]] = []
    born = time.time()
    with subprocess.Popen(
        command(repository, peer, ENDLESS_STEPS, out, dataset, log_interval=1), cwd=repository,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": str(threads)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if _milliseconds(line) is None:
                continue
            marks.append((time.time() - born, (len(marks) + 1) * peer.batch * CONTEXT))
            if len(marks) > SETTLE_STEPS and marks[-1][0] - marks[SETTLE_STEPS - 1][0] >= seconds:
                process.terminate()
                break
    if len(marks) <= SETTLE_STEPS:
        sys.exit(f"{repository / 'train.py'} ended after {len(marks)} steps")
    return steady(marks)


def score_peer(repository: Path, out: Path, corpus: Corpus) -> dict[str, float]:
    """Held-out score of nanoGPT's checkpoint on all windows of its context."""
    sys.path.insert(0, str(repository))
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    sys.path.pop(0)
    saved = torch.load(out / "ckpt.pt", weights_only=False)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()

    def nats(x: Tensor, y: Tensor) -> Tensor:
        mean: Tensor = model(x, y)[1]
        return mean * y.numel()

    return score(nats, corpus, CONTEXT)
