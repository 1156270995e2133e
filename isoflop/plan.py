"""Plans: from a budget and a fitted law to the model to train, written down before it is trained."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoflop import flops
from isoflop.budget import Budget
from isoflop.devices import has_compiler
from isoflop.errors import BudgetError, FitError
from isoflop.families import shapes
from isoflop.laws import Fit
from isoflop.laws.intervals import quantiles
from isoflop.places import Place, here
from isoflop.progress import Progress
from isoflop.records import Corpus, Interval, Plan, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.variant import DEFAULT, Variant

JOINED_EFFICIENCY = 0.85  # first guess of one run on all cores against packed ones; then it is measured
# Shorter runs cannot earn back the 10-30 s of a cold compilation, which gains some 7% in float32; in 16 bits,
# whose products are faster, what it fuses is more of a step, and the gain some 25% (docs/LOG.md).
COMPILE_FROM_SECONDS, COMPILE_16_BITS_FROM_SECONDS = 600.0, 120.0
SLOW_CORE = 5e9  # FLOP/s that any core trains at, at least
MARGIN = 0.95  # of the time left is planned: speeds drift by some percent within minutes (docs/LOG.md)
MIN_STEPS = 50
LARGER = 16
EPOCHS_FREE = 4.0  # Muennighoff et al., arXiv 2305.16264: up to 4 epochs are worth nearly as much as new data


@dataclass(frozen=True)
class Candidate:
    """One size, and what the budget lets it see."""

    config: RunConfig
    params: int
    tokens_per_second: float
    seconds: float
    loss: float


def plan(
    project: Project, corpus: Corpus, fit: Fit, budget: Budget, *, key: str, fit_id: str, seed: int,
    speed: SpeedModel, eval_tokens: int, variant: Variant = DEFAULT, progress: Progress,
    place: Place | None = None,
) -> Plan:  # fmt: skip
    """The best model that `budget` (what is left for the final run) buys by `fit`; kept under `key`.

    `speed` holds the ladder's packed speeds, the first guess; the sizes that matter are then measured
    with the whole machine. `eval_tokens` is the held-out sample of the law's runs. Raises BudgetError when
    the budget is too small for any size.
    """
    kept = project.get("plan", key, Plan)
    if kept is not None:
        return kept
    place = place or here()
    # Sizes that the law has seen, and up to LARGER times beyond: below them it knows nothing of too small.
    measured = fit.observations.params
    largest = int(LARGER * max(measured))
    sizes = [
        place.whole(variant.config(m, 0, seed=seed, eval_tokens=eval_tokens))
        for m in shapes(corpus.vocab_size, largest=largest, family=variant)
        if flops.params_matmul(m) >= min(measured)
    ]
    rater = _Rater(corpus, fit, speed, {}, JOINED_EFFICIENCY * place.cores_alone, place)
    if budget.seconds is not None:
        start = time.perf_counter()
        rater, sizes = _measured(project, rater, sizes, budget, progress)
        budget = Budget(seconds=max(0.0, budget.seconds - (time.perf_counter() - start)))
    rated = rater.rate(sizes, budget)
    chosen = rated[rater.best(sizes, budget)]
    double = rater.rate(sizes, budget.share(2.0))[rater.best(sizes, budget.share(2.0))]
    made = _write(corpus, fit, budget, chosen, double, rated, key, fit_id)
    project.put("plan", made, key)
    return made


def _measured(
    project: Project, rater: _Rater, family: list[RunConfig], budget: Budget, progress: Progress
) -> tuple[_Rater, list[RunConfig]]:
    """The rater with factors measured around the size that comes out best, which is compiled if that pays."""
    measured: list[RunConfig] = []
    while family[best := rater.best(family, budget)] not in measured:
        near = family[max(0, best - 1) : best + 2]
        measured += [c for c in near if c not in measured]
        alone = measure_alone(project, rater.corpus, measured, progress, rater.place)
        by_layout: dict[tuple[int, int], list[float]] = {}
        for c in measured:
            found = alone.tokens_per_second(c) / rater.speed.tokens_per_second(c)
            by_layout.setdefault((c.ranks, c.threads), []).append(found)
        # One factor for the sizes of a layout: a neighbour that disturbs one measurement must not choose.
        factors = {layout: statistics.median(ratios) for layout, ratios in by_layout.items()}
        rater = replace(rater, factors=factors, factor=statistics.median(factors.values()))
    gained = compiling_pays(project, rater.corpus, family[best], budget.seconds or 0.0, progress, rater.place)
    if gained is not None:
        rater = replace(rater, compiled=gained)
        family = [c.model_copy(update={"compile": True}) if i == best else c for i, c in enumerate(family)]
    return rater, family


@dataclass(frozen=True)
class _Rater:
    """Rates sizes under a budget by speed and law."""

    corpus: Corpus
    fit: Fit
    speed: SpeedModel  # of packed runs
    factors: Mapping[tuple[int, int], float]  # a run that has the machine against one packed run, by layout
    factor: float  # the same for layouts (ranks, threads) that were not measured
    place: Place
    compiled: tuple[float, float] = (1.0, 0.0)  # of compiled sizes: speed over uncompiled, seconds it costs

    def rate(self, family: Sequence[RunConfig], budget: Budget) -> list[Candidate]:
        """Every size with the tokens that the budget buys it; loss is inf where too few steps are left."""
        out = []
        for config in family:
            faster, compiling = self.compiled if config.compile else (1.0, 0.0)
            factor = self.factors.get((config.ranks, config.threads), self.factor)
            per_second = factor * faster * self.speed.tokens_per_second(config)
            beside = compiling + self.speed.eval_seconds(config, self.corpus)
            if budget.seconds is not None:
                tokens = (budget.seconds * MARGIN - beside) * per_second
            else:
                assert budget.flops is not None
                tokens = budget.flops / flops.mean_flops_per_token(config)
            steps = int(tokens / config.batch_tokens)
            size = flops.params_matmul(config.model)
            counted = config.model_copy(update={"tokens": max(steps, 1) * config.batch_tokens})
            loss = float(self.fit.loss(size, counted.tokens)[0]) if steps >= MIN_STEPS else math.inf
            seconds = counted.tokens / per_second + beside
            out.append(Candidate(counted, size, per_second, seconds, loss))
        return out

    def best(self, family: Sequence[RunConfig], budget: Budget) -> int:
        """Index of the size with the lowest predicted loss."""
        losses = [c.loss for c in self.rate(family, budget)]
        if not np.isfinite(losses).any():
            raise BudgetError(
                f"the {budget} left for the final run are too few for {MIN_STEPS} steps of any size",
                hint="give a larger budget",
            )
        return int(np.argmin(losses))


def measure_alone(
    project: Project, corpus: Corpus, configs: Sequence[RunConfig], progress: Progress, place: Place
) -> SpeedModel:
    """Speeds of runs that have the machine to themselves; those in the ledger are not measured again."""
    known = {t.key: t for t in project.all("throughput", Throughput)}
    found = []
    for config in configs:
        measured = known.get(config.speed_key(1, place.machine))
        if measured is None:
            size = flops.params_matmul(config.model)
            progress.log(
                f"measuring the speed of {size:,} parameters in {config.ranks} process(es) "
                f"of {config.threads} thread(s)"
            )
            measured = place.probe_alone(config, corpus)
            project.put("throughput", measured, measured.key)
        found.append(measured)
    return SpeedModel(found)


def compiling_pays(
    project: Project, corpus: Corpus, config: RunConfig, seconds: float, progress: Progress, place: Place
) -> tuple[float, float] | None:
    """Speed over uncompiled and seconds of compilation, as measured, when that buys more tokens."""
    if seconds < _compile_from(config) or not has_compiler():
        return None
    compiled = config.model_copy(update={"compile": True})
    plain = measure_alone(project, corpus, [config], progress, place).tokens_per_second(config)
    fast = measure_alone(project, corpus, [compiled], progress, place).tokens_per_second(compiled)
    known = {t.key: t for t in project.all("throughput", Throughput)}
    cost = known[compiled.speed_key(1, place.machine)].compile_seconds
    if fast * (seconds - cost) <= plain * seconds:
        return None
    progress.log(f"compiling pays: {fast / plain:.2f}x for {cost:.0f} s")
    return fast / plain, cost


def _compile_from(config: RunConfig) -> float:
    """Seconds of a run that make it worth while to measure whether compiling pays."""
    return COMPILE_FROM_SECONDS if config.precision == "float32" else COMPILE_16_BITS_FROM_SECONDS


def compiled_if_it_pays(
    project: Project, corpus: Corpus, config: RunConfig, progress: Progress, place: Place
) -> RunConfig:
    """`config`, compiled where that makes its run end sooner.

    Speeds are measured once and kept, so that the same command comes to the same decision; runs that are
    short on the slowest of machines are decided without.
    """
    compute = flops.run_flops(config)
    if compute < _compile_from(config) * SLOW_CORE * config.ranks * config.threads:
        return config
    plain = measure_alone(project, corpus, [config], progress, place).tokens_per_second(config)
    gained = compiling_pays(project, corpus, config, config.tokens / plain, progress, place)
    return config if gained is None else config.model_copy(update={"compile": True})


def _write(
    corpus: Corpus, fit: Fit, budget: Budget, chosen: Candidate, double: Candidate,
    rated: Sequence[Candidate], key: str, fit_id: str,
) -> Plan:  # fmt: skip
    compute = flops.run_flops(chosen.config)
    loss = fit.predict(chosen.params, chosen.config.tokens)
    doubled = fit.predict(double.params, double.config.tokens)
    saves = fit.predict_draws(chosen.params, chosen.config.tokens) - fit.predict_draws(
        double.params, double.config.tokens
    )
    low, high = quantiles(saves[:, 0], 0.9)
    value = loss.value - doubled.value
    notes = [*_notes(corpus, chosen, loss.extrapolation, rated)]
    try:
        optimum = fit.optimum(compute)
        split = optimum.params, optimum.tokens
    except FitError as error:
        notes.append(error.message)
        split = tuple(
            Interval(value=v, low=0.0, high=math.inf, of="optimum")
            for v in (chosen.params, chosen.config.tokens)
        )  # type: ignore[assignment]
    return Plan(
        id=key, fit_id=fit_id, corpus_id=corpus.id, budget_seconds=budget.seconds, budget_flops=budget.flops,
        config=chosen.config, params=chosen.params, tokens=chosen.config.tokens, flops=compute,
        seconds=chosen.seconds,
        memory_bytes=flops.training_memory_bytes(chosen.config),
        tokens_per_second=chosen.tokens_per_second, loss=loss.plain(),
        params_optimum=split[0], tokens_optimum=split[1], doubling_loss=doubled.plain(),
        doubling_saves=Interval(value=value, low=min(low, value), high=max(high, value), of="mean"),
        candidates=tuple(
            {"params": c.params, "tokens": c.config.tokens, "loss": c.loss, "seconds": c.seconds}
            for c in rated if math.isfinite(c.loss)
        ),
        notes=tuple(notes),
    )  # fmt: skip


def _notes(corpus: Corpus, chosen: Candidate, ratio: float | None, rated: Sequence[Candidate]) -> list[str]:
    """What the reader should know about this plan, in sentences."""
    assert ratio is not None  # a law of the project's own runs knows its range
    notes = [f"The final run uses {ratio:.1f} times the compute of the largest run behind the law."]
    epochs = chosen.config.tokens / corpus.train_tokens
    if epochs > EPOCHS_FREE:
        notes.append(
            f"It sees the corpus {epochs:.1f} times; beyond {EPOCHS_FREE:.0f} times repeated text is worth "
            "clearly less than the law says. More text would help."
        )
    finite = [c for c in rated if math.isfinite(c.loss)]
    if chosen.params == max(c.params for c in finite):
        notes.append("The largest size considered came out best: a larger one may be better still.")
    if chosen.params == min(c.params for c in finite):
        notes.append("The smallest size of the law came out best: a smaller one may be better still.")
    close = [c.params for c in finite if c.loss < chosen.loss * 1.005 and c.params != chosen.params]
    if close:
        notes.append(
            "Within 0.5% of its predicted loss: "
            + ", ".join(f"{n:,}" for n in sorted(close))
            + " parameters."
        )
    return notes
