"""The ladder's further runs, round by round, each chosen by what it would tell about the target.

After the first members the law is fitted and the runs are sought that narrow the interval of the target's
loss most for their price (`laws.design`). The ladder ends when that interval is as narrow as wanted, when no
run that fits narrows it, or when its share of the budget is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from isoflop import flops
from isoflop.budget import Budget
from isoflop.errors import FitError
from isoflop.families import shapes
from isoflop.ladder import GOOD_STEPS, START_SECONDS, climb, member
from isoflop.laws import Fit
from isoflop.laws.design import Designer, choose
from isoflop.laws.intervals import tails
from isoflop.places import Place
from isoflop.plan import JOINED_EFFICIENCY, LARGER
from isoflop.progress import Progress
from isoflop.records import Corpus, Ladder, Member, Run
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.variant import DEFAULT, Variant

Law = Callable[[Sequence[Run]], Fit]

Z = NormalDist().inv_cdf(tails(0.9)[1])
WORTH_MAKING = 0.02  # of the target's variance that a round must take away
BRANCHES = 2  # of a further member, the longest and its half
COUNTS = 10  # token counts of a size, each twice the one before


def extend(
    project: Project, ladder: Ladder, runs: list[Run], extender: Extender, law: Law, *, progress: Progress,
    place: Place | None = None,
) -> tuple[Ladder, list[Run]]:  # fmt: skip
    """Add rounds of runs to a trained ladder until it ends; kept in the ledger round by round, and resumed.

    `law` fits runs. Returns the ladder, which says why it ended, and all of its runs.
    """
    while not ladder.ended:
        found = extender.round(ladder, law(runs))
        if isinstance(found, str):
            ladder = ladder.model_copy(update={"ended": found})
            progress.log(f"the ladder ends: {found}")
        else:
            ladder = ladder.model_copy(update={
                "members": (*ladder.members, *found),
                "seconds": ladder.seconds + START_SECONDS + max(m.seconds for m in found),
                "flops": ladder.flops + sum(m.flops for m in found),
            })  # fmt: skip
        project.put("ladder", ladder, ladder.id)
        if not ladder.ended:
            runs = climb(project, extender.corpus, ladder, progress=progress, place=place)
    return ladder, runs


@dataclass(frozen=True)
class Extender:
    """Chooses rounds for one ladder: `budget` is what it may spend of `target`, the whole."""

    corpus: Corpus
    budget: Budget
    target: Budget
    speed: SpeedModel
    within: float  # relative half-width of the target's loss that is wanted
    seed: int
    variant: Variant = DEFAULT

    def round(self, ladder: Ladder, law: Fit) -> list[Member] | str:
        """The members to train next, or a sentence why there are none."""
        designer = Designer(law, self._target_flops(ladder, law))
        try:
            before = designer.variances(designer.known)[0]
        except FitError as error:
            return error.message
        width = f"known within {100 * Z * np.sqrt(before):.1f}%"
        if Z * np.sqrt(before) <= self.within:
            return f"the loss of the final run is {width}, {100 * self.within:g}% are wanted"
        left = list(self._candidates(ladder, designer.optimum[0]))
        if not left:
            return f"no further run fits into the ladder's share; the loss of the final run is {width}"
        chosen = self._chosen(designer, ladder, left)
        if not chosen:
            return (
                f"no run that fits into the ladder's share narrows it; the loss of the final run is {width}"
            )
        return chosen

    def _chosen(self, designer: Designer, ladder: Ladder, left: list[Member]) -> list[Member]:
        """A run for each of the packed places: the most telling for its price, those before it counted."""
        chosen: list[Member] = []
        known = designer.known
        least, goal = WORTH_MAKING * designer.variances(known)[0], (self.within / Z) ** 2
        while left and len(chosen) < ladder.packed:
            N, D, cost = (np.array([f(m) for m in left]) for f in (_params, _tokens, _training_flops))
            price = np.array([self._price(m, designer.optimum[0]) for m in left])
            before, after = designer.variances(known)[0], designer.judge(known, N, D, cost, price).loss
            # On a core that would be idle beside the first run, time costs nothing.
            free = bool(chosen) and self.budget.seconds is not None
            best = int(after.argmin()) if free else choose(before, after, price, goal)
            if not free and before - after[best] < least:
                break
            known = designer.after(known, N[best], D[best], cost[best])
            chosen.append(left.pop(best))
            left = [m for m in left if self._beside(m, chosen, ladder)]
        return chosen

    def _candidates(self, ladder: Ladder, largest: float) -> Iterator[Member]:
        """Every size of the family between the smallest measured and the target's, with doubling tokens."""
        made = {(m.params, m.token_counts[-1]) for m in ladder.members if m.config.seed == self.seed}
        smallest = min(m.params for m in ladder.members)
        seen = LARGER * max(m.params for m in ladder.members)  # the plan looks no further
        most = int(max(min(largest, seen), smallest))
        for model in shapes(self.corpus.vocab_size, largest=most, family=self.variant):
            if flops.params_matmul(model) < smallest:
                continue
            config = self.variant.config(
                model, 0, eval_tokens=ladder.members[0].config.eval_tokens, seed=self.seed
            )
            per_token = 1 / self.speed.tokens_per_second(config)
            eval_seconds = self.speed.eval_seconds(config, self.corpus)
            for k in range(COUNTS):
                steps = GOOD_STEPS * 2**k
                counts = [n * config.batch_tokens for n in (steps // 2, steps) if n >= GOOD_STEPS]
                found = member(config, counts[-BRANCHES:], per_token, eval_seconds)
                if self._fits(found, ladder) and (found.params, counts[-1]) not in made:
                    yield found

    def _fits(self, found: Member, ladder: Ladder) -> bool:
        """Whether the ladder's share still pays for it."""
        if self.budget.seconds is not None:
            return ladder.seconds + START_SECONDS + found.seconds <= self.budget.seconds
        assert self.budget.flops is not None
        return ladder.flops + found.flops <= self.budget.flops

    def _beside(self, found: Member, chosen: Sequence[Member], ladder: Ladder) -> bool:
        """Whether it can go with the chosen ones: no longer than the first, and paid for."""
        if self.budget.flops is not None:
            spent = ladder.flops + sum(m.flops for m in chosen)
            return spent + found.flops <= self.budget.flops
        return found.seconds <= chosen[0].seconds

    def _target_flops(self, ladder: Ladder, law: Fit) -> float:
        """What the final run will compute, if the ladder ends here."""
        if self.target.flops is not None:
            return self.target.flops - ladder.flops
        assert self.target.seconds is not None
        rate = JOINED_EFFICIENCY * ladder.packed * self.speed.flops_per_second(max(law.observations.params))
        return (self.target.seconds - ladder.seconds) * rate

    def _price(self, found: Member, size: float) -> float:
        """FLOPs that the final run, of that size, loses by it."""
        if self.budget.flops is not None:
            return found.flops
        # Of its seconds on one core the final run would have had that core's share.
        return found.seconds * JOINED_EFFICIENCY * self.speed.flops_per_second(size)


def _params(m: Member) -> float:
    return float(m.params)


def _tokens(m: Member) -> float:
    return float(m.token_counts[-1])


def _training_flops(m: Member) -> float:
    return flops.run_flops(m.config)
