"""The one training loop of the project: trunks, branches, checkpoints, scores.

A run of D tokens is a constant-rate trunk and a linear cooldown. Runs that differ in D alone share the
trunk: `train_trunk` trains it once and branches off a cooldown at each token count (Haegele et al.,
arXiv 2405.18392), and each branch has the very weights that a run of its own would have.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from isoflop import checkpoint, flops
from isoflop.corpus import check_train_tokens, train_stamp
from isoflop.devices import agreed, rank, run_ranks
from isoflop.errors import TrainError
from isoflop.evaluate import heldout
from isoflop.interrupt import Interrupted, heeded
from isoflop.model import LanguageModel
from isoflop.progress import Address, Progress, Relay, Silent, gather
from isoflop.quantities import bits
from isoflop.records import Corpus, CurvePoint, Run, RunConfig, digest
from isoflop.trainer import Meter, Trainer

CHECKPOINT_SECONDS = 20.0
CURVE_POINTS = 60
MAX_CHECKPOINT_SHARE = 0.02  # of the time may go into checkpoints

Keep = Callable[[LanguageModel, Run], None]
Stopping = Callable[[], bool]


class Train(Protocol):
    """As `train` does, here or on a cluster."""

    def __call__(
        self, config: RunConfig, corpus: Corpus, folder: Path, *, role: str, progress: Progress | None,
        keep: Keep,
    ) -> Run: ...  # fmt: skip


class Diverged(Exception):
    """The loss is not finite."""


class Branches:
    """Trains a trunk and its cooldown branches in order, saving itself as it goes.

    Of several ranks all train, the first also scores and saves: the others hold the same bits.
    """

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
        checkpoint_seconds: float,
        stopping: Stopping,
    ) -> None:
        self.config, self.corpus, self.folder = config, corpus, folder
        self.totals = [math.ceil(t / config.batch_tokens) for t in sorted(set(token_counts))]  # in steps
        self.role, self.progress, self.stage = role, progress, stage
        self.checkpoint_seconds, self.stopping = checkpoint_seconds, stopping
        self.trunk = trunk_id(config, corpus)
        self.stamp: Sequence[int] = train_stamp(corpus)
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
        if rank() > 0:
            return
        check_train_tokens(self.corpus, self.stamp)
        start = time.monotonic()
        state = {
            "stamp": self.stamp,
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

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one; all ranks from the same."""
        state = checkpoint.load(self.folder, self.progress)
        step = -1 if state is None else state["done_steps"]
        if agreed(step) != step:
            raise TrainError(
                f"the processes of run {self.trunk} read different checkpoints", hint="run it again"
            )
        if state is None:
            return
        check_train_tokens(self.corpus, state.get("stamp", ()))
        compiled = self.trainer.meter.compile
        self.trainer.load(state["trainer"])
        self.trainer.meter = Meter(**state["meter"])
        self.trainer.meter.compile += compiled
        self.branch, self.fork = state["branch"], state["fork"]
        self.runs = [Run.from_json(r) for r in state["runs"]]
        self.spent_steps, self.done_steps = state["spent_steps"], state["done_steps"]

    def _pause(self) -> float:
        """Seconds until the next checkpoint."""
        if self.checkpoint_seconds == 0:
            return 0.0
        return max(self.checkpoint_seconds, self.save_seconds / MAX_CHECKPOINT_SHARE)

    # -- the loop -------------------------------------------------------------------------------------

    def run(self, keep: Keep) -> list[Run]:
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
            stopping = self.stopping()
            if stopping or time.monotonic() - self.last_save > self._pause():
                self.save()
            if stopping:
                raise Interrupted

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

    def _finish_branch(self, keep: Keep) -> None:
        if rank() == 0:
            run = self._score()
            keep(self.trainer.model, run)
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
        torch.set_num_threads(config.ranks * config.threads)  # the other ranks wait
        scores = heldout(trainer.model, self.corpus, eval_tokens=config.eval_tokens)
        torch.set_num_threads(config.threads)
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
        peak = config.ranks * flops.matmul_peak(config.threads)
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
            peak_memory_bytes=config.ranks * max(trainer.meter.memory, psutil.Process().memory_info().rss),
            rate_scale=trainer.rate_scale,
            curve=tuple(CurvePoint.model_validate(p) for p in trainer.meter.curve if p["tokens"] <= tokens),
        )


def run_id(config: RunConfig, corpus: Corpus) -> str:
    """Names the weights: everything that determines them."""
    return digest([corpus.id, config.model_dump(mode="json")])


def trunk_id(config: RunConfig, corpus: Corpus) -> str:
    """Shared by runs that differ in their number of tokens alone."""
    return run_id(config.model_copy(update={"tokens": 0}), corpus)


def whole_batches(config: RunConfig) -> RunConfig:
    """`config` with its tokens rounded up to a number of batches, as they are trained."""
    steps = math.ceil(config.tokens / config.batch_tokens)
    return config.model_copy(update={"tokens": steps * config.batch_tokens})


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
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep: Keep = lambda model, run: None,
    stopping: Stopping | None = None,
) -> list[Run]:
    """Train one trunk and a cooldown branch for each of `token_counts`, in order of tokens.

    `folder` holds the checkpoints, at least `checkpoint_seconds` apart (0: one a step): called again
    after a kill at any instant it goes on, and ends with the same bits. `keep(model, run)` may store each
    finished model; with `config.ranks` above 1 it is sent to another process and called there.

    Raises TrainError when the loss is not finite twice, or the corpus is smaller than a batch;
    CorruptError when no checkpoint can be read or the training tokens change; Interrupted, saved, when
    `stopping()` (None: at Ctrl-C).
    """
    progress = progress or Silent()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(train_part, config, token_counts, corpus, folder, role, stage, checkpoint_seconds, keep)
    with heeded(progress) as pressed:
        progress.start(stage, steps_of_trunk(token_counts, config) * config.batch_tokens, "tokens")
        if config.ranks == 1:
            runs = work(progress, stopping or pressed)
        else:
            with gather(progress, stage, stopping or pressed) as address:
                runs = run_ranks(config.ranks, partial(_as_rank, work, address))
    progress.finish(stage, outcome(runs))
    return runs


def outcome(runs: Sequence[Run]) -> str:
    """What a trunk's longest branch came to."""
    return f"loss {runs[-1].loss:.4f}, {bits(runs[-1].bpb)}"


def train_part(
    config: RunConfig, token_counts: Sequence[int], corpus: Corpus, folder: Path, role: str, stage: str,
    checkpoint_seconds: float, keep: Keep, progress: Progress, stopping: Stopping,
) -> list[Run]:  # fmt: skip
    """What each process of a `train_trunk` does, alone or joined with the other ranks."""
    branches = Branches(
        config, token_counts, corpus, folder, role=role, progress=progress, stage=stage,
        checkpoint_seconds=checkpoint_seconds, stopping=stopping,
    )  # fmt: skip
    return branches.run(keep)


def _as_rank(work: Callable[[Progress, Stopping], list[Run]], address: Address) -> list[Run]:
    """In a joined process: the first rank speaks and hears for all. When it ends, so do the others."""
    if rank() > 0:
        return work(Silent(), lambda: False)
    relay = Relay(address, "training", 1.0)
    return work(relay, relay.stopping)


def train(
    config: RunConfig,
    corpus: Corpus,
    folder: Path,
    *,
    role: str = "train",
    progress: Progress | None = None,
    keep: Keep = lambda model, run: None,
) -> Run:
    """Train one model on `config.tokens` tokens. See `train_trunk`."""
    return train_trunk(config, [config.tokens], corpus, folder, role=role, progress=progress, keep=keep)[0]
