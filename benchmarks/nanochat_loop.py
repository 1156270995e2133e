"""nanochat's model, optimizer and schedules on a token file: the loop around them, in a process of its own.

Asked in JSON on stdin, answers in JSON on stdout. `vs_nanochat.py` says what of the recipe is changed.
Steps are timed after SETTLE_STEPS; the compilations of the model and of both optimizer steps come before.
"""

from __future__ import annotations

import json
import math
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from comparing import SETTLE_STEPS, score
from torch import Tensor

from isoflop.corpus import load_corpus
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus
from isoflop.trainer import Batches

ASPECT, HEAD_DIM, REFERENCE_DEPTH = 64, 64, 12
REFERENCE_BATCH = 2**19  # tokens, at which the rates hold
RATES = {"unembedding_lr": 0.008, "embedding_lr": 0.3, "scalar_lr": 0.5, "matrix_lr": 0.02}
WEIGHT_DECAY = 0.28
WARMUP_STEPS, WARMDOWN, FINAL_RATE = 40, 0.65, 0.05
MOMENTUM_STEPS, MOMENTUM, FIRST_MOMENTUM, LAST_MOMENTUM = 400, 0.97, 0.85, 0.90


def scaling_params(model: Any) -> int:
    """The parameters that its scaling rules count: the blocks' and the head's."""
    counts = model.num_scaling_params()
    return int(counts["transformer_matrices"] + counts["lm_head"])


def built(depth: int, vocab_size: int, context: int) -> Any:
    """The d-series model of that depth, with every layer's attention full, on no device."""
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    heads = math.ceil(depth * ASPECT / HEAD_DIM)
    with torch.device("meta"):
        return GPT(GPTConfig(
            sequence_len=context, vocab_size=vocab_size, n_layer=depth, n_head=heads, n_kv_head=heads,
            n_embd=heads * HEAD_DIM, window_pattern="L",
        ))  # fmt: skip


def rate(step: int, steps: int) -> float:
    """Share of the peak rates: linear warm-up, constant, linear warm-down."""
    down = max(1, round(WARMDOWN * steps))
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    left = min(1.0, (steps - step) / down)
    return left + (1 - left) * FINAL_RATE


def momentum(step: int, steps: int) -> float:
    """Muon's: rises at first, falls in the warm-down."""
    down = max(1, round(WARMDOWN * steps))
    if step < MOMENTUM_STEPS:
        share = step / MOMENTUM_STEPS
        return (1 - share) * FIRST_MOMENTUM + share * MOMENTUM
    over = max(0.0, (step - (steps - down)) / down)
    return MOMENTUM * (1 - over) + LAST_MOMENTUM * over


def train(asked: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """Seconds a step, and with `score` the held-out score."""
    born, context, batch, steps = time.perf_counter(), asked["context"], asked["batch"], asked["steps"]
    torch.manual_seed(asked["seed"])
    model = built(asked["depth"], corpus.vocab_size, context)
    model.to_empty(device="cpu")
    model.init_weights()
    reference = scaling_params(built(REFERENCE_DEPTH, corpus.vocab_size, context)) / scaling_params(model)
    scale = math.sqrt(batch / REFERENCE_BATCH)
    decay = WEIGHT_DECAY * scale * reference
    optimizer = model.setup_optimizer(weight_decay=decay, **{k: v * scale for k, v in RATES.items()})
    compiled = torch.compile(model, dynamic=False) if asked["compile"] else model
    like = shape(64, corpus.vocab_size, context=context)
    batches = Batches(corpus, recipe(like, 0, batch_tokens=batch, seed=asked["seed"]))
    rows = min(asked["rows"], batch // context)
    seconds = []
    for step in range(steps):
        start = time.perf_counter()
        parts = torch.split(batches(step), rows)
        for part in parts:
            (compiled(part[:, :-1].contiguous(), part[:, 1:].contiguous()) / len(parts)).backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate(step, steps)
            if group["kind"] == "muon":
                group["momentum"] = momentum(step, steps)
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        model.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[SETTLE_STEPS:])
    answer: dict[str, Any] = {
        "step_seconds": timed[len(timed) // 2], "params": model.num_matmul_params(),
        "params_scaling": scaling_params(model), "wall_seconds": time.perf_counter() - born,
    }  # fmt: skip
    return answer | (score(_nats(model), corpus, context) if asked["score"] else {})


def _nats(model: Any) -> Any:
    def nats(x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = model(x, y, loss_reduction="sum")
        return found

    return nats


def main() -> None:
    asked = json.load(sys.stdin)
    sys.path.insert(0, asked["nanochat"])
    torch.set_num_threads(asked["threads"])
    with redirect_stdout(sys.stderr):  # it prints its settings
        answer = train(asked, load_corpus(Path(asked["corpus"])))
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
