"""The records of a tuning, frozen like those of `records`."""

from __future__ import annotations

from isoflop.records import Interval, Record, RunConfig


class Trial(Record):
    """One set of values that a tuning tried, as far as it was trained."""

    number: int  # 0: the recipe's own values
    values: dict[str, float]
    state: str  # "done", "pruned" before its longest branch, "failed" (a loss that is not finite) or "open"
    losses: tuple[float, ...]  # held-out, by branch, shortest first
    runs: tuple[str, ...]  # their ids
    flops: float  # spent


class Tuning(Record):
    """A search over values that the recipe leaves open: what was tried, and what the best of it is worth."""

    id: str
    corpus_id: str
    config: RunConfig  # the recipe's own; `tokens` is the longest branch, `seed` the search's
    token_counts: tuple[int, ...]  # of a trial's branches
    values: tuple[str, ...]  # searched
    planned: int  # trials
    changes: tuple[str, ...] = ()  # to the recipe, of `variant.Variant`
    seeds: tuple[int, ...]  # of the final comparison
    trials: tuple[Trial, ...] = ()
    best: int = 0  # number of the trial with the lowest loss; 0: the recipe's own
    losses_recipe: tuple[float, ...] = ()  # by seed, when the best is another
    losses_best: tuple[float, ...] = ()
    difference: Interval | None = None  # best - recipe, mean over seeds, nats
    doublings: Interval | None = None  # of this run's compute that the difference is worth
    better: bool = False  # the interval of the difference is below zero
    sentence: str = ""  # the answer; empty while the search goes on
    flops: float = 0.0  # of everything
    seconds: float = 0.0  # training and evaluation, summed over the processes
