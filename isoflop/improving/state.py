"""A search while it goes on: what it has found and spent, kept in the ledger after every piece of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager

import numpy as np

from isoflop import flops
from isoflop.errors import CorruptError, TrainError
from isoflop.evaluate import mean_se
from isoflop.improving.building import Builder, Built
from isoflop.improving.estimates import Known
from isoflop.improving.front import LEAST_GAIN, excess, hypervolume, makes_needless
from isoflop.improving.records import LIMIT, NEEDLESS, Candidate, Figures, Improvement, Refused, Tried
from isoflop.interrupt import Interrupted
from isoflop.served import Served

KIND, STAGE = "improvement", "improve"


class State:
    """The record of a search, what follows from it, and its budget."""

    def __init__(
        self, builder: Builder, record: Improvement, known: Known, pressed: Callable[[], bool]
    ) -> None:
        self.builder, self.record, self.known, self.pressed = builder, record, known, pressed
        self.served: Served | None = None  # the input's measurement

    def change(self, **values: object) -> None:
        """Replace fields of the record, and keep it."""
        self.record = self.record.model_copy(update=values)
        self.builder.project.put(KIND, self.record)

    # -- the budget -------------------------------------------------------------------------------------

    @property
    def spent(self) -> float:
        """In the budget's unit."""
        record = self.record
        return record.seconds_total if record.budget.flops is None else record.flops_total

    def spent_on(self, part: str) -> float:
        """Of it, on one part."""
        record = self.record
        return (record.seconds if record.budget.flops is None else record.flops).get(part, 0.0)

    @property
    def left(self) -> float:
        return self.amount - self.spent

    @property
    def amount(self) -> float:
        budget = self.record.budget
        amount = budget.seconds if budget.flops is None else budget.flops
        assert amount is not None
        return amount

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the seconds of a piece of work. Raises Interrupted before it begins, if that was asked."""
        if self.pressed():
            raise Interrupted
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = self.record.seconds.get(name, 0.0) + time.perf_counter() - start
            self.change(seconds={**self.record.seconds, name: seconds})
            self.builder.progress.update(STAGE, min(self.spent, self.amount))

    def computed(self, name: str, amount: float) -> None:
        """Count FLOPs; they are kept with the next piece of work."""
        total = self.record.flops.get(name, 0.0) + amount
        self.record = self.record.model_copy(update={"flops": {**self.record.flops, name: total}})

    def read(self, name: str, tokens: int) -> None:
        """Count the FLOPs of scoring a model on so many tokens, as if it were as large as the input."""
        self.computed(name, self.reading(tokens))

    def reading(self, tokens: int) -> float:
        return tokens * flops.forward_flops_per_token(self.known.model)

    # -- what was found ---------------------------------------------------------------------------------

    @property
    def start(self) -> Figures:
        """The input's."""
        figures = self.record.trials[0].figures
        assert figures is not None
        return figures

    @property
    def rise(self) -> float:
        """Nats by which the loss may rise."""
        return self.record.limits.loss_increase * self.known.loss

    def closed(self, candidate: Candidate) -> bool:
        """Whether it was tried or refused."""
        known = [t.candidate for t in self.record.trials] + [r.candidate for r in self.record.refused]
        return candidate in known

    def failed(self, candidate: Candidate) -> bool:
        return any(t.candidate == candidate and t.error for t in self.record.trials)

    def hopeless(self, candidate: Candidate, at_best: Figures) -> bool:
        """Whether what is known by now rules a candidate out, which is that at best; it is then refused."""
        found = self._against(at_best)
        if found is not None:
            self.refuse(candidate, *found, at_best)
        return found is not None

    def _against(self, at_best: Figures) -> tuple[str, str] | None:
        """Why such a candidate is not worth building: the kind of reason, and its words."""
        broken = excess(at_best, self.record.limits, self.start.loss)
        if broken:
            words = ", ".join(f"{name} {share:.1%} above the limit" for name, share in broken.items())
            return LIMIT, f"at best {words}"
        for trial in self.record.trials:
            if trial.figures is not None and makes_needless(trial.figures, at_best, self.rise):
                return NEEDLESS, f"hardly better in anything than {trial.candidate.name}"
        gain = self.gain(at_best)
        return None if gain >= LEAST_GAIN else (NEEDLESS, f"it would add {gain:.2%} to the front at best")

    def gain(self, figures: Figures) -> float:
        """Hypervolume that a model would add to that of what was measured."""
        have = [t.figures for t in self.record.trials if t.figures is not None]
        limits = self.record.limits
        before = hypervolume(have, self.start, limits)
        return hypervolume([*have, figures], self.start, limits) - before

    def refuse(self, candidate: Candidate, because: str, why: str, figures: Figures) -> None:
        """Leave a candidate out. It is kept with the next piece of work: going on finds it again."""
        made = Refused(candidate=candidate, because=because, why=why, figures=figures)
        self.record = self.record.model_copy(update={"refused": (*self.record.refused, made)})

    def add(self, trial: Tried) -> None:
        self.change(trials=(*self.record.trials, trial))

    @contextmanager
    def forgiving(self, candidate: Candidate, part: str) -> Iterator[None]:
        """What goes wrong with one candidate ends that candidate alone: too little memory, a failed gate."""
        try:
            yield
        except (MemoryError, BrokenExecutor, CorruptError, TrainError, RuntimeError) as error:
            if type(error) is RuntimeError and "memory" not in str(error):  # torch has no class for it
                raise
            lines = str(error).splitlines() or ["there is too little memory"]
            self.fail(candidate, lines[0], part)

    def fail(self, candidate: Candidate, why: str, part: str) -> None:
        """Keep a candidate that could not be built."""
        self.builder.progress.log(f"failed: {candidate.name}: {why}")
        self.add(Tried(candidate=candidate, error=why, part=part))

    def tried(self, candidate: Candidate, built: Built, found: Served, **more: object) -> Tried:
        """A measured candidate; its loss is compared with the input's, window by window."""
        first = self.served or found
        change, se = found.loss - first.loss, math.hypot(found.loss_se, first.loss_se)
        if len(found.windows) == len(first.windows):
            apart = np.subtract(found.windows, first.windows)
            change, se = float(apart.mean()), mean_se(apart)
        seconds = found.seconds
        return Tried(
            candidate=candidate, steps=built.steps,
            figures=Figures(loss=found.loss, bytes=built.bytes, seconds=timed(found)),
            loss_se=found.loss_se, change=change, change_se=0.0 if math.isnan(se) else se,
            seconds_low=seconds.low, seconds_high=seconds.high, engine=found.engine,
            threads=found.speed.threads, path=built.steps[-1].path, served=found.id, quiet=found.quiet,
            **more,
        )  # fmt: skip


def timed(found: Served) -> float:
    """Seconds a token: the median of the repetitions, or the fastest, which other work disturbs least."""
    return found.seconds.value if found.quiet else found.seconds.low
