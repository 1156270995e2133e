"""The one training loop of the project: trunks, branches, checkpoints, scores.

A run of D tokens is a constant-rate trunk and a linear cooldown. Runs that differ in D alone share the
trunk: `train_trunk` trains it once and branches off a cooldown at each token count (Haegele et al.,
arXiv 2405.18392), and each branch has the very weights that a run of its own would have.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil

from isoflop import checkpoint, flops, launched, parallel, sharded
from isoflop.continued import Past, forgetting
from isoflop.corpus import check_train_tokens, train_stamp
from isoflop.devices import agreed, any_rank, in_group, rank, run_ranks
from isoflop.errors import TrainError
from isoflop.evaluate import HeldOut, heldout
from isoflop.interrupt import Interrupted, heeded
from isoflop.model import LanguageModel
from isoflop.patience import Patience, check_patience
from isoflop.progress import Address, Live, Progress, Relay, Silent, gather
from isoflop.quantities import bits
from isoflop.records import Corpus, CurvePoint, Forgetting, Run, RunConfig, Stretch, digest
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
        keep: Keep, past: Past | None = None,
    ) -> Run: ...  # fmt: skip


class Diverged(Exception):
    """The loss is not finite."""


class Branches:
    """Trains a trunk and its cooldown branches in order, saving itself as it goes.

    Of several ranks all train and score; the first also saves, for the others hold the same bits. Those of a
    sharded model all save what they hold.
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
        past: Past | None = None,
    ) -> None:
        self.config, self.corpus, self.folder = config, corpus, folder
        self.totals = [math.ceil(t / config.batch_tokens) for t in sorted(set(token_counts))]  # in steps
        self.role, self.progress, self.stage = role, progress, stage
        self.checkpoint_seconds, self.stopping = checkpoint_seconds, stopping
        self.trunk = trunk_id(config, corpus)
        self.stamp: Sequence[int] = train_stamp(corpus)
        self.past = past
        self.trainer = Trainer(config, corpus, progress, past)
        self.patience = Patience(config, self.totals[-1])
        # Ranks that could not leave one by one do it, and save, at the same step.
        self.together = config.shard or launched.group() is not None
        self.stretches: list[Stretch] = []
        self.branch = 0  # index of the branch being trained
        self.fork: dict[str, Any] | None = None  # the trunk where the running branch left it
        self.runs: list[Run] = []
        self.spent_steps = 0
        self.last_save = time.monotonic()
        self.save_seconds = 0.0
        self.done_steps = 0

    # -- saving ---------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint; ranks that leave together wait for it."""
        if rank() == 0:
            check_train_tokens(self.corpus, self.stamp)
        start = time.monotonic()
        if self.config.shard:
            sharded.save(self.folder, self._state(), self.done_steps)
        elif rank() == 0:
            checkpoint.save(self.folder, self._state(), self.done_steps)
        self.last_save = time.monotonic()
        self.save_seconds = self.last_save - start
        if self.together:
            agreed(0)

    def _state(self) -> dict[str, Any]:
        return {
            "stamp": self.stamp,
            "trainer": self.trainer.state(),
            "branch": self.branch,
            "fork": self.fork,
            "runs": [r.to_json() for r in self.runs],
            "meter": vars(self.trainer.meter),
            "spent_steps": self.spent_steps,
            "done_steps": self.done_steps,
            "patience": self.patience.state(),
            "stretches": [s.to_json() for s in self.stretches],
        }

    def resume(self) -> None:
        """Go on from the last checkpoint, if there is one; all ranks from the same."""
        if self.config.shard:
            state = sharded.load(self.folder, parallel.mesh_of(self.trainer.model), self.progress)
        else:
            state = checkpoint.load(self.folder, self.progress)
        step = -1 if state is None else state["done_steps"]
        if agreed(step) != step:
            raise TrainError(
                f"the processes of run {self.trunk} read different checkpoints",
                hint="run it again; on several machines keep the project on a disk that they share",
            )
        if state is not None:
            self._restore(state)
        self._go_on(state is not None)

    def _restore(self, state: dict[str, Any]) -> None:
        check_train_tokens(self.corpus, state.get("stamp", ()))
        compiled = self.trainer.meter.compile
        self.trainer.load(state["trainer"])
        self.trainer.meter = Meter(**state["meter"])
        self.trainer.meter.compile += compiled
        self.branch, self.fork = state["branch"], state["fork"]
        self.runs = [Run.from_json(r) for r in state["runs"]]
        self.spent_steps, self.done_steps = state["spent_steps"], state["done_steps"]
        self.patience.load(state.get("patience", self.patience.state()))  # checkpoints of before have none
        self.stretches = [Stretch.from_json(s) for s in state.get("stretches", ())]

    def _go_on(self, resumed: bool) -> None:
        """Note which processes train from here on, and say when they are not those of the checkpoint."""
        config = self.config
        here = Stretch(
            tokens=self.trainer.step * config.batch_tokens, ranks=config.ranks, threads=config.threads
        )
        before = self.stretches[-1] if resumed and self.stretches else None
        if before is None:
            self.stretches = [here]
        elif (before.ranks, before.threads) != (here.ranks, here.threads):
            self.stretches.append(here)
            self.progress.log(
                f"this run was trained by {before.ranks} process(es) of {before.threads} thread(s) up to "
                f"{here.tokens:,} tokens and goes on with {here.ranks} of {here.threads}: the result is the "
                "same up to rounding"
            )

    def _pause(self) -> float:
        """Seconds until the next checkpoint."""
        if self.checkpoint_seconds == 0:
            return 0.0
        return max(self.checkpoint_seconds, self.save_seconds / MAX_CHECKPOINT_SHARE)

    # -- the loop -------------------------------------------------------------------------------------

    def run(self, keep: Keep, first: int) -> list[Run]:
        self.resume()
        while self.branch < min(first, len(self.totals)):
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
        fork_step = self.config.trunk_steps(total)
        last = self.branch == len(self.totals) - 1
        every = max(1, self.totals[-1] // CURVE_POINTS)
        while self.trainer.step < (end := min(total, self.patience.end)):
            if self.trainer.step >= fork_step and self.fork is None and not last:
                self.fork = {**copy.deepcopy(self.trainer.state()), "curve": len(self.trainer.meter.curve)}
            start = time.perf_counter()
            loss = self.trainer.train_step(end * self.config.batch_tokens)
            self._account(loss, time.perf_counter() - start, every)
            if self.patience.due(self.trainer.step):
                self._judge()
            stopping, due = self._wishes()
            if stopping or due:
                self.save()
            if stopping:
                raise Interrupted

    def _judge(self) -> None:
        """Score the trunk as it stands: does its cooldown begin here?"""
        patience, step = self.patience, self.trainer.step
        patience.hear(self._scores().loss, step)
        if patience.worse >= patience.limit:
            self.progress.log(
                f"held-out loss not below {patience.best:.4f} for {patience.limit} scores: "
                f"cooling down from step {step} to {patience.end}"
            )

    def _wishes(self) -> tuple[bool, ...]:
        """Whether to stop, and whether a checkpoint is due."""
        stopping = self.stopping()
        due = rank() == 0 and time.monotonic() - self.last_save > self._pause()
        return any_rank(stopping, due) if self.together else (stopping, due)

    def _account(self, loss: float, seconds: float, every: int) -> None:
        meter = self.trainer.meter
        meter.train += seconds
        self.spent_steps += 1
        self.done_steps += 1
        if self.trainer.precision.failed(loss):
            raise Diverged
        if math.isfinite(loss):
            meter.loss_sum += loss
            meter.loss_count += 1
        if self.done_steps % every == 0 and meter.loss_count:
            meter.memory = max(meter.memory, psutil.Process().memory_info().rss)
            point = CurvePoint(
                tokens=self.trainer.step * self.config.batch_tokens, seconds=meter.train,
                loss=meter.loss_sum / meter.loss_count,
            )  # fmt: skip
            meter.curve.append(point.model_dump())
            meter.loss_sum, meter.loss_count = 0.0, 0
            total = self.totals[self.branch] * self.config.batch_tokens
            config = self.config.model_copy(update={"tokens": total})
            self.progress.live(Live(run_id(config, self.corpus), self.role, config, point))
        self.progress.update(self.stage, self.done_steps * self.config.batch_tokens, f"loss {loss:.3f}")

    def _go_back(self) -> None:
        """After a non-finite loss: the last good checkpoint once, at half the rate; then give up."""
        if self.trainer.rate_scale < 1.0:
            raise TrainError(
                f"the loss of run {self.trunk} is not finite at step {self.trainer.step}, twice",
                hint="lower the learning rates (--lr-scale 0.5)",
            ) from None
        self.progress.log(f"loss not finite at step {self.trainer.step}: going back, at half the rate")
        self.trainer = Trainer(self.config, self.corpus, self.progress, self.past)
        self.fork = None
        self.patience = Patience(self.config, self.totals[-1])
        self.resume()
        self.trainer.rate_scale = 0.5

    def _finish_branch(self, keep: Keep) -> None:
        scores = self._scores()
        model = self.trainer.model
        if self.config.shard:
            model = parallel.whole(model, self.config)
        if rank() == 0:
            run = self._run(scores)
            keep(model, run)
            self.runs.append(run)
        self.branch += 1
        self.spent_steps = 0
        if self.fork is not None:
            self.trainer.load(self.fork)
            del self.trainer.meter.curve[self.fork["curve"] :]  # the cooldown is not the trunk's
            self.fork = None
            here = self.trainer.step * self.config.batch_tokens
            self.stretches = [s.model_copy(update={"tokens": min(s.tokens, here)}) for s in self.stretches]
        self.save()

    def _scores(self) -> HeldOut:
        """Of the model as it stands; all ranks come here, and get the same."""
        trainer = self.trainer
        start = time.perf_counter()
        scores = heldout(trainer.model, self.corpus, eval_tokens=self.config.eval_tokens, shared=True)
        trainer.meter.eval += time.perf_counter() - start
        if not math.isfinite(scores.loss):
            raise TrainError(
                f"the held-out loss of run {self.trunk} is not finite", hint="lower the learning rates"
            )
        return scores

    def _forgotten(self) -> Forgetting | None:
        """Of a continued run, on the first rank."""
        if self.past is None or not self.config.old:
            return None
        start = time.perf_counter()
        found = forgetting(self.trainer.model, self.config, self.past)
        self.trainer.meter.eval += time.perf_counter() - start
        return found

    def _run(self, scores: HeldOut) -> Run:
        trainer, config, m = self.trainer, self.config, self.trainer.config.model
        tokens = trainer.step * config.batch_tokens
        before = (sum(r.seconds_train for r in self.runs), sum(r.seconds_eval for r in self.runs))
        seconds = trainer.meter.train - before[0]
        speed = self.spent_steps * config.batch_tokens / max(seconds, 1e-9)
        total = trainer.step
        cooled = min(self.spent_steps, total - config.trunk_steps(total)) * config.batch_tokens
        spent = flops.training_flops(config, self.spent_steps * config.batch_tokens - cooled, cooled)
        if config.ewc and not self.runs:
            spent += flops.flops_per_token(m) * config.ewc_tokens  # of the Fisher information
        peak = config.ranks * flops.matmul_peak(config.threads)
        # What was asked for names the run: with patience it may have ended earlier.
        final = config.model_copy(update={"tokens": self.totals[self.branch] * config.batch_tokens})
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
            unique_tokens=trainer.batches.unique_tokens(tokens),
            flops=flops.run_flops(config.model_copy(update={"tokens": tokens})),
            flops_spent=spent,
            seconds_train=seconds,
            seconds_eval=trainer.meter.eval - before[1],
            seconds_compile=trainer.meter.compile if not self.runs else 0.0,
            tokens_per_second=speed,
            peak_flops_per_second=peak,
            peak_share=spent / max(seconds, 1e-9) / peak,
            peak_memory_bytes=config.ranks * max(trainer.meter.memory, psutil.Process().memory_info().rss),
            rate_scale=trainer.rate_scale,
            curve=tuple(CurvePoint.model_validate(p) for p in trainer.meter.curve if p["tokens"] <= tokens),
            forgetting=self._forgotten(),
            stretches=tuple(self.stretches) if len(self.stretches) > 1 else (),
        )


def run_id(config: RunConfig, corpus: Corpus) -> str:
    """Names the weights: everything that determines them."""
    return digest([corpus.id, config.model_dump(mode="json")])


def trunk_id(config: RunConfig, corpus: Corpus) -> str:
    """Shared by runs that differ in their number of tokens alone."""
    return run_id(config.model_copy(update={"tokens": 0}), corpus)


def job_id(config: RunConfig, corpus: Corpus) -> str:
    """Shared by runs that differ in the processes that train them alone: up to rounding they are one.

    It names the folder of their checkpoints, so that the same command goes on with another number of
    processes where the run was interrupted. The `Run` then has the id and config of the processes that
    finished it, and says in `stretches` which ones trained what.
    """
    return run_id(config.model_copy(update={"ranks": 1, "threads": 1}), corpus)


def whole_batches(config: RunConfig) -> RunConfig:
    """`config` with its tokens rounded up to a number of batches, as they are trained."""
    steps = math.ceil(config.tokens / config.batch_tokens)
    return config.model_copy(update={"tokens": steps * config.batch_tokens})


def tokens_of_trunk(token_counts: Sequence[int], config: RunConfig) -> tuple[int, int]:
    """Tokens of a trunk with these branches: those at the constant rate, and those of all cooldowns."""
    totals = [math.ceil(t / config.batch_tokens) for t in sorted(set(token_counts))]
    cooled = sum(t - config.trunk_steps(t) for t in totals)
    return config.trunk_steps(totals[-1]) * config.batch_tokens, cooled * config.batch_tokens


def train_trunk(
    config: RunConfig,
    token_counts: Sequence[int],
    corpus: Corpus,
    folder: Path,
    *,
    first: int = sys.maxsize,
    role: str = "ladder",
    progress: Progress | None = None,
    stage: str = "train",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep: Keep = lambda model, run: None,
    stopping: Stopping | None = None,
    past: Past | None = None,
) -> list[Run]:
    """Train one trunk and a cooldown branch for each of `token_counts`, in order of tokens.

    Only the `first` so many branches are trained now; asked for more, it goes on from there.
    `folder` holds the checkpoints, at least `checkpoint_seconds` apart (0: one a step): called again
    after a kill at any instant it goes on, and ends with the same bits. `keep(model, run)` may store each
    finished model; of a run in a group it is sent to another process and called there. `past` says where a
    run that goes on from a model folder finds it. A run with another number of ranks or threads may go on
    from the checkpoints (`job_id`).

    Raises TrainError when the loss is not finite twice, the corpus is smaller than a batch, or an option
    cannot be; CorruptError when no checkpoint can be read or the training tokens change; Interrupted,
    saved, when `stopping()` (None: at Ctrl-C).
    """
    check_patience(config, token_counts)
    progress = progress or Silent()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(
        train_part, config, token_counts, first, corpus, folder, role, stage, checkpoint_seconds, keep, past
    )
    with heeded(progress) as pressed:
        progress.start(stage, sum(tokens_of_trunk(token_counts, config)), "tokens")
        if not in_group(config):
            runs = work(progress, stopping or pressed)
        else:
            with gather(progress, stage, stopping or pressed) as address:
                runs = run_ranks(config.ranks, partial(_as_rank, work, address), fresh=config.shard)
    progress.finish(stage, outcome(runs))
    return runs


def outcome(runs: Sequence[Run]) -> str:
    """What a trunk's longest branch came to."""
    return f"loss {runs[-1].loss:.4f}, {bits(runs[-1].bpb)}"


def train_part(
    config: RunConfig, token_counts: Sequence[int], first: int, corpus: Corpus, folder: Path, role: str,
    stage: str, checkpoint_seconds: float, keep: Keep, past: Past | None, progress: Progress,
    stopping: Stopping,
) -> list[Run]:  # fmt: skip
    """What each process of a `train_trunk` does, alone or joined with the other ranks."""
    past = None if past is None else replace(past, fisher=folder / "fisher")
    branches = Branches(
        config, token_counts, corpus, folder, role=role, progress=progress, stage=stage,
        checkpoint_seconds=checkpoint_seconds, stopping=stopping, past=past,
    )  # fmt: skip
    return branches.run(keep, first)


def _as_rank(work: Callable[[Progress, Stopping], list[Run]], address: Address) -> list[Run]:
    """In a joined process: the first rank speaks for all. When it ends, so do the others."""
    if rank() > 0:
        return work(Silent(), launched.asked)
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
    past: Past | None = None,
) -> Run:
    """Train one model on `config.tokens` tokens. See `train_trunk`."""
    return train_trunk(
        config, [config.tokens], corpus, folder, role=role, progress=progress, keep=keep, past=past
    )[0]
