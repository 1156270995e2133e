"""Is a change of the recipe worth it? The same small runs with and without it, compared pair by pair."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from isoflop import flops
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.errors import BudgetError, LadderError, TrainError
from isoflop.families import shapes
from isoflop.gain import Pair, RecipeGain, paired
from isoflop.identity import run_id
from isoflop.laws import Observations, fit
from isoflop.laws.intervals import NOISE_PRIOR, check_level
from isoflop.places import Place, here
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Ladder, Member, ModelConfig, Record, Run, digest
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.variant import Variant

SHARES = (1.0, 3.0, 9.0)  # of the compute of a seed, smallest size first: a ninefold range tells a trend
HALVES = 2  # branches of each trunk, at half and all of its tokens: the law needs D to vary
FEWEST_STEPS = 30  # of any branch: shorter ones are warm-up and cooldown, of which no law has a best split


class Ablation(Record):
    """What a change was found to be worth, and from which runs."""

    corpus_id: str
    family: str
    changes: tuple[str, ...]
    seeds: int
    flops: float  # of the runs with the change
    flops_base: float  # of those without
    pairs: tuple[Pair, ...]
    speed: float  # tokens a second with the change, over those without; under whatever load there was
    gain: RecipeGain


class Arms(NamedTuple):
    """Members without and with the change, in the same order."""

    base: list[Member]
    changed: list[Member]


def ablate(
    project: Project, corpus: Corpus, budget: Budget, variant: Variant, *, seeds: int = 3, seed: int = 0,
    interval: float = 0.9, progress: Progress | None = None, place: Place | None = None,
) -> Ablation:  # fmt: skip
    """Train three sizes of the plain recipe and of `variant`, each with `seeds` seeds, and compare them.

    `budget` covers both arms. The plain runs of equal budgets and seeds are the same, and trained once for
    all changes. A changed run has the width at which it is nearest to its pair's size N, and the compute of
    its pair, to the nearest batch, whatever the change does to the cost of a token. Raises BudgetError when
    the budget is too small for a law, LadderError when runs failed, TrainError without a change.
    """
    progress, place = progress or Silent(), place or here()
    if not variant.changes:
        raise TrainError("there is no change to judge", hint="name one: isoflop ablate --set cooldown=0.5")
    if seeds < 1:
        raise TrainError(f"{seeds} seeds are too few", hint="give --seeds 3")
    check_level(interval)  # before anything is trained
    plain = Variant(variant.family)
    arms = _arms(project, corpus, budget, plain, variant, range(seed, seed + seeds), progress, place)
    both = (*arms.base, *arms.changed)
    ladder = Ladder(
        id=digest([m.to_json() for m in both]), corpus_id=corpus.id, members=both, packed=place.cores,
        seconds=sum(m.seconds for m in both) / place.cores, flops=sum(m.flops for m in both),
    )  # fmt: skip
    climbed = rungs.climb(project, corpus, ladder, role="ablation", progress=progress, place=place)
    runs = {r.id: r for r in climbed}
    base, changed = ([_runs(m, corpus, runs) for m in arm] for arm in arms)
    pairs = [
        _pair(scale, one, two)
        for trunks in zip(base, changed, strict=True)
        for scale, one, two in zip(_scales(trunks[0]), *trunks, strict=True)
    ]
    law = fit(Observations.of_runs(r for trunk in base for r in trunk), delta=1.345 * NOISE_PRIOR, seed=seed)
    found = Ablation(
        corpus_id=corpus.id, family=variant.family.name, changes=variant.changes, seeds=seeds,
        flops=sum(m.flops for m in arms.changed), flops_base=sum(m.flops for m in arms.base),
        pairs=tuple(pairs), speed=_speed(base, changed),
        gain=paired(law, pairs, interval=interval, seed=seed),
    )  # fmt: skip
    project.put("ablation", found, digest([corpus.id, budget.model_dump(), seeds, seed, variant.name]))
    return found


def _arms(
    project: Project, corpus: Corpus, budget: Budget, plain: Variant, variant: Variant, seeds: Sequence[int],
    progress: Progress, place: Place,
) -> Arms:  # fmt: skip
    """The members of both arms; those of the plain one are kept, as measured speeds would vary them."""
    key = digest(["ablation", corpus.id, budget.model_dump(), len(seeds), seeds[0], plain.name])
    kept = project.get("ablation-base", key, Ladder)
    if kept is None:
        base = _plain_members(project, corpus, budget, plain, seeds, progress, place)
        kept = Ladder(
            id=key, corpus_id=corpus.id, members=tuple(base), packed=place.cores, seconds=0.0,
            flops=sum(m.flops for m in base),
        )  # fmt: skip
        project.put("ablation-base", kept, key)
    return Arms(list(kept.members), [_alike(m, corpus, variant) for m in kept.members])


def _plain_members(
    project: Project, corpus: Corpus, budget: Budget, plain: Variant, seeds: Sequence[int],
    progress: Progress, place: Place,
) -> list[Member]:  # fmt: skip
    smallest = shapes(corpus.vocab_size, largest=1, family=plain)[0]
    pilot = plain.config(smallest, 0)
    speed = rungs.measure(project, corpus, [pilot], packed=place.cores, progress=progress, place=place)
    each = _flops(budget, speed, place.cores) / 2 / len(seeds)
    members = []
    for model, part in zip(_sizes(corpus, each, plain), SHARES, strict=True):
        config = plain.config(model, 0)
        tail = sum(1 / k for k in range(1, HALVES + 1))
        tokens = part / sum(SHARES) * each / flops.mean_flops_per_token(config, tail)
        steps = tokens / config.batch_tokens
        if (short := steps / HALVES) < FEWEST_STEPS:
            raise BudgetError(
                f"{budget} trains {flops.params_matmul(model):,} parameters for {short:.0f} and {steps:.0f} "
                f"steps, and a law needs runs of {FEWEST_STEPS}",
                hint=f"give {FEWEST_STEPS / max(short, 1):.2g} times the budget (--budget), or fewer seeds "
                "(--seeds)",
            )
        counts = [int(steps / k) * config.batch_tokens for k in range(HALVES, 0, -1)]
        seconds = 1 / speed.tokens_per_second(config)
        members += [rungs.member(config.model_copy(update={"seed": s}), counts, seconds, 0.0) for s in seeds]
    return members


def _flops(budget: Budget, speed: SpeedModel, cores: int) -> float:
    if budget.flops is not None:
        return budget.flops
    return (budget.seconds or 0.0) * cores * speed.flops_per_second(min(speed.sizes))


def _sizes(corpus: Corpus, each: float, plain: Variant) -> list[ModelConfig]:
    """Three shapes near the best ones for their shares, each above the one before."""
    found: list[ModelConfig] = []
    for part in SHARES:
        wanted = math.sqrt(part / sum(SHARES) * each / (6 * rungs.TOKENS_PER_PARAM))
        known = shapes(corpus.vocab_size, largest=int(4 * wanted) + 1, family=plain)
        while len(known) <= len(found):
            known = shapes(corpus.vocab_size, largest=4 * flops.params_matmul(known[-1]), family=plain)
        above = known[known.index(found[-1]) + 1 :] if found else known
        found.append(min(above, key=lambda m: abs(math.log(flops.params_matmul(m) / wanted))))
    return found


def _alike(plain: Member, corpus: Corpus, variant: Variant) -> Member:
    """The changed member of the size nearest to a plain one's, with its compute branch by branch."""
    before = plain.config
    known = shapes(corpus.vocab_size, largest=4 * plain.params, family=variant)
    model = min(known, key=lambda m: abs(math.log(flops.params_matmul(m) / plain.params)))
    config = variant.config(model, 0, seed=before.seed)
    cost = flops.mean_flops_per_token(config) * config.batch_tokens
    compute = [flops.run_flops(before.model_copy(update={"tokens": t})) for t in plain.token_counts]
    counts = [max(1, round(c / cost)) * config.batch_tokens for c in compute]
    seconds = plain.seconds / plain.flops * flops.mean_flops_per_token(config)
    return rungs.member(config, counts, seconds, 0.0)


def _runs(member: Member, corpus: Corpus, runs: dict[str, Run]) -> list[Run]:
    """A member's branches, shortest first. Raises LadderError when one is missing."""
    ids = [run_id(member.config.model_copy(update={"tokens": t}), corpus) for t in member.token_counts]
    if missing := [i for i in ids if i not in runs]:
        raise LadderError(
            f"run {missing[0]} of {member.params:,} parameters failed, and pairs need both runs",
            hint="mend the cause and run the same command again: finished runs are kept",
        )
    return [runs[i] for i in ids]


def _scales(trunk: Sequence[Run]) -> list[int]:
    """Numbers that runs share which are alike in size and tokens."""
    return [int(r.flops) for r in trunk]


def _pair(scale: int, one: Run, two: Run) -> Pair:
    return Pair(
        trunk=one.trunk, scale=scale, params=one.params_matmul, tokens=one.tokens, flops=one.flops,
        flops_other=two.flops, loss=one.loss, loss_other=two.loss,
    )  # fmt: skip


def _speed(base: Sequence[Sequence[Run]], changed: Sequence[Sequence[Run]]) -> float:
    """Seconds that the plain runs took a FLOP over those that the changed ones took."""
    one, two = (
        sum(r.seconds_train for t in arm for r in t) / sum(r.flops_spent for t in arm for r in t)
        for arm in (base, changed)
    )
    return one / two
