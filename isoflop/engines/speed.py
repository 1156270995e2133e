"""How fast an engine is on this machine, and what it needs: each figure with the load it was taken under."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import psutil

from isoflop.engines import Engine, open_engine
from isoflop.records import Record
from isoflop.workers import pool

REPEATS = 5
PROMPT_SHARE = 0.5  # of the context is the prompt, the rest is written
MOST_WRITTEN = 128
SWEEP_BYTES = 1 << 28  # that are read to measure the memory: more than a cache holds
QUIET = 0.25  # cores that other processes may keep busy


class Rate(Record):
    """Tokens or examples a second of some repetitions: their median, and the slowest and fastest."""

    median: float
    low: float
    high: float


class EngineSpeed(Record):
    """One engine with one model on this machine, at batch 1."""

    engine: str
    threads: int
    prompt_tokens: int
    written_tokens: int
    prefill: Rate
    decode: Rate
    generate: Rate | None = None  # new text by the library's own loop, of an engine that has one
    first_token_seconds: float  # median, from the prompt to the first new token
    load_seconds: float
    memory_bytes: int  # peak of the process, above what it had before the model
    disk_bytes: int
    weight_bytes: int  # that are read for a token
    bandwidth: float  # of the memory, bytes a second, measured with as many threads
    bandwidth_share: float  # weight bytes a second of decoding, over it; above 1 they come from a cache
    load_before: float  # average of one minute, in which what came before counts, too
    load_after: float
    others: float | None = None  # cores that other processes kept busy meanwhile; None in records of before

    @property
    def quiet(self) -> bool:
        """Whether the machine had little else to do while it was measured."""
        return (self.load_before if self.others is None else self.others) <= QUIET


def measure(path: Path, *, threads: int = 1) -> EngineSpeed:
    """Load and run an artifact in a process of its own. Raises as `open_engine` does."""
    before = os.getloadavg()[0]
    with pool(1, fresh=True) as executor:
        found: EngineSpeed = executor.submit(_measured, path, threads, before).result()
    return found


def _measured(path: Path, threads: int, before: float) -> EngineSpeed:
    start_bytes = psutil.Process().memory_info().rss
    start, busy = time.perf_counter(), busy_others()
    with open_engine(path, threads=threads) as engine:
        load_seconds = time.perf_counter() - start
        prompt = [i % engine.vocab_size for i in range(max(1, int(PROMPT_SHARE * engine.context)))]
        written = min(MOST_WRITTEN, engine.context - len(prompt))
        rounds = [_round(engine, prompt, written) for _ in range(REPEATS + 1)][1:]  # the first one warms up
        own = _generated(engine, prompt, written) if isinstance(engine, Writing) else None
        memory, name, weight_bytes = _peak_bytes() - start_bytes, engine.name, engine.weight_bytes
    others = (busy_others() - busy) / (time.perf_counter() - start)
    first, decode = zip(*rounds, strict=True)
    rate, bandwidth = rate_of(written / s for s in decode), _bandwidth(threads)
    return EngineSpeed(
        engine=name, threads=threads, prompt_tokens=len(prompt), written_tokens=written,
        prefill=rate_of(len(prompt) / s for s in first), decode=rate, generate=own,
        first_token_seconds=statistics.median(first), load_seconds=load_seconds, memory_bytes=max(0, memory),
        disk_bytes=disk_bytes(path), weight_bytes=weight_bytes, bandwidth=bandwidth,
        bandwidth_share=rate.median * weight_bytes / bandwidth,
        load_before=before, load_after=os.getloadavg()[0], others=max(0.0, others),
    )  # fmt: skip


def busy_others() -> float:
    """Seconds of all cores that went to others than this process, by now."""
    spent, own = psutil.cpu_times(), psutil.Process().cpu_times()
    parts = ("user", "nice", "system", "irq", "softirq", "steal")  # a guest's are among the user's
    return float(sum(getattr(spent, part, 0.0) for part in parts) - own.user - own.system)


def disk_bytes(path: Path) -> int:
    """Of a file, or of all files of a folder."""
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    return sum(f.stat().st_size for f in files)


def _round(engine: Engine, prompt: Sequence[int], written: int) -> tuple[float, float]:
    """Seconds for the prompt, and for the tokens after it."""
    engine.reset()
    start = time.perf_counter()
    logits = engine.feed(prompt, every=False)
    first = time.perf_counter()
    for _ in range(written):
        logits = engine.feed([int(logits[-1].argmax())], every=False)
    return first - start, time.perf_counter() - first


@runtime_checkable
class Writing(Protocol):
    """An engine whose library has a loop of its own for new text."""

    def written(self, ids: Sequence[int], tokens: int) -> list[int]: ...


def _generated(engine: Writing, prompt: Sequence[int], written: int) -> Rate:
    """Tokens a second of that loop after its first token, so that the prompt does not count."""

    def seconds(tokens: int) -> float:
        start = time.perf_counter()
        engine.written(prompt, tokens)
        return time.perf_counter() - start

    seconds(1)  # warms up
    first = statistics.median(seconds(1) for _ in range(REPEATS))
    return rate_of((written - 1) / max(1e-9, seconds(written) - first) for _ in range(REPEATS))


def rate_of(rates: Iterable[float]) -> Rate:
    """Of some repetitions."""
    found = sorted(rates)
    return Rate(median=statistics.median(found), low=found[0], high=found[-1])


def _peak_bytes() -> int:
    """Most memory that this process has had so far; what it has now where that is not kept."""
    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", 0) or _high_water() or info.rss)


def _high_water() -> int:
    """Linux's mark of the most resident memory, in bytes; 0 elsewhere."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _bandwidth(threads: int) -> float:
    """Best rate at which `threads` threads read memory, in bytes a second."""
    import torch

    torch.set_num_threads(threads)
    data = torch.ones(SWEEP_BYTES // 4)
    best = 0.0
    for _ in range(REPEATS):
        start = time.perf_counter()
        data.sum()
        best = max(best, SWEEP_BYTES / (time.perf_counter() - start))
    return best
