"""One optimizer step, and everything that determines the next one: model, optimizers, position, meters."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isoflop.corpus import train_tokens
from isoflop.devices import average_gradients, device_for, has_compiler, rank, world
from isoflop.errors import TrainError
from isoflop.families import family_of
from isoflop.objectives import OBJECTIVES
from isoflop.optim import make_optimizers, rate
from isoflop.parallel import shard
from isoflop.progress import Progress
from isoflop.records import Corpus, RunConfig


class Batches:
    """Training windows in a fixed pseudo-random order: batch i is a function of (seed, i) alone.

    Epoch by epoch, all windows are visited once, in steps of a random stride coprime with their number:
    no permutation is held in memory, and a position is a single integer. A batch is the same for any number
    of ranks, each of which takes its own rows, `mine`.
    """

    def __init__(self, corpus: Corpus, config: RunConfig) -> None:
        self.tokens = train_tokens(corpus)
        self.context = config.model.context
        self.rows = config.batch_tokens // self.context
        self.windows = (len(self.tokens) - 1) // self.context
        self.seed = config.seed
        if self.rows % config.ranks:
            raise TrainError(
                f"a batch of {self.rows} rows cannot be shared evenly by {config.ranks} ranks",
                hint=f"give batch_tokens as a multiple of {config.ranks * self.context}, or fewer processes",
            )
        share = self.rows // config.ranks
        self.mine = slice(rank() * share, (rank() + 1) * share)
        if self.windows < self.rows:
            raise TrainError(
                f"corpus {corpus.id} has {len(self.tokens)} training tokens, "
                f"one batch takes {config.batch_tokens}",
                hint="add text",
            )

    def _window(self, position: int) -> int:
        epoch, index = divmod(position, self.windows)
        offset, stride = _order(self.seed, epoch, self.windows)
        return (offset + index * stride) % self.windows

    def __call__(self, step: int) -> Tensor:
        """Token ids (rows, context + 1) of batch `step`."""
        starts = [self._window(step * self.rows + row) * self.context for row in range(self.rows)]
        return torch.from_numpy(
            np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        )


@lru_cache
def _order(seed: int, epoch: int, windows: int) -> tuple[int, int]:
    """The first of the windows in an epoch, and the stride to the next."""
    generator = np.random.default_rng((seed, epoch))
    offset = int(generator.integers(windows))
    stride = int(generator.integers(windows // 3, windows)) or 1
    while math.gcd(stride, windows) != 1:
        stride += 1
    return offset, stride


@dataclass
class Meter:
    """Seconds and the training curve, as far as the run has come."""

    train: float = 0.0
    eval: float = 0.0
    compile: float = 0.0
    memory: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_count: int = 0


class Trainer:
    """Model, optimizers and position of one trunk."""

    def __init__(self, config: RunConfig, corpus: Corpus, progress: Progress) -> None:
        if config.ranks != world():
            raise ValueError(f"a run of {config.ranks} ranks was started in {world()}: use train_trunk")
        torch.set_num_threads(config.threads)
        self.config = config
        self.device = device_for()
        model = family_of(config.model).build(config.model, config.seed)
        self.model = shard(model, self.device) if config.shard else model.to(self.device)
        self.optimizers = make_optimizers(self.model, config)
        self.corpus = corpus
        self.batches = Batches(corpus, config)
        self.objective = OBJECTIVES[config.model.objective]
        self.step = 0
        self.rate_scale = 1.0
        self.meter = Meter()
        if config.compile:
            self._compile(progress)

    def _compile(self, progress: Progress) -> None:
        """Compile one layer; the others reuse its code. The first pass is timed apart."""
        if self.device.type == "cpu" and not has_compiler():
            progress.log("no C++ compiler found: training runs uncompiled")
            return
        start = time.perf_counter()
        for block in self.model.blocks:
            block.compile()
        self.model.loss(*self.examples(0)).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.meter.compile += time.perf_counter() - start

    def examples(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (rows of this rank, context) of batch `step`; random ones are drawn for all."""
        key = (self.config.seed, step, 0)
        inputs, targets = self.objective.examples(self.batches(step), self.corpus, key)
        mine = self.batches.mine
        return inputs[mine].to(self.device), targets[mine].to(self.device)

    def train_step(self, total_tokens: int) -> float:
        """One optimizer step of a run of `total_tokens`; returns the whole batch's loss in nats a token."""
        config = self.config
        loss = self.model.loss(*self.examples(self.step))
        loss.backward()  # type: ignore[no-untyped-call]
        loss = average_gradients(self.model, loss.detach(), sharded=self.config.shard)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        done = self.step * config.batch_tokens
        share = self.rate_scale * rate(done, config.model_copy(update={"tokens": total_tokens}))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss)

    def state(self) -> dict[str, Any]:
        """Everything that determines what comes next."""
        return {
            "step": self.step,
            "rate_scale": self.rate_scale,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.rate_scale = state["rate_scale"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"])
