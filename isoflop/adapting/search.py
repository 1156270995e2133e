"""Which configuration: trials one after the other, the worse half of which ends early.

A trial has so many seconds, and is scored on validation examples on its way. After a quarter and after a half
of its time it goes on only if it is among the better half of those that came so far (successive halving:
Jamieson and Talwalkar, arXiv 1502.07943; one trial at a time as Li et al., arXiv 1810.05934), judged by
Optuna's pruner. First comes the likeliest learning rate of each method, then the other rates of the methods
that did best, then other batch sizes of the best of all. Optuna's study is in memory: what the ledger has of
finished trials is told to it again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from isoflop.adapting.candidates import variants
from isoflop.adapting.records import AdaptConfig, Point, Trial
from isoflop.errors import AdaptError, BudgetError
from isoflop.progress import Progress

if TYPE_CHECKING:
    import optuna

HALVING, QUARTERS = 2, 4  # a trial is judged after one quarter of its time, and after two
PLANNED = 6  # trials that the time of the search is laid out for
EXPECTED = 0.5  # of a trial's time, that one takes which is not the first
ENOUGH = 0.5  # of a trial's time: with less left no further one begins
SHARE = 0.4  # of the budget
STAGE = "search"

Report = Callable[[Point], bool]
Attempt = Callable[[AdaptConfig, float, Report], Trial]  # trains for so many seconds
Keep = Callable[[Trial], None]  # in the ledger


def trial_seconds(seconds: float, needed: float = 0.0, planned: int = PLANNED) -> float:
    """Of each trial of a search: as many as planned, or fewer that have the time they need."""
    return max(needed, seconds / (1 + EXPECTED * (planned - 1)))


class Search:
    """The trials of one search, those of the ledger first."""

    def __init__(
        self, candidates: Sequence[Sequence[AdaptConfig]], given: Mapping[str, Any], *, seconds: float,
        each: float, higher: bool, done: Sequence[Trial] = (),
    ) -> None:  # fmt: skip
        self.candidates, self.given, self.higher = candidates, given, higher
        self.seconds, self.each = seconds, each
        self.study = _study(higher)
        self.trials: list[Trial] = []
        for trial in done:
            self._replay(trial)

    @property
    def spent(self) -> float:
        return sum(trial.seconds for trial in self.trials)

    def run(self, attempt: Attempt, keep: Keep, progress: Progress) -> None:
        """Try configurations until none is left, or the time is over.

        Raises AdaptError or BudgetError, that of the first, where no trial could be trained.
        """
        progress.start(STAGE, self.seconds, "s")
        first: AdaptError | BudgetError | None = None
        while (config := self._next()) is not None and self._affords_one_more():
            began = time.monotonic()
            try:
                self._try(attempt, config)
            except (AdaptError, BudgetError) as error:
                first = first or error
                self.trials.append(failed(config, error.message, time.monotonic() - began))
            except (MemoryError, RuntimeError) as error:
                if type(error) is RuntimeError and "memory" not in str(error):  # torch has no class for it
                    raise
                self.trials.append(failed(config, "there is too little memory", time.monotonic() - began))
            keep(self.trials[-1])
            progress.update(STAGE, min(self.spent, self.seconds), said(self.trials[-1]))
            progress.log(f"tried {said(self.trials[-1])}")
        progress.finish(STAGE, f"{len(self.trials)} trials")
        if not any(math.isfinite(t.score) for t in self.trials):
            if first is not None:
                raise first
            raise AdaptError("there is too little memory for any trial", hint="give a smaller --set batch")

    @property
    def best(self) -> Trial:
        return max((t for t in self.trials if math.isfinite(t.score)), key=self._gain)

    # -- choosing ---------------------------------------------------------------------------------------

    def _next(self) -> AdaptConfig | None:
        """What is tried next; None when all was."""
        tried = [t.config for t in self.trials]
        for configs in self.candidates:
            if configs[0] not in tried:
                return configs[0]
        for configs in sorted(self.candidates, key=self._best_of, reverse=True):
            for config in configs:
                if config not in tried:
                    return config
        if any(math.isfinite(t.score) for t in self.trials):
            return next((c for c in variants(self.best.config, self.given) if c not in tried), None)
        return None

    def _affords_one_more(self) -> bool:
        return not self.trials or self.seconds - self.spent >= ENOUGH * self.each

    def _best_of(self, configs: Sequence[AdaptConfig]) -> float:
        """Of a method's trials; the worst where none could be trained."""
        return max((self._gain(t) for t in self.trials if t.config in configs), default=-math.inf)

    def _gain(self, trial: Trial) -> float:
        """Its score, the higher the better."""
        if not math.isfinite(trial.score):
            return -math.inf
        return trial.score if self.higher else -trial.score

    # -- trying -----------------------------------------------------------------------------------------

    def _try(self, attempt: Attempt, config: AdaptConfig) -> None:
        judge = _Judge(self.study.ask(), self.each, self.higher)
        left = self.each if not self.trials else min(self.each, self.seconds - self.spent)
        trial = attempt(config, left, judge.hopeless)
        if judge.pruned:
            trial = trial.model_copy(update={"stopped": "pruned"})
        self.trials.append(trial)

    def _replay(self, trial: Trial) -> None:
        """Tell the study of a trial of an ended process."""
        judge = _Judge(self.study.ask(), self.each, self.higher)
        for point in trial.curve:
            judge.hopeless(point)
        self.trials.append(trial)


class _Judge:
    """Whether a trial goes on."""

    def __init__(self, trial: optuna.Trial, seconds: float, higher: bool) -> None:
        self.trial, self.seconds, self.better = trial, seconds, max if higher else min
        self.quarter, self.best, self.pruned = 0, math.nan, False

    def hopeless(self, point: Point) -> bool:
        """Told of each score; true when the trial shall end."""
        self.best = point.score if math.isnan(self.best) else self.better(self.best, point.score)
        quarter = min(QUARTERS, round(QUARTERS * point.seconds / self.seconds))
        if quarter <= self.quarter:
            return False
        self.quarter = quarter
        self.trial.report(self.best, quarter)
        self.pruned = self.trial.should_prune() and quarter < QUARTERS
        return self.pruned


def failed(config: AdaptConfig, why: str, seconds: float) -> Trial:
    """A trial that could not be trained, and the seconds that it took to see so."""
    return Trial(
        config=config, curve=(), score=math.nan, seconds=seconds, flops=0.0, params_trained=0, stopped=why
    )


def said(trial: Trial) -> str:
    """A trial in a line."""
    config = trial.config
    score = f"{trial.score:.4f}" if math.isfinite(trial.score) else "failed"
    why = f" ({trial.stopped})" if trial.stopped else ""
    return (
        f"{config.method}, rate {config.lr:.2g}, batch {config.batch}: {score} in {trial.seconds:.1f} s{why}"
    )


def _study(higher: bool) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it would say, the progress says
    return optuna.create_study(
        direction="maximize" if higher else "minimize",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=HALVING),
    )
