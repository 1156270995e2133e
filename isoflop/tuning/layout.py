"""What a budget buys of a tuning: how many trials of how many tokens, and the comparison at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from isoflop import flops
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.errors import BudgetError
from isoflop.identity import tokens_of_trunk
from isoflop.places import Place
from isoflop.progress import Progress
from isoflop.records import Corpus, Member, ModelConfig, Run, RunConfig
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.trials import Tuning
from isoflop.tuning.values import batches
from isoflop.variant import Variant

TRIALS, FEWEST_TRIALS, MOST_TRIALS = 24, 8, 200
BRANCHES = 3  # of a trial, each with HALVING times the tokens of the one before
HALVING = 2  # and one in so many trials goes on to the next
SHORTEST_STEPS = (
    60  # of a branch: a shorter one is mostly warm-up and cooldown, and says little of longer ones
)
MOST_TOKENS_PER_PARAM = 40.0  # of a trial; a budget beyond that is for more trials, or a larger width
FEWEST_SEEDS = 3  # of the comparison at the end: fewer have no interval worth the name


@dataclass(frozen=True)
class Layout:
    """A tuning as it was laid out, with what its runs cost in the budget's unit: FLOPs, or seconds."""

    tuning: Tuning
    budget: Budget
    workers: int
    speed: SpeedModel
    corpus: Corpus

    def member(self, config: RunConfig, token_counts: Sequence[int]) -> Member:
        """A trunk of one thread with these branches."""
        eval_seconds = self.speed.eval_seconds(config, self.corpus)
        return rungs.member(config, token_counts, 1 / self.speed.tokens_per_second(config), eval_seconds)

    def cost(self, run: Run) -> float:
        """What a branch took of the budget."""
        if self.budget.flops is not None:
            return run.flops_spent
        return (run.seconds_train + run.seconds_eval) / self.workers

    def price(self, config: RunConfig, token_counts: Sequence[int]) -> float:
        """What a trunk with these branches is expected to take."""
        found = self.member(config, token_counts)
        return found.flops if self.budget.flops is not None else found.seconds / self.workers

    @property
    def trial_cost(self) -> float:
        """Of a trial that is trained to its end."""
        return self.price(self.tuning.config, self.tuning.token_counts)

    @property
    def search_budget(self) -> float:
        """What the comparison at the end leaves."""
        last = self.member(self.tuning.config, self.tuning.token_counts[-1:])
        runs = 2 * len(self.tuning.seeds)
        if self.budget.flops is not None:
            return self.budget.flops - runs * last.flops
        assert self.budget.seconds is not None
        return self.budget.seconds - rungs.START_SECONDS - math.ceil(runs / self.workers) * last.seconds


def lay_out(
    project: Project, corpus: Corpus, budget: Budget, *, key: str, model: ModelConfig, values: Sequence[str],
    trials: int | None, seeds: int, seed: int, workers: int, variant: Variant, progress: Progress,
    place: Place,
) -> Layout:  # fmt: skip
    """The tuning that `budget` buys, kept under `key`: asked twice it is one.

    Raises BudgetError when it is too little.
    """
    config = variant.config(model, 0, seed=seed)
    if seeds < FEWEST_SEEDS:
        raise BudgetError(f"{seeds} seeds cannot tell two recipes apart", hint=f"give {FEWEST_SEEDS} or more")
    if trials is not None and trials < 2:
        raise BudgetError("the first trial is the recipe: fewer than 2 search nothing", hint="give more")
    speed = rungs.measure(project, corpus, [config], packed=workers, progress=progress, place=place)
    tuning = project.get("tuning", key, Tuning)
    if tuning is None:
        prices = Prices.of(config, values, budget, seeds, trials or TRIALS, workers, speed, corpus)
        length, planned = prices.bought(trials)
        config = config.model_copy(update={"tokens": length, "eval_tokens": prices.eval_tokens})
        tuning = Tuning(
            id=key, corpus_id=corpus.id, config=config, values=tuple(values), planned=planned,
            token_counts=tuple(length // HALVING**k for k in reversed(range(BRANCHES))),
            seeds=tuple(range(seed + 1, seed + 1 + seeds)), changes=variant.changes,
        )  # fmt: skip
        project.put("tuning", tuning, key)
    return Layout(tuning, budget, workers, speed, corpus)


@dataclass(frozen=True)
class Prices:
    """What a tuning costs by the tokens D of a whole trial, and what a budget buys."""

    budget: Budget
    trial: float  # tokens that a trial is expected to take, in units of D
    evaluations: float  # that it is expected to take
    judging: int  # whole runs in the comparison at the end, idle places counted where time is the budget
    unit: int  # D is a multiple of it, in tokens
    most: float  # D, at most
    workers: int
    tokens_per_second: float
    flops_per_token: float
    eval_tokens: int
    eval_seconds: float

    @classmethod
    def of(
        cls, config: RunConfig, values: Sequence[str], budget: Budget, seeds: int, trials: int, workers: int,
        speed: SpeedModel, corpus: Corpus,
    ) -> Self:  # fmt: skip
        trial, evaluations = expected(config)
        judging = 2 * seeds
        largest = batches(config)[-1] if "batch_tokens" in values else config.batch_tokens
        unit = largest * HALVING ** (BRANCHES - 1)
        if budget.seconds is not None:
            judging = workers * math.ceil(judging / workers)
            shortest = unit * SHORTEST_STEPS / speed.tokens_per_second(config)
            each = Budget(seconds=max(shortest, budget.seconds * workers / (trial * trials + judging)))
            fits = rungs.shared_eval_tokens(
                [config.model], lambda c: (0.0, speed.eval_seconds(c, corpus)), [each]
            )
            config = config.model_copy(update={"eval_tokens": fits})
        most = MOST_TOKENS_PER_PARAM * flops.params_matmul(config.model)
        return cls(
            budget, trial, evaluations, judging, unit, max(most, unit * SHORTEST_STEPS), workers,
            speed.tokens_per_second(config), flops.mean_flops_per_token(config), config.eval_tokens,
            speed.eval_seconds(config, corpus),
        )  # fmt: skip

    def bought(self, trials: int | None) -> tuple[int, int]:
        """Tokens of a whole trial, and trials: so many, or as many as make trials neither short nor long.

        Raises BudgetError when even the least cannot be paid.
        """
        shortest = self.unit * SHORTEST_STEPS
        length = min(self.most, self._length(trials or TRIALS))
        wanted = trials or TRIALS
        if trials is None and not shortest <= length < self.most:
            length = max(shortest, length)
            paid = [n for n in range(FEWEST_TRIALS, MOST_TRIALS + 1) if self._length(n) >= length]
            wanted = paid[-1] if paid else 0
        if length < shortest or not wanted:
            least = self.price(shortest, trials or FEWEST_TRIALS)
            raise BudgetError(
                f"{self.budget} is too little for a search: {trials or FEWEST_TRIALS} trials of "
                f"{shortest:,} tokens and a comparison at the end take about {least}",
                hint="give a larger budget (--budget) or a smaller width (--width)",
            )
        return self.unit * int(length / self.unit), wanted

    def _length(self, trials: int) -> float:
        """D that so many trials can have; below zero when there is not even time to score them."""
        if self.budget.flops is not None:
            tokens = self.budget.flops / self.flops_per_token
        else:
            assert self.budget.seconds is not None
            scored = (self.evaluations * trials + self.judging) * self.eval_seconds
            seconds = self.workers * (self.budget.seconds - rungs.START_SECONDS) - scored
            tokens = seconds * self.tokens_per_second
        return tokens / (self.trial * trials + self.judging)

    def price(self, length: float, trials: int) -> Budget:
        """What so many trials of that length take: the inverse of `_length`."""
        tokens = length * (self.trial * trials + self.judging)
        if self.budget.flops is not None:
            return Budget(flops=tokens * self.flops_per_token)
        scored = (self.evaluations * trials + self.judging) * self.eval_seconds
        seconds = (tokens / self.tokens_per_second + scored) / self.workers
        return Budget(seconds=rungs.START_SECONDS + seconds)


def expected(config: RunConfig) -> tuple[float, float]:
    """Tokens that a trial takes, over those of a run, and evaluations: one in HALVING goes on each time."""
    counts = [1000 * HALVING**k * config.batch_tokens for k in range(BRANCHES)]
    reached = [0, *(sum(tokens_of_trunk(counts[: k + 1], config)) for k in range(BRANCHES))]
    added = [(b - a) / HALVING**k for k, (a, b) in enumerate(pairwise(reached))]
    return sum(added) / counts[-1], sum(HALVING**-k for k in range(BRANCHES))
