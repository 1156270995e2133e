"""The one training step and loop of the project.

A run of D tokens is a constant-rate trunk and a linear cooldown. Runs that differ in D alone share the
trunk: `train_trunk` trains it once and branches off a cooldown at each token count (Haegele et al.,
arXiv 2405.18392), and each branch has the very weights that a run of its own would have.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from isoflop import checkpoint, flops
from isoflop.corpus import train_tokens
from isoflop.errors import TrainError
from isoflop.evaluate import heldout
from isoflop.gpt import GPT
from isoflop.initial import initialise
from isoflop.optim import make_optimizers, rate
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, CurvePoint, Run, RunConfig, digest

CHECKPOINT_SECONDS = 20.0
CURVE_POINTS = 60
MAX_CHECKPOINT_SHARE = 0.02  # of the time may go into checkpoints


def device_for(name: str = "auto") -> torch.device:
    """CUDA, else MPS, else CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Batches:
    """Training windows in a fixed pseudo-random order: batch i is a function of (seed, i) alone.

    Epoch by epoch, all windows are visited once, in steps of a random stride coprime with their number:
    no permutation is held in memory, and a position is a single integer.
    """

    def __init__(self, corpus: Corpus, config: RunConfig) -> None:
        self.tokens = train_tokens(corpus)
        self.context = config.model.context
        self.rows = config.batch_tokens // self.context
        self.windows = (len(self.tokens) - 1) // self.context
        self.seed = config.seed
        if self.windows < self.rows:
            raise TrainError(
                f"corpus {corpus.id} has {len(self.tokens)} training tokens, "
                f"one batch takes {config.batch_tokens}",
                hint="add text",
            )

    def _window(self, position: int) -> int:
        epoch, index = divmod(position, self.windows)
        generator = np.random.default_rng((self.seed, epoch))
        offset = int(generator.integers(self.windows))
        stride = int(generator.integers(self.windows // 3, self.windows)) or 1
        while math.gcd(stride, self.windows) != 1:
            stride += 1
        return (offset + index * stride) % self.windows

    def __call__(self, step: int) -> Tensor:
        """Token ids (rows, context + 1) of batch `step`."""
        starts = [self._window(step * self.rows + row) * self.context for row in range(self.rows)]
        return torch.from_numpy(
            np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        )


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
        torch.set_num_threads(config.threads)
        self.config = config
        self.device = device_for()
        self.model = GPT(config.model)
        initialise(self.model, config.seed)
        self.model.to(self.device)
        self.optimizers = make_optimizers(self.model, config)
        self.batches = Batches(corpus, config)
        self.step = 0
        self.rate_scale = 1.0
        self.meter = Meter()
        if config.compile:
            self._compile(progress)

    def _compile(self, progress: Progress) -> None:
        """Compile one layer; the others reuse its code. The first pass is timed apart."""
        if self.device.type == "cpu" and not any(shutil.which(c) for c in ("c++", "g++", "clang++")):
            progress.log("no C++ compiler found: training runs uncompiled")
            return
        start = time.perf_counter()
        for layer in self.model.model.layers:
            layer.compile()
        ids = self.batches(0).to(self.device)
        self.model.loss(ids[:, :-1], ids[:, 1:]).backward()  # type: ignore[no-untyped-call]
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.meter.compile += time.perf_counter() - start

    def train_step(self, total_tokens: int) -> float:
        """One optimizer step of a run of `total_tokens`; returns the batch's loss in nats a token."""
        config = self.config
        ids = self.batches(self.step).to(self.device)
        loss = self.model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        done = self.step * config.batch_tokens
        share = self.rate_scale * rate(done, config.model_copy(update={"tokens": total_tokens}))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

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


class Diverged(Exception):
    """The loss is not finite."""


class Branches:
    """Trains a trunk and its cooldown branches in order, saving itself as it goes."""

    def __init__(
        self,
        config: RunConfig,
        token_counts: Sequence[int],
        corpus: Corpus,
        folder: Path,
        *,
        role: str,
        progress: Progress,
        stage: str,
    ) -> None:
        self.config, self.corpus, self.folder = config, corpus, folder
        self.totals = [math.ceil(t / config.batch_tokens) for t in sorted(set(token_counts))]  # in steps
        self.role, self.progress, self.stage = role, progress, stage
        self.trunk = trunk_id(config, corpus)
        self.trainer = Trainer(config, corpus, progress)
        self.branch = 0  # index of the branch being trained
        self.fork: dict[str, Any] | None = None  # the trunk where the running branch left it
        self.runs: list[Run] = []
        self.spent_steps = 0
        self.last_save = time.monotonic()
        self.save_seconds = 0.0
        self.done_steps = 0

    # -- saving ---------------------------------------------------------------------------------------

    def save(self) -> None:
        start = time.monotonic()
        state = {
            "trainer": self.trainer.state(),
            "branch": self.branch,
            "fork": self.fork,
            "runs": [r.to_json() for r in self.runs],
            "meter": vars(self.trainer.meter),
            "spent_steps": self.spent_steps,
            "done_steps": self.done_steps,
        }
        checkpoint.save(self.folder, state, self.done_steps)
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start

    def resume(self) -> bool:
        state = checkpoint.load(self.folder, self.progress)
        if state is None:
            return False
        compiled = self.trainer.meter.compile
        self.trainer.load(state["trainer"])
        self.trainer.meter = Meter(**state["meter"])
        self.trainer.meter.compile += compiled
        self.branch, self.fork = state["branch"], state["fork"]
        self.runs = [Run.from_json(r) for r in state["runs"]]
        self.spent_steps, self.done_steps = state["spent_steps"], state["done_steps"]
        return True

    # -- the loop -------------------------------------------------------------------------------------

    def run(self, keep: Callable[[GPT, Run], str | None]) -> list[Run]:
        self.resume()
        while self.branch < len(self.totals):
            try:
                self._advance()
            except Diverged:
                self._go_back()
                continue
            self._finish_branch(keep)
        return self.runs

    def _advance(self) -> None:
        """To the end of the current branch, forking from the trunk where its cooldown starts."""
        total = self.totals[self.branch]
        fork_step = math.floor(total * (1 - self.config.cooldown))
        last = self.branch == len(self.totals) - 1
        every = max(1, self.totals[-1] // CURVE_POINTS)
        while self.trainer.step < total:
            if self.trainer.step >= fork_step and self.fork is None and not last:
                self.fork = {**copy.deepcopy(self.trainer.state()), "curve": len(self.trainer.meter.curve)}
            start = time.perf_counter()
            loss = self.trainer.train_step(total * self.config.batch_tokens)
            self._account(loss, time.perf_counter() - start, every)
            pause = max(CHECKPOINT_SECONDS, self.save_seconds / MAX_CHECKPOINT_SHARE)
            if time.monotonic() - self.last_save > pause:
                self.save()

    def _account(self, loss: float, seconds: float, every: int) -> None:
        meter = self.trainer.meter
        meter.train += seconds
        self.spent_steps += 1
        self.done_steps += 1
        if not math.isfinite(loss):
            raise Diverged
        meter.loss_sum += loss
        meter.loss_count += 1
        if self.done_steps % every == 0:
            meter.memory = max(meter.memory, psutil.Process().memory_info().rss)
            meter.curve.append(
                {
                    "tokens": self.trainer.step * self.config.batch_tokens,
                    "seconds": meter.train,
                    "loss": meter.loss_sum / meter.loss_count,
                }
            )
            meter.loss_sum, meter.loss_count = 0.0, 0
        self.progress.update(self.stage, self.done_steps * self.config.batch_tokens, f"loss {loss:.3f}")

    def _go_back(self) -> None:
        """After a non-finite loss: the last good checkpoint once, at half the rate; then give up."""
        if self.trainer.rate_scale < 1.0:
            raise TrainError(
                f"the loss of run {self.trunk} is not finite at step {self.trainer.step}, twice",
                hint="lower the learning rates (--lr-scale 0.5)",
            ) from None
        self.progress.log(f"loss not finite at step {self.trainer.step}: going back, at half the rate")
        self.trainer = Trainer(self.config, self.corpus, self.progress)
        self.fork = None
        self.resume()
        self.trainer.rate_scale = 0.5

    def _finish_branch(self, keep: Callable[[GPT, Run], str | None]) -> None:
        run = self._score()
        run = run.model_copy(update={"model": keep(self.trainer.model, run)})
        self.runs.append(run)
        self.branch += 1
        self.spent_steps = 0
        if self.fork is not None:
            self.trainer.load(self.fork)
            del self.trainer.meter.curve[self.fork["curve"] :]  # the cooldown is not the trunk's
            self.fork = None
        self.save()

    def _score(self) -> Run:
        trainer, config, m = self.trainer, self.config, self.trainer.config.model
        start = time.perf_counter()
        scores = heldout(trainer.model, self.corpus, eval_tokens=config.eval_tokens)
        trainer.meter.eval += time.perf_counter() - start
        if not math.isfinite(scores.loss):
            raise TrainError(
                f"the held-out loss of run {self.trunk} is not finite", hint="lower the learning rates"
            )
        tokens = trainer.step * config.batch_tokens
        before = (sum(r.seconds_train for r in self.runs), sum(r.seconds_eval for r in self.runs))
        seconds = trainer.meter.train - before[0]
        speed = self.spent_steps * config.batch_tokens / max(seconds, 1e-9)
        per_token = flops.flops_per_token(m)
        peak = flops.matmul_peak(config.threads)
        final = config.model_copy(update={"tokens": tokens})
        return Run(
            id=run_id(final, self.corpus),
            corpus_id=self.corpus.id,
            config=final,
            role=self.role,
            trunk=self.trunk,
            loss=scores.loss,
            loss_se=scores.loss_se,
            bpb=scores.bpb,
            bpb_se=scores.bpb_se,
            params_total=flops.params_total(m),
            params_nonembedding=flops.params_nonembedding(m),
            params_matmul=flops.params_matmul(m),
            tokens=tokens,
            unique_tokens=min(tokens, self.corpus.train_tokens),
            flops=float(per_token * tokens),
            flops_spent=float(per_token * self.spent_steps * config.batch_tokens),
            seconds_train=seconds,
            seconds_eval=trainer.meter.eval - before[1],
            seconds_compile=trainer.meter.compile if not self.runs else 0.0,
            tokens_per_second=speed,
            peak_flops_per_second=peak,
            peak_share=speed * per_token / peak,
            peak_memory_bytes=max(trainer.meter.memory, psutil.Process().memory_info().rss),
            rate_scale=trainer.rate_scale,
            curve=tuple(CurvePoint.model_validate(p) for p in trainer.meter.curve if p["tokens"] <= tokens),
        )


def run_id(config: RunConfig, corpus: Corpus) -> str:
    """Names the weights: everything that determines them."""
    return digest([corpus.id, config.model_dump(mode="json")])


def trunk_id(config: RunConfig, corpus: Corpus) -> str:
    """Shared by runs that differ in their number of tokens alone."""
    return run_id(config.model_copy(update={"tokens": 0}), corpus)


def steps_of_trunk(token_counts: Sequence[int], config: RunConfig) -> int:
    """Optimizer steps that a trunk with these branches takes in all."""
    totals = [math.ceil(t / config.batch_tokens) for t in sorted(set(token_counts))]
    cooled = sum(t - math.floor(t * (1 - config.cooldown)) for t in totals[:-1])
    return totals[-1] + cooled


def train_trunk(
    config: RunConfig,
    token_counts: Sequence[int],
    corpus: Corpus,
    folder: Path,
    *,
    role: str = "ladder",
    progress: Progress | None = None,
    stage: str = "train",
    keep: Callable[[GPT, Run], str | None] = lambda model, run: None,
) -> list[Run]:
    """Train one trunk and a cooldown branch for each of `token_counts`, in order of tokens.

    `folder` holds the checkpoints: called again after a kill at any instant it goes on, and ends with
    the same bits. `keep(model, run)` may store a finished model; what it returns is the run's `model`.

    Raises TrainError when the loss is not finite twice, or the corpus is smaller than a batch;
    CorruptError when no checkpoint can be read.
    """
    progress = progress or Silent()
    folder.mkdir(parents=True, exist_ok=True)
    branches = Branches(config, token_counts, corpus, folder, role=role, progress=progress, stage=stage)
    progress.start(stage, steps_of_trunk(token_counts, config) * config.batch_tokens, "tokens")
    runs = branches.run(keep)
    progress.finish(stage, f"loss {runs[-1].loss:.4f}, {runs[-1].bpb:.4f} bits per byte")
    return runs


def train(
    config: RunConfig,
    corpus: Corpus,
    folder: Path,
    *,
    role: str = "train",
    progress: Progress | None = None,
    keep: Callable[[GPT, Run], str | None] = lambda model, run: None,
) -> Run:
    """Train one model on `config.tokens` tokens. See `train_trunk`."""
    return train_trunk(config, [config.tokens], corpus, folder, role=role, progress=progress, keep=keep)[0]
