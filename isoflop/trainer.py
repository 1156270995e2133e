"""One optimizer step, and everything that determines the next one: model, optimizers, position, meters."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isoflop.continued import (
    Consolidation,
    Mixed,
    Past,
    consolidation,
    initial_model,
    mixture,
    old_corpus,
    task_corpora,
)
from isoflop.corpus import train_tokens
from isoflop.devices import average_gradients, device_for, has_compiler, rank, world
from isoflop.errors import TrainError
from isoflop.families import family_of
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.optim import make_optimizers
from isoflop.options import check_options
from isoflop.parallel import added_up, shard
from isoflop.precision import Precision, check_precision
from isoflop.progress import Progress
from isoflop.recompute import recompute_blocks
from isoflop.records import Corpus, RunConfig
from isoflop.rounding import Rounding
from isoflop.schedule import rate
from isoflop.teaching.distilling import Teaching


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
        if self.context % config.trunk_model.context:
            raise TrainError(
                f"a context of {self.context} cannot be cut into parts of {config.trunk_context} tokens",
                hint="give a trunk_context that divides it",
            )
        share = self.rows // config.ranks
        if share % config.accumulate:
            raise TrainError(
                f"the {share} rows of a batch that a rank takes are not {config.accumulate} equal parts",
                hint=f"give an accumulate that divides {share}, or a larger batch_tokens",
            )
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
        return torch.from_numpy(np.stack([self.row(step * self.rows + row) for row in range(self.rows)]))

    def row(self, position: int) -> NDArray[np.int64]:
        """Token ids (context + 1) of a row, counted from the first batch on."""
        start = self._window(position) * self.context
        return self.tokens[start : start + self.context + 1].astype(np.int64)

    def source(self, position: int) -> int:
        """All rows are of one text (see `Mixed.source`)."""
        return 0

    def unique_tokens(self, tokens: int) -> int:
        """How many different tokens a run of `tokens` sees."""
        return min(tokens, len(self.tokens))


def noised(inputs_bt: Tensor, share: float, key: tuple[int, ...]) -> Tensor:
    """With a share of the tokens replaced, each by one drawn from all of the batch; by `key` alone."""
    generator = np.random.default_rng(key)
    chosen = torch.from_numpy(generator.random(inputs_bt.shape) < share)
    drawn = torch.from_numpy(generator.integers(inputs_bt.numel(), size=inputs_bt.shape))
    return torch.where(chosen, inputs_bt.flatten()[drawn], inputs_bt)


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
    teachers: float = 0.0  # FLOPs that they computed for this rank
    curve: list[dict[str, float]] = field(default_factory=list)
    loss_sum: float = 0.0
    loss_count: int = 0


class Trainer:
    """Model, optimizers and position of one trunk."""

    def __init__(
        self, config: RunConfig, corpus: Corpus, progress: Progress, past: Past | None = None
    ) -> None:
        if config.ranks != world():
            raise ValueError(f"a run of {config.ranks} ranks was started in {world()}: use train_trunk")
        torch.set_num_threads(config.threads)
        self.config = config
        self.device = device_for()
        check_options(config)
        check_precision(config.precision, self.device, progress)
        model = self._first_model(past)
        if config.checkpoint_activations:
            recompute_blocks(model, random=config.dropout > 0)
        self.model = shard(model, self.device) if config.shard else model.to(self.device)
        self.rounding = Rounding(self.model, config.rounding) if config.rounding else None
        self.teaching: Teaching | None = None
        if config.teachers:
            self.teaching = Teaching(config, past, self.device, self.model)
        self.optimizers = make_optimizers(self.model, config)
        self.precision = Precision(config.precision, self.device, self.optimizers)
        self.corpus = corpus
        self.objective = OBJECTIVES[config.model.objective]
        first = Batches(corpus, config)
        self.batches: Batches | Mixed = first
        self.consolidation: Consolidation | None = None
        if config.replay_share or config.ewc:
            self._remember(past, progress)
        if config.tasks:
            others = [Batches(text, config) for text in task_corpora(config, past)]
            shares = [task.share for task in config.tasks]
            self.batches = mixture(first, list(zip(others, shares, strict=True)))
        self.step = 0
        self.rate_scale = 1.0
        self.meter = Meter()
        if config.compile:
            self._compile(progress)

    def _first_model(self, past: Past | None) -> LanguageModel:
        """With its initial weights."""
        if self.config.initial:
            return initial_model(self.config, past)
        config = self.config
        return family_of(config.model).build(config.model, config.seed, dropout=config.dropout)

    def _remember(self, past: Past | None, progress: Progress) -> None:
        """Bring in what keeps a continued run from forgetting."""
        config, corpus = self.config, old_corpus(self.config, past)
        new, old = Batches(self.corpus, config), Batches(corpus, config)
        if config.replay_share:
            self.batches = Mixed(new, old, config.replay_share)
        if config.ewc:
            self.consolidation = consolidation(
                self.model, config, past, old, corpus, self.objective.examples, progress
            )

    def _compile(self, progress: Progress) -> None:
        """Compile one layer; the others reuse its code. The first pass is timed apart."""
        if self.device.type == "cpu" and not has_compiler():
            progress.log("no C++ compiler found: training runs uncompiled")
            return
        start = time.perf_counter()
        for block in self.model.blocks:
            block.compile()
        for context in {self.config.trunk_model.context, self.config.model.context}:
            self.gradients(0, context)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.meter.compile += time.perf_counter() - start

    def examples(self, step: int, context: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets (rows of this rank, context) of batch `step`, its windows cut to that context.

        What is random is drawn for all ranks at once.
        """
        parts = self.config.model.context // (context or self.config.model.context)
        length = self.config.model.context // parts
        windows = self.batches(step).unfold(1, length + 1, length).flatten(0, 1)
        inputs, targets = self.objective.examples(windows, self.corpus, (self.config.seed, step, 0))
        if self.config.input_noise:
            inputs = noised(inputs, self.config.input_noise, (self.config.seed, step, 1))
        mine = slice(parts * self.batches.mine.start, parts * self.batches.mine.stop)
        return inputs[mine].to(self.device), targets[mine].to(self.device)

    def sources(self, step: int, rows: int) -> Tensor:
        """(rows,) numbers of the texts that the examples of this rank are of, of which each row gave some."""
        mine, first = self.batches.mine, step * self.batches.rows
        found = [self.batches.source(first + row) for row in range(mine.start, mine.stop)]
        return torch.tensor(found).repeat_interleave(rows // len(found))

    def gradients(self, step: int, context: int | None = None) -> Tensor:
        """Add up the gradients of this rank's rows of batch `step`, part by part; returns the mean loss.

        All rows have as many predicted tokens, so the mean over equal parts is that over the batch.
        """
        config = self.config
        if config.dropout:
            key = (config.seed, step, self.batches.mine.start)  # whatever came before
            draw = np.random.SeedSequence(key).generate_state(1, np.uint64)
            torch.manual_seed(int(draw[0]))
        total = torch.zeros((), device=self.device)
        inputs, targets = self.examples(step, context)
        rows = inputs, targets, self.sources(step, len(inputs))
        with self.rounded():
            for part in zip(*(x.chunk(config.accumulate) for x in rows), strict=True):
                with self.precision.autocast():
                    loss = self._loss(*part)
                total += self.precision.backward(loss / config.accumulate)
        return total

    def rounded(self) -> AbstractContextManager[None]:
        """In this block the model has the weights that it will be kept with, as `RunConfig.rounding` says."""
        return nullcontext() if self.rounding is None else self.rounding.applied()

    def _loss(self, inputs: Tensor, targets: Tensor, sources: Tensor) -> Tensor:
        if self.teaching is not None:
            return self.teaching.loss(self.model, inputs, targets, sources)
        return self.model.loss(inputs, targets, label_smoothing=self.config.label_smoothing)

    def train_step(self, total_tokens: int) -> float:
        """One optimizer step of a run of `total_tokens`; returns the whole batch's loss in nats a token.

        That is nan where gradients are not finite, though the loss may be: no weight has changed then.
        """
        config = self.config
        in_trunk = self.step < config.trunk_steps(total_tokens // config.batch_tokens)
        context = (config.trunk_model if in_trunk else config.model).context
        asked = 0.0 if self.teaching is None else self.teaching.flops
        loss = average_gradients(self.model, self.gradients(self.step, context), sharded=config.shard)
        if self.teaching is not None:
            self.meter.teachers += self.teaching.flops - asked
        self.precision.unscale()
        if self.consolidation is not None:
            self.consolidation.add_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        if config.shard:
            norm = added_up(norm)
        if math.isfinite(norm) or self.precision.scaler.is_enabled():  # which skips such a step by itself
            self._update(total_tokens)
        else:
            loss = torch.full_like(loss, math.nan)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.step += 1
        return float(loss)

    def _update(self, total_tokens: int) -> None:
        """Step the optimizers at the rate of this step."""
        config = self.config
        done = self.step * config.batch_tokens
        share = self.rate_scale * rate(done, config.model_copy(update={"tokens": total_tokens}))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * share
        self.precision.step()

    def state(self) -> dict[str, Any]:
        """Everything that determines what comes next."""
        return {
            "step": self.step,
            "rate_scale": self.rate_scale,
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "random": torch.get_rng_state(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.rate_scale = state["rate_scale"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["random"])
        self.precision.scaler.load_state_dict(state.get("scaler", {}))  # checkpoints of before have none
