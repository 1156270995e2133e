"""The ladder: which small runs to do, and doing them, packed one thread each over the cores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path

from loky.process_executor import TerminatedWorkerError

from isoflop import flops
from isoflop.budget import Budget
from isoflop.errors import BudgetError, LadderError
from isoflop.progress import Address, Progress, Relay, gather
from isoflop.recipe import recipe, shapes
from isoflop.records import Corpus, Ladder, Member, ModelConfig, Run, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel, probe_in, speed_key
from isoflop.train import train_trunk, trunk_id
from isoflop.workers import cores, pool

SIZES = 4  # the law has five parameters; four sizes with three token counts identify what can be
BRANCHES = 3  # token counts of a size, each half of the next
BRANCH_RATIO = 2.0
MIN_STEPS = 8  # of the shortest branch: below it a run says nothing about the law
TOKENS_PER_PARAM = 5.0  # D/N of the ladder's middle, near the measured optimum at this scale (docs/LOG.md)
START_SECONDS = 6.0  # a worker process imports torch
MIN_SHAPES_FITTED = 3
EVAL_SHARE = 0.1  # of a member's time, at most, goes into its held-out evaluations
MIN_EVAL_TOKENS = 8192


# -- deciding -----------------------------------------------------------------------------------------


def choose_shapes(vocab_size: int, member_flops: float) -> list[ModelConfig]:
    """SIZES consecutive shapes of the default family around the best size for `member_flops`.

    The middle is N = sqrt(C / (6 * TOKENS_PER_PARAM)); larger shapes than the budget of a member can
    train for MIN_STEPS in its shortest branch are left out.
    """
    middle = math.sqrt(member_flops / (6 * TOKENS_PER_PARAM))
    family = shapes(vocab_size, largest=int(64 * middle))
    nearest = min(range(len(family)), key=lambda i: abs(math.log(flops.params_matmul(family[i]) / middle)))
    # One size below the middle and two above: the budget's answer lies above.
    first = max(0, min(nearest - 1, len(family) - SIZES))
    return family[first : first + SIZES]


def members_for(
    models: Sequence[ModelConfig],
    seconds: Callable[[RunConfig], tuple[float, float]],
    each: Budget,
    seeds: Sequence[int],
) -> list[Member]:
    """One member a shape and seed, each spending the same; too large shapes are left out.

    `seconds(config)` gives training seconds a token and seconds of one evaluation.
    """
    members = []
    # One held-out sample for all, or their losses could not be compared: what the slowest can afford.
    eval_tokens = recipe(models[0], 0).eval_tokens
    while each.seconds is not None and eval_tokens > MIN_EVAL_TOKENS:
        slowest = max(seconds(recipe(m, 0, eval_tokens=eval_tokens))[1] for m in models)
        if BRANCHES * slowest <= EVAL_SHARE * each.seconds:
            break
        eval_tokens //= 2
    for model in models:
        for seed in seeds:
            config = recipe(model, 0, seed=seed, eval_tokens=eval_tokens)
            per_token, eval_seconds = seconds(config)
            # Trunk and cooldowns: D (1 - c) + c D (1 + 1/2 + 1/4) tokens for a longest branch D.
            tail = sum(BRANCH_RATIO**-k for k in range(BRANCHES))
            factor = 1 - config.cooldown + config.cooldown * tail
            if each.seconds is not None:
                tokens = (each.seconds - BRANCHES * eval_seconds) / (per_token * factor)
            else:
                assert each.flops is not None
                tokens = each.flops / (flops.flops_per_token(model) * factor)
            steps = int(tokens / config.batch_tokens)
            counts = [int(steps / BRANCH_RATIO**k) * config.batch_tokens for k in reversed(range(BRANCHES))]
            if counts[0] < MIN_STEPS * config.batch_tokens:
                continue
            spent = counts[-1] * factor
            members.append(
                Member(
                    config=config.model_copy(update={"tokens": counts[-1]}),
                    token_counts=tuple(counts),
                    params=flops.params_matmul(model),
                    flops=spent * flops.flops_per_token(model),
                    seconds=spent * per_token + BRANCHES * eval_seconds,
                    memory_bytes=flops.training_memory_bytes(model, config.batch_tokens),
                )
            )
    return members


def design(
    project: Project,
    corpus: Corpus,
    budget: Budget,
    *,
    seed: int,
    progress: Progress,
    key: str,
    workers: int | None = None,
) -> Ladder:
    """The ladder that `budget` (the ladder's own share) buys; kept under `key`, so asked twice it is one.

    Speeds are measured here, packed as the members will be. Raises BudgetError when the budget cannot
    train even three sizes.
    """
    kept = project.get("ladder", key, Ladder)
    if kept is not None:
        return kept
    packed = workers or cores()
    pilot = recipe(shapes(corpus.vocab_size, largest=1)[0], 0)
    speed = measure(project, corpus, [pilot], packed=packed, progress=progress)
    seeds = [seed + i for i in range(max(1, packed // SIZES))]
    count = SIZES * len(seeds)
    if budget.seconds is not None:
        share = max(0.0, budget.seconds - START_SECONDS) * packed / count
        each = Budget(seconds=share)
        rough = share * speed.tokens_per_second(pilot) * flops.flops_per_token(pilot.model)
    else:
        assert budget.flops is not None
        each = Budget(flops=budget.flops / count)
        rough = budget.flops / count
    if rough <= 0:
        raise BudgetError(
            f"{budget} for the ladder does not even start its processes",
            hint="give a larger budget (--budget), or a larger share of it to the ladder (--ladder-share)",
        )
    models = choose_shapes(corpus.vocab_size, rough)
    speed = measure(project, corpus, [recipe(m, 0) for m in models], packed=packed, progress=progress)
    members = members_for(
        models, lambda c: (1 / speed.tokens_per_second(c), speed.eval_seconds(c, corpus)), each, seeds
    )
    if len({m.params for m in members}) < MIN_SHAPES_FITTED:
        raise BudgetError(
            f"{budget} for the ladder trains only {len(members)} of the {MIN_SHAPES_FITTED} sizes "
            f"that a law needs for {MIN_STEPS} steps",
            hint="give a larger budget (--budget), or a larger share of it to the ladder (--ladder-share)",
        )
    wall = sum(m.seconds for m in members) / min(packed, len(members))
    return Ladder(
        id=key, corpus_id=corpus.id, members=tuple(members), packed=packed,
        seconds=max(wall, *(m.seconds for m in members)), flops=sum(m.flops for m in members),
    )  # fmt: skip


# -- measuring speeds ---------------------------------------------------------------------------------


def measure(
    project: Project, corpus: Corpus, configs: Sequence[RunConfig], *, packed: int, progress: Progress
) -> SpeedModel:
    """Speeds of these configurations with every core busy; those in the ledger are not measured again."""
    known = {t.key: t for t in project.all("throughput", Throughput)}
    found: list[Throughput] = []
    missing: list[RunConfig] = []
    for config in configs:
        wanted = speed_key(config, packed)
        if wanted in known:
            found.append(known[wanted])
        else:
            missing.append(config)
    if missing:
        progress.log(f"measuring the speed of {len(missing)} shape(s), {packed} side by side")
        # Every core must be busy while one is timed, so short lists are repeated.
        jobs = missing * math.ceil(packed / len(missing))
        with pool(packed) as executor:
            for measured in executor.map(probe_in, [corpus.folder] * len(jobs), jobs, [packed] * len(jobs)):
                project.put("throughput", measured, measured.key)
                found.append(measured)
    return SpeedModel(found)


# -- doing --------------------------------------------------------------------------------------------


def climb(project: Project, corpus: Corpus, ladder: Ladder, *, progress: Progress) -> list[Run]:
    """Train every member that the ledger does not have; returns all runs of the ladder.

    A member that fails is reported and does not stop the others. Raises LadderError when fewer sizes
    than a law needs are left.
    """
    trunks = {trunk_id(m.config, corpus): m for m in ladder.members}
    runs = [r for r in project.all("run", Run) if r.trunk in trunks]
    todo = [m for trunk, m in trunks.items() if trunk not in {r.trunk for r in runs}]
    todo.sort(key=lambda m: -m.seconds)  # longest first packs best
    failures: list[str] = []
    if todo:
        progress.start("ladder", sum(m.flops for m in todo), "FLOPs")
        for member, result in _train_all(project, corpus, todo, ladder.packed, progress):
            if isinstance(result, Exception):
                failures.append(f"{member.params:,} parameters: {result}")
                progress.log(f"ladder member of {member.params:,} parameters failed: {result}")
                continue
            for run in result:
                project.put("run", run, run.id)
            runs.extend(result)
        progress.finish("ladder", f"{len(runs)} runs of {len({r.params_matmul for r in runs})} sizes")
    if len({r.params_matmul for r in runs}) < MIN_SHAPES_FITTED:
        raise LadderError(
            f"only {len({r.params_matmul for r in runs})} sizes of the ladder finished; first failure: "
            + (failures[0] if failures else "none"),
            hint="mend the cause and run the same command again: finished members are kept",
        )
    return sorted(runs, key=lambda r: (r.params_matmul, r.tokens))


def _train_all(
    project: Project, corpus: Corpus, members: Sequence[Member], packed: int, progress: Progress
) -> Iterator[tuple[Member, list[Run] | Exception]]:
    """Each member with its runs or its error, as they finish; a dead worker costs only its own member."""
    left = list(members)
    while left:
        with gather(progress, "ladder") as address, pool(min(packed, len(left))) as executor:
            futures: dict[Future[list[Run]], Member] = {
                executor.submit(
                    _train_member,
                    m,
                    corpus.folder,
                    project.folder / "runs" / trunk_id(m.config, corpus),
                    address,
                ): m
                for m in left
            }
            broken = False
            for future in as_completed(futures):
                member, error = futures[future], future.exception()
                if isinstance(error, TerminatedWorkerError):
                    broken = True
                    continue
                left.remove(member)
                yield member, error if isinstance(error, Exception) else future.result()
        if broken:
            # loky cannot tell which member killed its worker: the longest that is left is given up.
            yield left.pop(0), LadderError("its process was killed", hint="look for a lack of memory")


def _train_member(member: Member, corpus_folder: Path, folder: Path, address: Address) -> list[Run]:
    """In a worker: one trunk with its branches."""
    from isoflop.corpus import load_corpus

    scale = float(flops.flops_per_token(member.config.model))
    relay = Relay(address, f"{member.params:,} parameters, seed {member.config.seed}", scale)
    return train_trunk(member.config, member.token_counts, load_corpus(corpus_folder), folder, progress=relay)
