"""A budgeted search over the few values that the recipe's rules leave open, for text unlike ours.

    layout -> search: trials, most ended early -> comparison with the recipe, by other seeds -> verdict

Trials are runs in the ledger like any other, of the role "tune": nothing is trained twice, and no law is
fitted to them. It can be killed at any moment; the same call goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from isoflop.budget import Budget
from isoflop.errors import TrainError
from isoflop.families import shapes
from isoflop.interrupt import heeded
from isoflop.packed import Asked
from isoflop.places import Place, here
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Member, ModelConfig, Run, digest
from isoflop.store import Project
from isoflop.trials import Tuning
from isoflop.tuning.crew import Crew, Failure
from isoflop.tuning.layout import FEWEST_SEEDS, Layout, lay_out
from isoflop.tuning.search import Search, require_optuna
from isoflop.tuning.values import DEFAULT, chosen
from isoflop.tuning.verdict import verdict
from isoflop.variant import DEFAULT as RECIPE
from isoflop.variant import Variant


def tune(
    project: Project, corpus: Corpus, budget: Budget, *, values: Sequence[str] = DEFAULT,
    width: int | None = None, trials: int | None = None, seeds: int = FEWEST_SEEDS, seed: int = 0,
    workers: int | None = None, variant: Variant = RECIPE, progress: Progress | None = None,
    place: Place | None = None,
) -> Tuning:  # fmt: skip
    """Search `values` around the recipe's own within `budget`; the answer, which is also in the ledger.

    The recipe is that of `variant`. The models are of the family's smallest width, or of `width`; `workers`
    of them (None: one a core of the place) are trained side by side. The first trial is the recipe's own; the
    best is compared with it by `seeds` runs of each. With one worker and a budget of FLOPs everything depends
    on `seed` alone, wherever it is trained.

    Raises TrainError for an unknown value, without Optuna, or when no trial ends with a finite loss;
    BudgetError when the budget is too little; Interrupted, saved, at Ctrl-C.
    """
    progress, place = progress or Silent(), place or here()
    workers = workers or place.cores
    require_optuna()
    model, names = _shape(variant, corpus, width), chosen(values, variant.changes)
    shape = model.model_dump(mode="json")
    asked = [corpus.id, shape, budget.model_dump(), names, trials, seeds, seed, workers]
    key = digest([*asked, *variant.changes])
    kept = project.get("tuning", key, Tuning)
    if kept is not None and kept.sentence:
        progress.log("this tuning is done; nothing to do")
        return kept
    layout = lay_out(
        project, corpus, budget, key=key, model=model, values=names, trials=trials, seeds=seeds, seed=seed,
        workers=workers, variant=variant, progress=progress, place=place,
    )  # fmt: skip
    return carry_out(project, layout, progress, place)


def carry_out(project: Project, layout: Layout, progress: Progress, place: Place | None = None) -> Tuning:
    """Search and compare as laid out; what the ledger has is not trained again. Raises as `tune`."""
    search = Search(project, layout)
    with heeded(progress) as pressed:
        crew = Crew(project, layout.corpus, layout.workers, progress, pressed, place or here())
        found = _searched(search, crew)
        runs = Comparison(search, found).run(crew) if found.best else {}
        done = _answered(search, found, runs)
    project.put("tuning", done, done.id)
    return done


def _shape(variant: Variant, corpus: Corpus, width: int | None) -> ModelConfig:
    if width is None:
        return shapes(corpus.vocab_size, largest=1, family=variant)[0]
    if width <= 0:
        raise TrainError(f"a width of {width} is not above zero", hint="e.g. --width 96")
    return variant.shape(width, corpus.vocab_size)


def _searched(search: Search, crew: Crew) -> Tuning:
    """The tuning with its trials and the best of them."""
    tuning, progress = search.tuning, crew.progress
    progress.log(
        f"up to {tuning.planned} trials of {tuning.token_counts[-1]:,} tokens, "
        f"then the best and the recipe with {len(tuning.seeds)} other seeds"
    )
    progress.start("tune", search.expected_flops, "FLOPs")
    trials = search.run(crew)
    done = [t for t in trials if t.state == "done"]
    if not done:
        raise TrainError(
            f"none of {len(trials)} trials ended with a finite loss",
            hint="look at the text, or search other values",
        )
    best = min(done, key=lambda t: t.losses[-1])
    progress.finish("tune", f"{len(trials)} trials, the best is {best.number} with {best.losses[-1]:.4f}")
    return tuning.model_copy(update={"trials": tuple(trials), "best": best.number})


class Comparison:
    """Whole runs of the recipe's values and the best trial's, with seeds that the search has not seen."""

    def __init__(self, search: Search, tuning: Tuning) -> None:
        self.search, self.tuning = search, tuning
        self.runs: dict[tuple[int, int], Run | None] = {}  # by trial and seed; None: it failed
        self.left = [(number, seed) for seed in tuning.seeds for number in (0, tuning.best)]

    def run(self, crew: Crew) -> dict[tuple[int, int], Run | None]:
        """Train what the ledger does not have."""
        member = self._member(*self.left[0])
        crew.progress.start("compare", len(self.left) * member.flops, "FLOPs")
        crew.work("compare", self._take, self._tell)
        crew.progress.finish("compare", f"{len(self.runs)} runs")
        return self.runs

    def _member(self, number: int, seed: int) -> Member:
        config = self.search.configs[number].model_copy(update={"seed": seed})
        return self.search.layout.member(config, self.tuning.token_counts[-1:])

    def _take(self) -> Asked | None:
        while self.left:
            number, seed = self.left.pop(0)
            member = self._member(number, seed)
            asked = Asked(f"trial {number}, seed {seed}", number, member, 0)
            done = self.search.known(member)[0]
            if done is None:
                return asked
            self._tell(asked, done)
        return None

    def _tell(self, asked: Asked, result: Run | Failure) -> None:
        run = self.search.keep(result)
        self.runs[asked.number, asked.member.config.seed] = run
        self.search.discard(asked.member)


def _answered(search: Search, tuning: Tuning, compared: dict[tuple[int, int], Run | None]) -> Tuning:
    """The tuning with its verdict and what all of it cost."""
    losses = {
        number: [math.nan if (run := compared[number, s]) is None else run.loss for s in tuning.seeds]
        for number in {n for n, _ in compared}
    }
    judged = [run for run in compared.values() if run is not None]
    runs = [search.runs[id] for t in tuning.trials for id in t.runs] + judged
    spent = {
        "flops": sum(t.flops for t in tuning.trials) + sum(r.flops for r in judged),
        "seconds": sum(r.seconds_train + r.seconds_eval for r in runs),
    }
    return verdict(tuning, losses.get(0, []), losses.get(tuning.best, [])).model_copy(update=spent)
