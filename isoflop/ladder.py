"""The ladder: which small runs to do, and doing those that are missing."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

from isoflop import flops
from isoflop.budget import Budget
from isoflop.errors import BudgetError, LadderError, ProjectError
from isoflop.families import shapes
from isoflop.identity import run_id, tokens_of_trunk
from isoflop.interrupt import heeded
from isoflop.packed import folder_of
from isoflop.patience import check_patience
from isoflop.places import Place, here
from isoflop.progress import Progress
from isoflop.records import Corpus, Ladder, Member, ModelConfig, Run, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.variant import DEFAULT, Variant

FEWEST_SIZES = 3  # a law needs
MOST_BRANCHES, FEWEST_BRANCHES = 4, 2  # token counts of a size, each half of the next
# (sizes, fewest branches of each, whether larger sizes get less): the first whose every branch is good, else
# the best of those with enough runs, else the last, for budgets that are too small for them.
DESIGNS = ((4, 2, True), (3, 2, True), (3, 1, True), (3, 2, False))
FEWEST_RUNS = 7  # the law has five parameters
BRANCH_RATIO = 2.0
GOOD_STEPS = 150  # shorter branches are 2 to 3% off any power law (docs/LOG.md) ...
SMALLEST_GOOD_STEPS = 90  # ... those of the smallest size less so
OPENING_PARTS = (
    1 / 16,
    1 / 8,
    1 / 4,
    1 / 2,
    3 / 4,
)  # of the ladder's budget, that a growing ladder starts with
OPENING_MARGIN = 1.05  # of the good steps: speeds are not all measured yet
MIN_STEPS = 8  # of any branch, when the budget is that small
LONG_SHARE = 0.5  # of the ladder, at most, goes into the smallest size
START_SECONDS = 2.0  # of a member in a worker that has imported torch to measure speeds
MIN_SHAPES_FITTED = 2  # when members failed; with the weak prior on the exponents
EVAL_SHARE = 0.15  # of a member's time, at most, goes into its held-out evaluations
MIN_EVAL_TOKENS = 8192
LARGER_BUDGET = "give a larger budget (--budget), or a larger share of it to the ladder (--ladder-share)"
TOKENS_PER_PARAM = 5.0  # D/N of a member of middle size, near the measured optimum (docs/LOG.md)


# -- deciding -----------------------------------------------------------------------------------------


def choose_shapes(
    vocab_size: int, member_flops: float, sizes: int = DESIGNS[0][0], variant: Variant = DEFAULT
) -> list[ModelConfig]:
    """`sizes` consecutive shapes of the variant, the smallest first.

    The second is the best size for `member_flops`, N = sqrt(C / (6 * TOKENS_PER_PARAM)): the answer for
    the whole budget lies above it.
    """
    middle = math.sqrt(member_flops / (6 * TOKENS_PER_PARAM))
    smallest = flops.params_matmul(shapes(vocab_size, largest=1, family=variant)[0])
    found = shapes(vocab_size, largest=int(64 * max(middle, smallest)), family=variant)
    nearest = min(range(len(found)), key=lambda i: abs(math.log(flops.params_matmul(found[i]) / middle)))
    first = max(0, min(nearest - 1, len(found) - sizes))
    return found[first : first + sizes]


def shares(cores_each: float, sizes: int, tapered: bool = True) -> list[float]:
    """What each size spends, smallest size first, in units of the ladder's duration on one core.

    The smallest, where tokens are cheapest, is trained longest: how loss falls with D is what the law
    must carry furthest. The others, which tell how it falls with N, share what is left as 2 : 1, 3 : 2 : 1
    and so on when `tapered`, so that none is too short, else evenly.
    """
    parts = [min(1.0, LONG_SHARE * cores_each)]
    left = cores_each - parts[0]
    for weight in range(sizes - 1, 0, -1):
        # Of what is left: weight / (weight + ... + 1), or one of `weight` equal parts.
        parts.append(min(1.0, left * 2 / (weight + 1) if tapered else left / weight))
        left -= parts[-1]
    return parts


def branch_steps(steps: int, fewest: int = FEWEST_BRANCHES, good: int = SMALLEST_GOOD_STEPS) -> list[int]:
    """Lengths of the branches of a trunk of `steps`, shortest first; empty when it is too short.

    All but the `fewest` longest have `good` steps.
    """
    lengths = [int(steps / BRANCH_RATIO**k) for k in range(MOST_BRANCHES)]
    kept = [n for i, n in enumerate(lengths) if n >= (good if i >= fewest else MIN_STEPS)]
    return kept[::-1] if len(kept) >= fewest else []


def shared_eval_tokens(
    models: Sequence[ModelConfig],
    seconds: Callable[[RunConfig], tuple[float, float]],
    each: Sequence[Budget],
    variant: Variant = DEFAULT,
) -> int:
    """One held-out sample for all, or their losses could not be compared: what each can afford."""
    tokens = variant.config(models[0], 0).eval_tokens
    while tokens > MIN_EVAL_TOKENS:
        costs = [FEWEST_BRANCHES * seconds(variant.config(m, 0, eval_tokens=tokens))[1] for m in models]
        if all(b.seconds is None or c <= EVAL_SHARE * b.seconds for c, b in zip(costs, each, strict=True)):
            break
        tokens //= 2
    return tokens


def members_for(
    models: Sequence[ModelConfig],
    seconds: Callable[[RunConfig], tuple[float, float]],
    each: Sequence[Budget],
    seeds: Sequence[int],
    fewest: int = FEWEST_BRANCHES,
    variant: Variant = DEFAULT,
) -> list[Member]:
    """One member a shape and seed, each within its budget of `each`; too large shapes are left out.

    `seconds(config)` gives training seconds a token and seconds of one evaluation.
    """
    eval_tokens = shared_eval_tokens(models, seconds, each, variant)
    members = []
    for model, budget in zip(models, each, strict=True):
        good = _good_steps(model == models[0])
        config = variant.config(model, 0, eval_tokens=eval_tokens)
        per_token, eval_seconds = seconds(config)
        lengths: list[int] = []
        for branches in range(MOST_BRANCHES, 0, -1):  # the fewer, the longer the longest can be
            if budget.seconds is not None:
                tokens = (budget.seconds - branches * eval_seconds) / per_token
            else:
                assert budget.flops is not None
                tokens = budget.flops / flops.mean_flops_per_token(config)
            # Trunk and cooldowns: D (1 - c) + c D (1 + 1/2 + ...) tokens for a longest branch D.
            tail = sum(BRANCH_RATIO**-k for k in range(branches))
            dearer = flops.mean_flops_per_token(config, tail) / flops.mean_flops_per_token(config)
            lengths = branch_steps(int(tokens / dearer / config.batch_tokens), fewest, good)
            if len(lengths) >= branches:
                break
        counts = [n * config.batch_tokens for n in lengths]
        if not counts:
            continue
        members += [
            member(config.model_copy(update={"seed": seed}), counts, per_token, eval_seconds)
            for seed in seeds
        ]
    return members


def member(
    config: RunConfig, token_counts: Sequence[int], seconds_per_token: float, eval_seconds: float
) -> Member:
    """A trunk with branches of `token_counts`, shortest first, and what it will cost.

    Raises TrainError when its configuration has patience.
    """
    check_patience(config, token_counts)
    compute = flops.training_flops(config, *tokens_of_trunk(token_counts, config))
    return Member(
        config=config.model_copy(update={"tokens": token_counts[-1]}),
        token_counts=tuple(token_counts),
        params=flops.params_matmul(config.model),
        flops=compute,
        seconds=compute / flops.mean_flops_per_token(config) * seconds_per_token
        + len(token_counts) * eval_seconds,
        memory_bytes=flops.training_memory_bytes(config),
    )


def design(
    project: Project,
    corpus: Corpus,
    budget: Budget,
    *,
    seed: int,
    progress: Progress,
    key: str,
    workers: int | None = None,
    growing: bool = False,
    variant: Variant = DEFAULT,
    place: Place | None = None,
) -> Ladder:
    """The ladder that `budget` (the ladder's own share) buys; kept under `key`, so asked twice it is one.

    Speeds are measured here, packed as the members will be. A `growing` ladder, to which runs will be added
    (`extend`), starts with the smallest part of the budget that buys good branches. Raises BudgetError when
    the budget cannot train even three sizes.
    """
    kept = project.get("ladder", key, Ladder)
    if kept is not None:
        return kept
    place = place or here()
    packed = workers or place.cores
    pilot = variant.config(shapes(corpus.vocab_size, largest=1, family=variant)[0], 0)
    speed = measure(project, corpus, [pilot], packed=packed, progress=progress, place=place)
    if growing:
        budget = _opening(budget, packed, seed, speed, corpus, variant)
    members: list[Member] = []
    enough: list[list[Member]] = []
    for wanted in DESIGNS:
        models, each, seeds = _laid_out(wanted, budget, packed, seed, speed, corpus, variant)
        pilots = [variant.config(m, 0) for m in models]
        speed = measure(project, corpus, pilots, packed=packed, progress=progress, place=place)
        members = members_for(models, partial(_costs, speed, corpus), each, seeds, wanted[1], variant)
        if _is_enough(members, models, seeds):
            enough.append(members)
            if _goodness(members) >= 1:
                break
    members = max(enough, key=_goodness, default=members)
    if len({m.params for m in members}) < FEWEST_SIZES:
        raise BudgetError(
            f"{budget} for the ladder trains only {len({m.params for m in members})} of the {FEWEST_SIZES} "
            f"sizes that a law needs for {MIN_STEPS} steps",
            hint=LARGER_BUDGET,
        )
    return Ladder(
        id=key, corpus_id=corpus.id, members=tuple(members), packed=packed,
        seconds=max(sum(m.seconds for m in members) / packed, *(m.seconds for m in members)),
        flops=sum(m.flops for m in members), changes=variant.changes,
    )  # fmt: skip


def _laid_out(
    wanted: tuple[int, int, bool], budget: Budget, packed: int, seed: int, speed: SpeedModel, corpus: Corpus,
    variant: Variant,
) -> tuple[list[ModelConfig], list[Budget], list[int]]:  # fmt: skip
    """Shapes of one of `DESIGNS`, what each may spend, and the seeds of each."""
    sizes, _, tapered = wanted
    seeds = [seed + i for i in range(max(1, packed // sizes))]
    parts = shares(packed / len(seeds), sizes, tapered)
    each, rough = _budgets(budget, parts, len(seeds), speed)
    if rough <= 0:
        raise BudgetError(f"{budget} for the ladder does not even start its processes", hint=LARGER_BUDGET)
    return choose_shapes(corpus.vocab_size, rough, sizes, variant), each, seeds


def _opening(
    budget: Budget, packed: int, seed: int, speed: SpeedModel, corpus: Corpus, variant: Variant
) -> Budget:
    """The smallest part of the budget whose ladder is good with a margin, by the speeds known so far."""
    for part, wanted in product(OPENING_PARTS, DESIGNS[:3]):
        try:
            models, each, seeds = _laid_out(wanted, budget.share(part), packed, seed, speed, corpus, variant)
        except BudgetError:
            continue
        members = members_for(models, partial(_costs, speed, corpus), each, seeds, wanted[1], variant)
        if _is_enough(members, models, seeds) and _goodness(members) >= OPENING_MARGIN:
            return budget.share(part)
    return budget


def _is_enough(members: Sequence[Member], models: Sequence[ModelConfig], seeds: Sequence[int]) -> bool:
    """Whether every size and seed is there, with enough runs for the law."""
    runs = sum(len(m.token_counts) for m in members)
    return len(members) == len(models) * len(seeds) and runs >= FEWEST_RUNS


def _goodness(members: Sequence[Member]) -> float:
    """The shortest branch over what makes a good one: at 1 or more a law can rest on every run."""
    smallest = min(m.params for m in members)
    return min(m.token_counts[0] / m.config.batch_tokens / _good_steps(m.params == smallest) for m in members)


def _good_steps(smallest: bool) -> int:
    """The fewest steps of a good branch, of the smallest size or another."""
    return SMALLEST_GOOD_STEPS if smallest else GOOD_STEPS


def _budgets(
    budget: Budget, parts: Sequence[float], seeds: int, speed: SpeedModel
) -> tuple[list[Budget], float]:
    """What each size may spend, and about how many FLOPs the average member gets."""
    if budget.seconds is None:
        assert budget.flops is not None
        each = [Budget(flops=budget.flops * part / (sum(parts) * seeds)) for part in parts]
        return each, budget.flops / len(parts) / seeds
    wall = max(0.0, budget.seconds - START_SECONDS)
    rate = speed.flops_per_second(min(speed.sizes))
    return [Budget(seconds=wall * part) for part in parts], wall * sum(parts) / len(parts) * rate


def _costs(speed: SpeedModel, corpus: Corpus, config: RunConfig) -> tuple[float, float]:
    """Training seconds a token, and seconds of one evaluation."""
    return 1 / speed.tokens_per_second(config), speed.eval_seconds(config, corpus)


# -- measuring speeds ---------------------------------------------------------------------------------


def measure(
    project: Project, corpus: Corpus, configs: Sequence[RunConfig], *, packed: int, progress: Progress,
    place: Place | None = None,
) -> SpeedModel:  # fmt: skip
    """Speeds of these configurations with every core busy; those in the ledger are not measured again."""
    place = place or here()
    known = {t.key: t for t in project.all("throughput", Throughput)}
    found: list[Throughput] = []
    missing: list[RunConfig] = []
    for config in configs:
        wanted = config.speed_key(packed, place.machine)
        if wanted in known:
            found.append(known[wanted])
        else:
            missing.append(config)
    if missing:
        progress.log(f"measuring the speed of {len(missing)} shape(s), {packed} side by side")
        # Every core must be busy while one is timed, so short lists are repeated.
        jobs = missing * math.ceil(packed / len(missing))
        for measured in place.probe(corpus, jobs, packed):
            project.put("throughput", measured, measured.key)
            found.append(measured)
    return SpeedModel(found)


# -- doing --------------------------------------------------------------------------------------------


def climb(
    project: Project,
    corpus: Corpus,
    ladder: Ladder,
    *,
    role: str = "ladder",
    progress: Progress,
    place: Place | None = None,
) -> list[Run]:
    """Train every member that the ledger does not have; returns all runs of the ladder.

    A member that fails is reported and does not stop the others. Raises LadderError when fewer sizes
    than a law needs are left, ProjectError when the disk is full.
    """
    branches = [run_ids(m, corpus) for m in ladder.members]
    wanted = {id for ids in branches for id in ids}
    done = {r.id: r for r in project.all("run", Run) if r.id in wanted}
    answered = [r for r in done.values() if role == "ladder" != r.role]  # trained for another question
    if answered:
        _keep(project, answered, role, done)
    todo = [m for m, ids in zip(ladder.members, branches, strict=True) if not done.keys() >= ids]
    todo.sort(key=lambda m: -m.seconds)  # longest first packs best
    failures: list[str] = []
    if todo:
        # Heeded from before the first line on: whoever reads it may press.
        with project.ledger.kept_open(), heeded(progress) as pressed:
            progress.start("ladder", sum(m.flops for m in todo), "FLOPs")
            train_members = (place or here()).train_members
            for member, result in train_members(project, corpus, todo, ladder.packed, progress, pressed):
                if isinstance(result, ProjectError):
                    raise result  # the disk, which the others need as well
                if isinstance(result, Exception):
                    failures.append(f"{member.params:,} parameters: {result}")
                    progress.log(f"ladder member of {member.params:,} parameters failed: {result}")
                    continue
                _keep(project, result, role, done)
                shutil.rmtree(folder_of(project, corpus, member), ignore_errors=True)  # its checkpoints
        progress.finish(
            "ladder", f"{len(done)} runs of {len({r.params_matmul for r in done.values()})} sizes"
        )
    sizes = len({r.params_matmul for r in done.values()})
    if sizes < MIN_SHAPES_FITTED:
        raise LadderError(
            f"only {sizes} sizes of the ladder finished; first failure: "
            + (failures[0] if failures else "none"),
            hint="mend the cause and run the same command again: finished members are kept",
        )
    return sorted(done.values(), key=lambda r: (r.params_matmul, r.tokens))


def _keep(project: Project, runs: Sequence[Run], role: str, done: dict[str, Run]) -> None:
    """Put them into the ledger and among those that are done."""
    kept = {run.id: run.model_copy(update={"role": role}) for run in runs}
    project.put_all("run", kept)
    done |= kept


def run_ids(member: Member, corpus: Corpus) -> set[str]:
    """Of a member's branches."""
    return {run_id(member.config.model_copy(update={"tokens": t}), corpus) for t in member.token_counts}
