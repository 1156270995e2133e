"""Plans: from a budget and a fitted law to the model to train, written down before it is trained."""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop import flops
from isoflop.budget import Budget
from isoflop.errors import BudgetError, FitError
from isoflop.laws import Fit
from isoflop.laws.intervals import quantiles
from isoflop.progress import Progress
from isoflop.recipe import recipe, shapes
from isoflop.records import Corpus, Interval, Plan, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel, probe, speed_key

THREAD_EFFICIENCY = 0.85  # first guess of many threads against as many packed runs; then it is measured
COMPILE_FROM_SECONDS = 600.0  # shorter runs cannot earn back the 15-30 s of a cold compilation
MARGIN = 0.9  # of the time left: two threads of a shared machine were up to a fifth slower than measured
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
    project: Project, corpus: Corpus, fit: Fit, budget: Budget, *, key: str, fit_id: str, threads: int,
    seed: int, speed: SpeedModel, eval_tokens: int, progress: Progress,
) -> Plan:  # fmt: skip
    """The best model that `budget` (what is left for the final run) buys by `fit`; kept under `key`.

    `speed` holds the ladder's packed speeds, the first guess; the sizes that matter are then measured
    with all `threads`. `eval_tokens` is the held-out sample of the law's runs. Raises BudgetError when
    the budget is too small for any size.
    """
    kept = project.get("plan", key, Plan)
    if kept is not None:
        return kept
    # Sizes that the law has seen, and up to LARGER times beyond: below them it knows nothing of too small.
    measured = fit.observations.params
    largest = int(LARGER * max(measured))
    family = [
        recipe(m, 0, seed=seed, threads=threads, eval_tokens=eval_tokens)
        for m in shapes(corpus.vocab_size, largest=largest)
        if flops.params_matmul(m) >= min(measured)
    ]
    first = _Rater(corpus, fit, speed, THREAD_EFFICIENCY * threads)
    if budget.seconds is None:
        rater = first
    else:
        best = first.best(family, budget)
        near = family[max(0, best - 1) : best + 2]
        alone = measure_alone(project, corpus, near, progress)
        # One factor for all sizes: packed threads are steady, joined ones drift by a fifth within minutes.
        rater = _Rater(corpus, fit, speed, statistics.median(
            alone.tokens_per_second(c) / speed.tokens_per_second(c) for c in near
        ))  # fmt: skip
        family = _maybe_compiled(project, corpus, family, rater.best(family, budget), budget, progress)
    rated = rater.rate(family, budget)
    chosen = rated[rater.best(family, budget)]
    double = rater.rate(family, budget.share(2.0))[rater.best(family, budget.share(2.0))]
    made = _write(corpus, fit, budget, chosen, double, rated, key, fit_id)
    project.put("plan", made, key)
    return made


class _Rater:
    """Rates sizes under a budget by speed and law."""

    def __init__(self, corpus: Corpus, fit: Fit, speed: SpeedModel, factor: float) -> None:
        self.corpus, self.fit, self.speed, self.factor = corpus, fit, speed, factor

    def rate(self, family: Sequence[RunConfig], budget: Budget) -> list[Candidate]:
        """Every size with the tokens that the budget buys it; loss is inf where too few steps are left."""
        out = []
        for config in family:
            per_second = self.factor * self.speed.tokens_per_second(config)
            evaluation = self.speed.eval_seconds(config, self.corpus) / self.factor
            if budget.seconds is not None:
                tokens = (budget.seconds * MARGIN - evaluation) * per_second
            else:
                assert budget.flops is not None
                tokens = budget.flops / flops.flops_per_token(config.model)
            steps = int(tokens / config.batch_tokens)
            size = flops.params_matmul(config.model)
            counted = config.model_copy(update={"tokens": max(steps, 1) * config.batch_tokens})
            loss = float(self.fit.loss(size, counted.tokens)[0]) if steps >= MIN_STEPS else math.inf
            seconds = counted.tokens / per_second + evaluation
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
    project: Project, corpus: Corpus, configs: Sequence[RunConfig], progress: Progress
) -> SpeedModel:
    """Speeds of runs that have the machine to themselves; those in the ledger are not measured again."""
    known = {t.key: t for t in project.all("throughput", Throughput)}
    found = []
    for config in configs:
        measured = known.get(speed_key(config, 1))
        if measured is None:
            size = flops.params_matmul(config.model)
            progress.log(f"measuring the speed of {size:,} parameters on {config.threads} thread(s)")
            measured = probe(config, corpus, packed=1)
            project.put("throughput", measured, measured.key)
        found.append(measured)
    return SpeedModel(found)


def _maybe_compiled(
    project: Project, corpus: Corpus, family: list[RunConfig], best: int, budget: Budget, progress: Progress
) -> list[RunConfig]:
    """Compile the final run when, as measured, that buys more tokens than it costs."""
    if (budget.seconds or 0) < COMPILE_FROM_SECONDS or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return family
    compiled = family[best].model_copy(update={"compile": True})
    plain = measure_alone(project, corpus, [family[best]], progress).tokens_per_second(family[best])
    measure_alone(project, corpus, [compiled], progress)
    cost = {t.key: t for t in project.all("throughput", Throughput)}[speed_key(compiled, 1)]
    left = (budget.seconds or 0) - cost.compile_seconds
    if cost.tokens_per_second * left <= plain * (budget.seconds or 0):
        return family
    progress.log(f"compiling pays: {cost.tokens_per_second / plain:.2f}x for {cost.compile_seconds:.0f} s")
    return [c.model_copy(update={"compile": True}) if i == best else c for i, c in enumerate(family)]


def _write(
    corpus: Corpus, fit: Fit, budget: Budget, chosen: Candidate, double: Candidate,
    rated: Sequence[Candidate], key: str, fit_id: str,
) -> Plan:  # fmt: skip
    compute = float(flops.flops_per_token(chosen.config.model)) * chosen.config.tokens
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
        memory_bytes=flops.training_memory_bytes(chosen.config.model, chosen.config.batch_tokens),
        tokens_per_second=chosen.tokens_per_second, loss=loss.plain(),
        params_optimum=split[0], tokens_optimum=split[1], doubling_loss=doubled.plain(),
        doubling_saves=Interval(value=value, low=min(low, value), high=max(high, value), of="mean"),
        candidates=tuple(
            {"params": c.params, "tokens": c.config.tokens, "loss": c.loss, "seconds": c.seconds}
            for c in rated if math.isfinite(c.loss)
        ),
        notes=tuple(notes),
    )  # fmt: skip


def _notes(corpus: Corpus, chosen: Candidate, ratio: float, rated: Sequence[Candidate]) -> list[str]:
    """What the reader should know about this plan, in sentences."""
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
