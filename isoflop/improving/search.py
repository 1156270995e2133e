"""A study of Optuna's over shapes and representations: what looks best is built first, and measured.

A candidate is built only while its optimistic estimate breaks no limit and no measured model makes it
needless, and only if it fits into what is left of the budget. The study is told all of it: figures where they
were measured, else the best that they could be. First come those that are expected to add to the front,
most for what they cost; then what a multi-objective tree-structured Parzen estimator proposes (Ozaki et al.,
GECCO 2020), seeded anew for each trial by its number; then what is left.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from isoflop.improving.building import Healing
from isoflop.improving.front import excess
from isoflop.improving.probing import LOSS_TOKENS
from isoflop.improving.records import BUDGET, FAILURE, Candidate, Figures
from isoflop.improving.state import State, timed
from isoflop.transforms import TEACHER, Transform
from isoflop.transforms.shapes import smaller

if TYPE_CHECKING:
    import optuna

DATABASE = "improve.db"
SHAPE, FORM = "shape", "representation"  # what the study chooses
MISSES = 8  # proposals in a row of what is closed already, after which what is left is taken in order
MOST_DEATHS = 2  # of the process while it built a candidate, after which that has failed
FIRST_MEASURING = 10.0  # seconds that a measurement is taken to need before one was made
HEAL, MEASURE = "heal", "measure"  # parts of the budget
SAVED = "saved"  # the study's note on a trial that failed or was interrupted: the process did not die


class Search:
    """The trials of one search, what is open, and what it has cost so far."""

    def __init__(self, state: State, candidates: Sequence[Candidate], healing: Healing | None) -> None:
        self.state, self.candidates, self.healing = state, candidates, healing
        self.study = _study(state)
        self.deaths = self._left_open()
        self.heal_tokens = state.record.heal_tokens or 0
        self.misses = 0
        self.slower = 1.0  # than expected were the healings so far

    def run(self) -> None:
        """Try candidates until none is open that fits into the budget. Raises Interrupted when asked to."""
        while left := self._open():
            trial, candidate = self._next(left)
            if candidate in left:
                self._try(trial, candidate)
            self.misses = 0 if candidate in left else self.misses + 1
            self._tell(trial, candidate)

    # -- choosing ---------------------------------------------------------------------------------------

    def _open(self) -> list[Candidate]:
        """Those worth building that fit into the budget; what measured evidence rules out is refused here."""
        found = []
        unmade = {t.candidate.shape_name for t in self.state.record.trials if t.error and t.part == HEAL}
        for candidate in self.candidates:
            if self.state.closed(candidate):
                continue
            at_best = self.state.known.at_best(candidate)
            if self.state.hopeless(candidate, at_best):
                continue
            if candidate.shape_name in unmade:
                self.state.refuse(candidate, FAILURE, "making its shape has failed", at_best)
            elif (cost := self._cost(candidate)) > self.state.left:
                unit = "s" if self.state.record.budget.flops is None else "FLOPs"
                why = f"it needs about {cost:.3g} {unit}, and {max(0.0, self.state.left):.3g} are left"
                self.state.refuse(candidate, BUDGET, why, at_best)
            else:
                found.append(candidate)
        return found

    def _next(self, left: Sequence[Candidate]) -> tuple[optuna.Trial, Candidate]:
        """Asks the study, which is told before what looks best, if anything does."""
        worth = {c.name: self._gain(c) / self._cost(c) for c in left}
        best = max(left, key=lambda c: worth[c.name])
        if worth[best.name] > 0 or self.misses >= MISSES:
            self.study.enqueue_trial({SHAPE: best.shape_name, FORM: best.form})
        self.study.sampler = _sampler(self.state.record.seed, len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        shapes, forms = ({c.shape_name: 0 for c in self.candidates}, {c.form: 0 for c in self.candidates})
        chosen = trial.suggest_categorical(SHAPE, [*shapes]), trial.suggest_categorical(FORM, [*forms])
        return trial, next(c for c in self.candidates if (c.shape_name, c.form) == chosen)

    def _gain(self, candidate: Candidate) -> float:
        """What it is expected to add to the front; nothing where it is expected to break a limit."""
        expected = self.state.known.expected(candidate)
        broken = excess(expected, self.state.record.limits, self.state.start.loss)
        return 0.0 if broken else self.state.gain(expected)

    def _cost(self, candidate: Candidate) -> float:
        """What building and measuring it is expected to take of the budget."""
        record, known = self.state.record, self.state.known
        unhealed = bool(candidate.shape) and candidate.shape_name not in known.healed
        shape = smaller(known.model, **candidate.shape)
        healing = self.healing if unhealed else None
        if record.budget.flops is not None:
            reading = self.state.reading(record.eval_tokens + LOSS_TOKENS)
            return reading + (healing.flops_of(shape, self.heal_tokens) if healing else 0.0)
        costs = [t.cost for t in record.trials if t.cost]
        measuring = float(np.mean(costs)) if costs else FIRST_MEASURING
        return measuring + (healing.seconds_of(shape, self.heal_tokens) * self.slower if healing else 0.0)

    # -- building ---------------------------------------------------------------------------------------

    def _try(self, trial: optuna.Trial, candidate: Candidate) -> None:
        """Build and measure a candidate: it is then a trial, or refused on the way."""
        deaths = self.deaths.get(candidate.name, 0)
        if deaths >= MOST_DEATHS:
            part = HEAL if candidate.shape else MEASURE
            self.state.fail(candidate, f"the process died {deaths} times while it was built", part)
            return
        try:
            self._build(candidate)
        except (KeyboardInterrupt, SystemExit):
            trial.set_user_attr(SAVED, True)
            raise

    def _build(self, candidate: Candidate) -> None:
        state, known = self.state, self.state.known
        expected, chain = known.expected(candidate), None
        with state.forgiving(candidate, HEAL):
            chain = self._shaped(candidate)
        if chain is None or state.hopeless(candidate, known.at_best(candidate)):
            return
        with state.forgiving(candidate, MEASURE):
            self._measure(candidate, chain, expected)

    def _measure(self, candidate: Candidate, chain: list[Transform], expected: Figures) -> None:
        """Export it, and measure it shortly, then wholly where that does not rule it out."""
        state, known = self.state, self.state.known
        before = state.record.seconds_total
        with state.part(MEASURE):
            built = state.builder.exported(candidate, chain, known.room(candidate, state.rise))
            probe = known.probes[candidate.form][1]
            if candidate.shape:
                probe = state.builder.probed(built, probe.threads)
        state.read(MEASURE, LOSS_TOKENS)
        if state.hopeless(candidate, known.probed(candidate, built.bytes, probe)):
            return
        with state.part(MEASURE):
            served = state.builder.served(built, probe.threads)
        state.read(MEASURE, state.record.eval_tokens)
        cost = state.record.seconds_total - before
        made = state.tried(candidate, built, served, expected=expected, cost=cost)
        state.add(made)
        state.builder.progress.log(
            f"{candidate.name}: {built.bytes:,} bytes, {1000 * timed(served):.3f} ms a token, loss "
            f"{made.change / state.start.loss:+.2%}"
        )

    def _shaped(self, candidate: Candidate) -> list[Transform]:
        """Its shape, healed. What that takes tells of the next ones."""
        state, tokens = self.state, self.heal_tokens
        known = {t.id for t in state.builder.project.all("transform", Transform)}
        before = state.record.seconds.get(HEAL, 0.0)
        with state.part(HEAL):
            chain = state.builder.shaped(candidate, tokens)
        new = [t for t in chain if t.id not in known]
        if new:
            state.computed(HEAL, sum(t.flops_total for t in new))
        if chain:
            self._healed(candidate, chain[-1])
        if len(new) == len(chain) > 0 and self.healing is not None:
            took = state.record.seconds[HEAL] - before
            self.slower = took / self.healing.seconds_of(
                smaller(state.known.model, **candidate.shape), tokens
            )
        return chain

    def _healed(self, candidate: Candidate, last: Transform) -> None:
        """The loss of its shape, by the input's in the same pass, so that engines do not matter."""
        teacher = next(s.scores for s in last.sources if s.role == TEACHER)
        assert teacher is not None
        loss = self.state.known.loss + last.after.loss - teacher.loss
        self.state.known.healed[candidate.shape_name] = loss
        self.state.change(healed=dict(self.state.known.healed))

    # -- the study --------------------------------------------------------------------------------------

    def _tell(self, trial: optuna.Trial, candidate: Candidate) -> None:
        """Figures of the candidate: measured, or the best that it could have; none where it failed."""
        import optuna

        tried = next((t for t in self.state.record.trials if t.candidate == candidate), None)
        refused = next((r.figures for r in self.state.record.refused if r.candidate == candidate), None)
        figures = tried.figures if tried is not None else refused
        if figures is None:
            trial.set_user_attr(SAVED, True)
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        broken = excess(figures, self.state.record.limits, self.state.start.loss)
        for name in Figures.model_fields:
            trial.set_constraint(name, broken.get(name, 0.0))
        self.study.tell(trial, [figures.loss, figures.bytes, figures.seconds])

    def _left_open(self) -> dict[str, int]:
        """How often each candidate was being built when the process died; what was open is closed."""
        import optuna

        deaths: dict[str, int] = {}
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state == optuna.trial.TrialState.RUNNING:
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            open_ = trial.state in (optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.FAIL)
            if open_ and SAVED not in trial.user_attrs and FORM in trial.params:
                name = f"{trial.params[SHAPE]}; {trial.params[FORM]}"
                deaths[name] = deaths.get(name, 0) + 1
        return deaths


def _study(state: State) -> optuna.Study:
    """The search's study, made if need be."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it would say, the progress says
    return optuna.create_study(
        storage=f"sqlite:///{(state.builder.project.folder / DATABASE).absolute()}",
        study_name=state.record.id, load_if_exists=True, directions=["minimize"] * 3,
    )  # fmt: skip


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """For one trial, whatever this process has sampled before."""
    import optuna

    mixed = np.random.SeedSequence((seed, number)).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(n_startup_trials=0, multivariate=True, seed=int(mixed))
