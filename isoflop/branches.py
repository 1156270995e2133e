"""A trunk and its cooldown branches, trained in order: the loop itself, its checkpoints and scores."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from isoflop import checkpoint, flops, launched, parallel, sharded
from isoflop.continued import Past, forgetting
from isoflop.corpus import check_train_tokens, train_stamp
from isoflop.devices import agreed, any_rank, rank
from isoflop.errors import TrainError
from isoflop.evaluate import HeldOut, heldout
from isoflop.identity import run_id, trunk_id
from isoflop.interrupt import Interrupted
from isoflop.model import LanguageModel
from isoflop.patience import Patience
from isoflop.progress import Live, Progress
from isoflop.records import Corpus, CurvePoint, Forgetting, Run, RunConfig, Stretch
from isoflop.teaching.features import bare
from isoflop.trainer import Meter, Trainer

CURVE_POINTS = 60
MAX_CHECKPOINT_SHARE = 0.02  # of the time may go into checkpoints

Keep = Callable[[LanguageModel, Run], None]
Stopping = Callable[[], bool]


class Diverged(Exception):
    """The loss, or a gradient, is not finite."""


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
        """After a non-finite loss or gradient: the last checkpoint once, at half the rate; then give up."""
        if self.trainer.rate_scale < 1.0:
            raise TrainError(
                f"the loss of run {self.trunk}, or its gradient, is not finite at step {self.trainer.step}, "
                "twice",
                hint="lower the learning rates (--lr-scale 0.5)",
            ) from None
        self.progress.log(
            f"loss or gradient not finite at step {self.trainer.step}: going back, at half the rate"
        )
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
            with self.trainer.rounded(), bare(model) as kept:
                run = self._run(scores)
                keep(kept, run)
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
        with trainer.rounded():
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
        trunk = self.spent_steps * config.batch_tokens - cooled
        teachers = trainer.teaching.shapes if trainer.teaching is not None else ()
        spent = flops.training_flops(config, trunk, cooled)
        # The first rank's windows are no more often on disk than the others'.
        asked_here = trainer.meter.teachers * config.ranks - sum(r.flops_teachers_spent for r in self.runs)
        spent += asked_here
        matched = flops.matching_flops_per_token(teachers, config)
        spent += matched * (trunk + cooled)
        if config.ewc and not self.runs:
            spent += flops.flops_per_token(m) * config.ewc_tokens  # of the Fisher information
        peak = config.ranks * flops.matmul_peak(config.threads, config.precision)
        # What was asked for names the run: with patience it may have ended earlier.
        final = config.model_copy(update={"tokens": self.totals[self.branch] * config.batch_tokens})
        ended = config.model_copy(update={"tokens": tokens})
        asked = flops.run_teachers_flops(ended, teachers)
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
            next_accuracy=scores.next_accuracy,
            next_accuracy_se=scores.next_accuracy_se,
            params_total=flops.params_total(m),
            params_nonembedding=flops.params_nonembedding(m),
            params_matmul=flops.params_matmul(m),
            tokens=tokens,
            unique_tokens=trainer.batches.unique_tokens(tokens),
            flops=flops.run_flops(ended) + asked + matched * tokens,
            flops_teachers=asked,
            flops_teachers_spent=asked_here,
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
