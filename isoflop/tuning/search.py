"""A study of Optuna's: trials asked of it, trained branch by branch, told back.

Each trial is a constant-rate trunk with cooldown branches at a quarter, a half and all of its tokens: what it
is judged by early is the loss of a whole run, and not of a point on the way of a longer one. After each
branch the worse half of those that came so far ends (asynchronous successive halving, Li et al., arXiv
1810.05934); what is tried next is proposed by a tree-structured Parzen estimator (Bergstra et al., 2011).

One process asks and tells, so the study's database has one writer. It is SQLite: a killed process leaves
neither a lock nor half a line behind. The sampler is seeded anew for each trial, by its number: a search that
goes on after a kill proposes what it would have proposed.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.errors import ProjectError, TrainError
from isoflop.identity import run_id
from isoflop.packed import Asked, folder_of
from isoflop.records import Member, Run, RunConfig
from isoflop.store import Project
from isoflop.trials import Trial, Tuning
from isoflop.tuning.crew import Crew, Failure
from isoflop.tuning.layout import BRANCHES, HALVING, Layout, expected
from isoflop.tuning.values import suggest, with_values

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

DATABASE = "tune.db"
FEWEST_RANDOM, RANDOM_SHARE = 4, 1 / 4  # trials before the estimator proposes, of those planned
FAILED = "failed"  # the study's note on a trial whose loss was not finite


class Search:
    """The trials of one tuning: what the study and the ledger have of them, and what is still to do."""

    def __init__(self, project: Project, layout: Layout) -> None:
        self.project, self.layout, self.tuning = project, layout, layout.tuning
        self.runs = {run.id: run for run in project.all("run", Run)}
        self.open: dict[int, optuna.Trial] = {}  # by number
        self.reached: dict[int, int] = {}  # branches that each has behind it
        self.waiting: list[int] = []  # those whose next branch may be trained
        self.configs: dict[int, RunConfig] = {}  # of every trial
        self.costs: dict[int, float] = {}  # of every trial, as far as it came, in the budget's unit
        with _study_errors(project):
            self.study = _study(project, self.tuning)
            for frozen in self._frozen():
                self._reload(frozen)

    def run(self, crew: Crew) -> list[Trial]:
        """Try values until the trials that were planned are made, or no further one is paid for.

        Raises what `Crew.work` raises.
        """
        with _study_errors(self.project):
            crew.work("tune", self._take, self._tell)
            return [self._record(t) for t in self._frozen()]

    @property
    def expected_flops(self) -> float:
        """Of what is left of the search: the trials planned, less what is spent."""
        whole = self.layout.member(self.tuning.config, self.tuning.token_counts[-1:]).flops
        spent = sum(self._record(t).flops for t in self._frozen())
        return max(whole, self.tuning.planned * expected(self.tuning.config)[0] * whole - spent)

    # -- asking -----------------------------------------------------------------------------------------

    def _take(self) -> Asked | None:
        """The next branch to train. Those that the ledger has are told here."""
        while self.waiting or self._affords_one_more():
            number = self.waiting.pop(0) if self.waiting else self._ask()
            member, branch = self._member(number), self.reached[number]
            asked = Asked(f"trial {number}", number, member, branch)
            done = self.known(member)[branch]
            if done is None:
                return asked
            self._tell(asked, done)
        return None

    def _affords_one_more(self) -> bool:
        """Whether another trial could be trained to its end, and those that are open as well."""
        if not self.costs or len(self.costs) >= self.tuning.planned:
            return not self.costs
        spent = sum(cost for number, cost in self.costs.items() if number not in self.open)
        return spent + (len(self.open) + 1) * self.layout.trial_cost <= self.layout.search_budget

    def _ask(self) -> int:
        """Opens a trial; returns its number."""
        number = len(self.costs)
        self.study.sampler = _sampler(self.tuning, number)
        self._open(self.study.ask())
        self.reached[number] = 0
        return number

    def _reload(self, frozen: FrozenTrial) -> None:
        """A trial of an ended process. Where it was left open, what it had not come to is done now."""
        import optuna

        number, losses = frozen.number, _losses(frozen)
        self.configs[number] = trial_config(self.tuning, number, frozen.params)
        if frozen.state.name == "RUNNING":
            self.study.sampler = _sampler(self.tuning, number)
            self._open(optuna.Trial(self.study, frozen._trial_id))
        self.reached[number], failed = len(losses), FAILED in frozen.user_attrs
        done = [run for run in self.known(self._member(number))[: len(losses)] if run is not None]
        self.costs[number] = sum(map(self.layout.cost, done)) + failed * self._failure(number)
        if number not in self.open:
            return
        if failed:
            self._close(number, pruned=True)
        elif losses:
            self._judge(number, losses[-1])
        else:
            self.waiting.append(number)

    def _open(self, trial: optuna.Trial) -> None:
        """Let the trial choose, unless it has: the recipe's is chosen already."""
        for name in self.tuning.values:
            suggest(trial, name, self.tuning.config)
        self.open[trial.number] = trial
        self.configs[trial.number] = trial_config(self.tuning, trial.number, trial.params)
        self.costs.setdefault(trial.number, 0.0)

    # -- telling ----------------------------------------------------------------------------------------

    def _tell(self, asked: Asked, result: Run | Failure) -> None:
        """What became of a branch."""
        run, trial = self.keep(result), self.open[asked.number]
        if run is None:
            trial.set_user_attr(FAILED, True)
            self.costs[asked.number] += self._failure(asked.number)
            self._close(asked.number, pruned=True)  # to the sampler it is worse than any other
            return
        trial.report(run.loss, HALVING**asked.branch)
        self.costs[asked.number] += self.layout.cost(run)
        self.reached[asked.number] += 1
        self._judge(asked.number, run.loss)

    def _judge(self, number: int, loss: float) -> None:
        """Whether a trial, its last branch reported, goes on. The recipe's own always does."""
        hopeless = self.open[number].should_prune() and number > 0
        if self.reached[number] == BRANCHES:
            self._close(number, loss)
        elif hopeless:
            self._close(number, pruned=True)
        else:
            self.waiting.append(number)

    def _close(self, number: int, loss: float | None = None, *, pruned: bool = False) -> None:
        import optuna

        state = optuna.trial.TrialState.PRUNED if pruned else None
        self.study.tell(self.open.pop(number), loss, state=state)
        self.discard(self._member(number))

    # -- what there is ----------------------------------------------------------------------------------

    def _frozen(self) -> list[FrozenTrial]:
        """Every trial that was asked for."""
        return [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "WAITING"]

    def _member(self, number: int) -> Member:
        return self.layout.member(self.configs[number], self.tuning.token_counts)

    def _failure(self, number: int) -> float:
        """What the branch in which a trial failed cost at most."""
        counts = self.tuning.token_counts[: self.reached[number] + 1]
        before = self.layout.price(self.configs[number], counts[:-1]) if self.reached[number] else 0.0
        return self.layout.price(self.configs[number], counts) - before

    def known(self, member: Member) -> list[Run | None]:
        """The ledger's runs of its branches, shortest first."""
        configs = (member.config.model_copy(update={"tokens": t}) for t in member.token_counts)
        return [self.runs.get(run_id(config, self.layout.corpus)) for config in configs]

    def keep(self, result: Run | Failure) -> Run | None:
        """Put a run into the ledger, unless it is there; None when its loss was once not finite."""
        if not isinstance(result, Run):
            return None
        if result.id not in self.runs:
            self.project.put("run", result, result.id)
            self.runs[result.id] = result
        return result if result.rate_scale == 1.0 else None  # else it went on at half the rates

    def discard(self, member: Member) -> None:
        """Delete its checkpoints."""
        shutil.rmtree(folder_of(self.project, self.layout.corpus, member), ignore_errors=True)

    def _record(self, frozen: FrozenTrial) -> Trial:
        config, losses, failed = self.configs[frozen.number], _losses(frozen), FAILED in frozen.user_attrs
        state = {"COMPLETE": "done", "PRUNED": "pruned"}.get(frozen.state.name, "open")
        runs = [run for run in self.known(self._member(frozen.number))[: len(losses)] if run is not None]
        trained = self.tuning.token_counts[: len(losses) + failed]
        return Trial(
            number=frozen.number, values={name: getattr(config, name) for name in self.tuning.values},
            state="failed" if failed else state, losses=losses, runs=tuple(run.id for run in runs),
            flops=self.layout.member(config, trained).flops if trained else 0.0,
        )  # fmt: skip


def _losses(frozen: FrozenTrial) -> tuple[float, ...]:
    """By branch, shortest first."""
    return tuple(frozen.intermediate_values[k] for k in sorted(frozen.intermediate_values))


def trial_config(tuning: Tuning, number: int, values: dict[str, Any]) -> RunConfig:
    """The configuration of a trial: the first is the recipe's to the last digit."""
    return tuning.config if number == 0 else with_values(tuning.config, values)


def _study(project: Project, tuning: Tuning) -> optuna.Study:
    """The study of that name, made if need be, with the recipe's own values as its first trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it would say, the progress says
    study = optuna.create_study(
        storage=f"sqlite:///{(project.folder / DATABASE).absolute()}", study_name=tuning.id,
        load_if_exists=True,
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=HALVING),
    )  # fmt: skip
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({name: getattr(tuning.config, name) for name in tuning.values})
    return study


def _sampler(tuning: Tuning, number: int) -> optuna.samplers.BaseSampler:
    """For one trial, whatever this process has sampled before."""
    import optuna

    seed = np.random.SeedSequence((tuning.config.seed, number)).generate_state(1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            n_startup_trials=max(FEWEST_RANDOM, round(RANDOM_SHARE * tuning.planned)),
            multivariate=True, constant_liar=True, seed=int(seed),
        )  # fmt: skip


def require_optuna() -> None:
    """Raises TrainError where it is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        message = "a tuning needs optuna, which is not installed"
        raise TrainError(message, hint="install the extra: pip install 'isoflop[tune]'") from error


@contextmanager
def _study_errors(project: Project) -> Iterator[None]:
    """Say in a sentence what the study's database means."""
    import optuna
    from sqlalchemy.exc import DBAPIError

    try:
        yield
    except (optuna.exceptions.StorageInternalError, DBAPIError) as error:
        raise ProjectError(
            f"the study {project.folder / DATABASE} cannot be used: {error}",
            hint="check that its disk has room; or delete it: trials that were trained are in the ledger",
        ) from error
