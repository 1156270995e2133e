"""What names a run, its trunk and its job, and how many tokens a trunk takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.records import Corpus, RunConfig, digest


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
