"""How fast this machine trains: measured, kept in the ledger, never a constant."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from isoflop import flops
from isoflop.devices import agreed, in_group, run_ranks
from isoflop.evaluate import heldout
from isoflop.progress import Silent
from isoflop.records import Corpus, Paced, RunConfig, Throughput
from isoflop.trainer import Trainer
from isoflop.workers import pool

PROBE_SECONDS = 1.2


def machine() -> str:
    """What a speed is measured on."""
    return f"{platform.machine()}-{psutil.cpu_count()}cpu-{platform.node()}"


def probe(config: RunConfig, corpus: Corpus, *, packed: int, seconds: float = PROBE_SECONDS) -> Throughput:
    """Train a throw-away model of this configuration for about `seconds` and time its steps."""
    trainer = Trainer(config, corpus, Silent())
    trunk, cooldown = (_seconds_a_step(trainer, steps, seconds) for steps in (10_000, 1))
    step = (1 - config.cooldown) * trunk + config.cooldown * cooldown
    memory = psutil.Process().memory_info().rss
    start = time.perf_counter()
    scored = heldout(trainer.model, corpus, eval_tokens=8192, shared=True)
    eval_seconds = time.perf_counter() - start
    return Throughput(
        **{name: value for name, value in config if name in Paced.model_fields},
        packed=packed,
        params=flops.params_matmul(config.model),
        tokens_per_second=config.batch_tokens / step,
        eval_tokens_per_second=scored.tokens / eval_seconds,
        compile_seconds=trainer.meter.compile,
        memory_bytes=memory,
        machine=machine(),
    )


def _seconds_a_step(trainer: Trainer, total_steps: int, seconds: float) -> float:
    """Of steps in the trunk of a run of so many steps, or, where that is short, in its cooldown."""
    total = total_steps * trainer.config.batch_tokens
    trainer.train_step(total)
    start = time.perf_counter()
    trainer.train_step(total)
    steps = agreed(max(3, math.ceil(seconds / 2 / (time.perf_counter() - start))))
    start = time.perf_counter()
    for _ in range(steps):
        trainer.train_step(total)
    return (time.perf_counter() - start) / steps


class SpeedModel:
    """FLOP/s against N, interpolated on a log scale between measurements, flat outside them."""

    def __init__(self, measured: Iterable[Throughput]) -> None:
        by_size: dict[int, list[Throughput]] = {}
        for t in measured:
            by_size.setdefault(t.params, []).append(t)
        self.sizes = sorted(by_size)
        if not self.sizes:
            raise ValueError("no measured throughput")
        self._rate = [
            float(np.median([t.tokens_per_second * flops.mean_flops_per_token(t) for t in by_size[n]]))
            for n in self.sizes
        ]
        self.eval_ratio = float(
            np.median([t.eval_tokens_per_second / t.tokens_per_second for ts in by_size.values() for t in ts])
        )

    def flops_per_second(self, params: float) -> float:
        """Training FLOP/s expected of a model of that size."""
        return math.exp(float(np.interp(math.log(params), np.log(self.sizes), np.log(self._rate))))

    def tokens_per_second(self, config: RunConfig) -> float:
        """Training speed expected of this configuration."""
        rate = self.flops_per_second(flops.params_matmul(config.model))
        return rate / flops.mean_flops_per_token(config)

    def eval_seconds(self, config: RunConfig, corpus: Corpus) -> float:
        """Time of one held-out evaluation."""
        tokens = min(config.eval_tokens, corpus.heldout_tokens)
        return tokens / (self.eval_ratio * self.tokens_per_second(config))


def probe_alone(config: RunConfig, corpus: Corpus) -> Throughput:
    """`probe` of a run that has the machine to itself, in as many processes as it has ranks."""
    task = partial(probe, config, corpus, packed=1)
    return run_ranks(config.ranks, task, fresh=config.shard) if in_group(config) else task()


def probe_packed(corpus: Corpus, configs: Sequence[RunConfig], packed: int) -> Iterator[Throughput]:
    """`probe` of each configuration, `packed` of them at a time."""
    n = len(configs)
    with pool(packed) as executor:
        yield from executor.map(probe_in, [corpus.folder] * n, configs, [packed] * n)


def probe_in(folder: Path, config: RunConfig, packed: int) -> Throughput:
    """`probe` on a corpus folder: what a worker process is asked to do."""
    from isoflop.corpus import load_corpus

    return probe(config, load_corpus(folder), packed=packed)
