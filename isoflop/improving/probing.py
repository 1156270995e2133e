"""The short measurement of an artifact: its speed with each number of threads, and a few windows' loss."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from isoflop.engines import open_engine
from isoflop.improving.records import Probe
from isoflop.records import Corpus, digest
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.throughput import machine
from isoflop.using import evaluate_model
from isoflop.workers import cores, pool

KIND = "probe"
PROMPT, WRITTEN, ROUNDS = 16, 32, 4  # tokens, at most a quarter and a half of the context
LOSS_TOKENS = 4096  # held-out


def probe(project: Project, corpus: Corpus, path: Path, threads: Sequence[int]) -> Probe:
    """Measure an artifact, unless the ledger has it. Raises as `open_engine` and `evaluate_model` do."""
    start, found = time.perf_counter(), content_hash(path)[:HASH_DIGITS]
    key = digest([found, machine(), list(threads), corpus.id, LOSS_TOKENS])
    known = project.get(KIND, key, Probe)
    if known is not None:
        return known
    with pool(1, fresh=True) as executor:
        engine, seconds = executor.submit(decode_seconds, path, threads).result()
    scores = evaluate_model(path, corpus, eval_tokens=LOSS_TOKENS)
    made = Probe(
        hash=found, engine=engine, seconds=seconds, windows=scores.windows,
        cost=time.perf_counter() - start,
    )  # fmt: skip
    project.put(KIND, made, key)
    return made


def thread_counts(most: int | None = None) -> list[int]:
    """1, 2, 4 ... up to the cores of this machine, these included, or up to `most`."""
    limit = most or cores()
    powers = [2**i for i in range(limit.bit_length()) if 2**i < limit]
    return [*powers, limit]


def decode_seconds(path: Path, threads: Sequence[int]) -> tuple[str, dict[int, float]]:
    """The engine's name, and seconds a token of new text, the best of ROUNDS, by number of threads."""
    found: dict[int, float] = {}
    name = ""
    for count in threads:
        with open_engine(path, threads=count) as engine:
            name, context = engine.name, engine.context
            prompt = [i % engine.vocab_size for i in range(max(1, min(PROMPT, context // 4)))]
            written = min(WRITTEN, context // 2)
            rounds = []
            for _ in range(ROUNDS):
                engine.reset()
                engine.feed(prompt, every=False)
                start = time.perf_counter()
                for i in range(written):
                    engine.feed([i % engine.vocab_size], every=False)
                rounds.append((time.perf_counter() - start) / written)
            found[count] = min(rounds)  # what other work disturbs least
    return name, found
