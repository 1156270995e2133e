"""A small real search: what it ends early, what it never trains twice, when it says to keep the recipe."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy import stats

from isoflop.budget import Budget
from isoflop.errors import BudgetError, ProjectError, TrainError
from isoflop.families import shapes
from isoflop.identity import run_id
from isoflop.interrupt import Interrupted
from isoflop.ladder import climb, member
from isoflop.packed import Asked, Take
from isoflop.progress import Progress, Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, Ladder, Run, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.trials import Trial, Tuning
from isoflop.tuning import carry_out
from isoflop.tuning.crew import Crew, Failure, Tell
from isoflop.tuning.layout import (
    BRANCHES,
    FEWEST_TRIALS,
    HALVING,
    MOST_TRIALS,
    TRIALS,
    Layout,
    Prices,
    expected,
)
from isoflop.tuning.search import Search
from isoflop.tuning.values import DEFAULT, VALUES, batches, chosen, with_values
from isoflop.tuning.verdict import in_doublings, paired, verdict

# One worker, so that everything depends on the seed alone.
CHILD = """
import sys
from pathlib import Path
from isoflop.corpus import load_corpus
from isoflop.progress import Silent
from isoflop.records import RunConfig
from isoflop.store import Project
from isoflop.tuning import carry_out
from test_tune import laid_out
corpus = load_corpus(Path(sys.argv[2]))
carry_out(Project(sys.argv[1]), laid_out(corpus, RunConfig.from_json(sys.argv[3])), Silent())
"""


def laid_out(
    corpus: Corpus, config: RunConfig, *, workers: int = 1, planned: int = 5, budget: float = 1e15
) -> Layout:
    """A tuning of two rates; trials of 10, 20 and 40 steps, within a budget of FLOPs."""
    counts = tuple(10 * HALVING**k * config.batch_tokens for k in range(BRANCHES))
    tuning = Tuning(
        id=f"tuning-{planned}", corpus_id=corpus.id, values=("lr_matrix", "lr_head"), planned=planned,
        config=config.model_copy(update={"tokens": counts[-1]}), token_counts=counts, seeds=(1, 2, 3),
    )  # fmt: skip
    return Layout(tuning, Budget(flops=budget), workers, speeds(config), corpus)


def speeds(config: RunConfig) -> SpeedModel:
    """50,000 tokens a second in training, 150,000 in scoring."""
    measured = Throughput(
        model=config.model, batch_tokens=config.batch_tokens, threads=1, packed=2, compile=False, params=1,
        tokens_per_second=5e4, eval_tokens_per_second=1.5e5, compile_seconds=0, memory_bytes=0, machine="m",
    )  # fmt: skip
    return SpeedModel([measured])


@pytest.fixture(scope="module")
def tuned(
    corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[RunConfig], tuple[Project, Tuning]]:
    """A search without a disturbance, done once."""
    made: list[tuple[Project, Tuning]] = []

    def of(config: RunConfig) -> tuple[Project, Tuning]:
        if not made:
            project = Project(tmp_path_factory.mktemp("tuned") / "project")
            made.append((project, carry_out(project, laid_out(corpus, config), Silent())))
        return made[0]

    return of


Tuned = Callable[[RunConfig], tuple[Project, Tuning]]


def times(project: Project) -> dict[str, float]:
    """Seconds of every run's training: trained again, it would take others."""
    return {r.id: r.seconds_train for r in project.all("run", Run)}


def test_the_first_trial_is_the_recipe_and_every_run_is_in_the_ledger(
    corpus: Corpus, small: RunConfig, tuned: Tuned
) -> None:
    project, done = tuned(small)
    assert [t.number for t in done.trials] == list(range(5))
    assert done.trials[0].values == {"lr_matrix": small.lr_matrix, "lr_head": small.lr_head}
    assert done.trials[0].state == "done"
    assert {t.state for t in done.trials} <= {"done", "pruned"}
    runs = {r.id: r for r in project.all("run", Run)}
    for trial in done.trials:
        config = with_values(small, trial.values) if trial.number else small
        counts = done.token_counts[: len(trial.losses)]
        assert trial.runs == tuple(run_id(config.model_copy(update={"tokens": t}), corpus) for t in counts)
        assert [runs[id].loss for id in trial.runs] == list(trial.losses)
        assert (trial.state == "done") == (len(trial.losses) == BRANCHES)
    assert {r.role for r in runs.values()} == {"tune"}
    assert done.flops == pytest.approx(sum(r.flops_spent for r in runs.values()))
    assert not list((project.folder / "runs").iterdir())  # the checkpoints
    assert done.best == min((t for t in done.trials if t.state == "done"), key=lambda t: t.losses[-1]).number
    assert Tuning.from_json(done.to_json()) == done == project.get("tuning", done.id, Tuning)


def test_values_within_their_range_and_none_outside(small: RunConfig, tuned: Tuned) -> None:
    _, done = tuned(small)
    for trial in done.trials:
        for name, value in trial.values.items():
            middle, factor = getattr(small, name), VALUES[name].factor
            assert middle / factor * 0.99 < value < middle * factor * 1.01
    assert len({t.values["lr_matrix"] for t in done.trials}) == len(done.trials)


def test_killed_it_goes_on_and_ends_as_if_it_had_not_been(
    corpus: Corpus, small: RunConfig, tuned: Tuned, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project")
    words = [sys.executable, "-c", CHILD, str(project.folder), str(corpus.folder), small.to_json()]
    child = subprocess.Popen(words, cwd=Path(__file__).parent)
    while child.poll() is None and len(times(project)) < 3:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "it ended before it was killed"
    before = times(project)
    done = carry_out(project, laid_out(corpus, small), Silent())
    assert before.items() <= times(project).items()
    straight = tuned(small)[1]
    assert done.model_copy(update={"seconds": 0.0}) == straight.model_copy(update={"seconds": 0.0})
    after = times(project)
    assert carry_out(project, laid_out(corpus, small), Silent()) == done
    assert times(project) == after


def test_without_the_study_the_runs_are_still_known(corpus: Corpus, small: RunConfig, tuned: Tuned) -> None:
    project, done = tuned(small)
    before = times(project)
    (project.folder / "tune.db").unlink()
    assert carry_out(project, laid_out(corpus, small), Silent()) == done
    assert times(project) == before


def test_a_hopeless_rate_ends_after_its_first_branch(
    corpus: Corpus, small: RunConfig, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project")
    layout = laid_out(corpus, small, workers=2, planned=3)
    search = Search(project, layout)
    for bad in ({"lr_matrix": small.lr_matrix / 8, "lr_head": small.lr_head / 8},
                {"lr_matrix": small.lr_matrix * 8, "lr_head": small.lr_head * 8}):  # fmt: skip
        search.study.enqueue_trial(bad)
    done = carry_out(project, layout, Silent())
    best, *bad_trials = done.trials
    assert best.state == "done"
    assert [(t.state, len(t.losses), len(t.runs)) for t in bad_trials] == [("pruned", 1, 1)] * 2
    assert all(t.losses[0] > best.losses[0] for t in bad_trials)
    assert len(project.all("run", Run)) == BRANCHES + 2
    assert (done.best, done.better) == (0, False)
    assert done.sentence == "Of 3 trials the recipe's own values are the best: keep them."


def test_interrupted_and_its_worker_killed_it_goes_on_from_its_checkpoint(
    corpus: Corpus, small: RunConfig, tuned: Tuned, tmp_path: Path
) -> None:
    project, layout = Project(tmp_path / "project"), laid_out(corpus, small, planned=1)
    crew = Crew(project, corpus, 1, Silent(), lambda: bool(times(project)))
    with pytest.raises(Interrupted):
        Search(project, layout).run(crew)
    before = times(project)
    assert before
    assert list((project.folder / "runs").glob("*/*.pt"))
    kill = Killer(lambda: len(times(project)) > len(before))
    (trial,) = Search(project, layout).run(Crew(project, corpus, 1, Silent(), lambda: False))
    kill.join()
    assert before.items() <= times(project).items()
    assert trial.losses == tuned(small)[1].trials[0].losses
    told: list[Run | Failure] = []
    jobs = [Asked("x", 0, layout.member(small.model_copy(update={"seed": 9}), [2000 * 256]), 0, deaths=1)]
    kill = Killer(lambda: list((project.folder / "runs").glob("*")))
    crew = Crew(project, corpus, 1, Silent(), lambda: False)
    crew.work("x", lambda: jobs.pop() if jobs else None, lambda job, result: told.append(result))
    kill.join()
    assert [str(error) for error in told] == ["its process was killed"]


class Killer(threading.Thread):
    """Kills a worker of this process once something is true."""

    def __init__(self, true: Callable[[], object]) -> None:
        super().__init__()
        self.true = true
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + 120
        while not self.true() and time.monotonic() < deadline:
            time.sleep(0.01)
        for child in psutil.Process().children():
            if "popen_loky" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                return


def test_the_recipes_own_trial_serves_the_ladder(corpus: Corpus, small: RunConfig, tuned: Tuned) -> None:
    project, done = tuned(small)
    before = times(project)
    config = done.config.model_copy(update={"model": small.model})
    known = member(config, done.token_counts, 1e-5, 0.1)
    other = small.model_copy(update={"model": small.model.model_copy(update={"d_ff": 32})})
    new = member(other, [10 * 256], 1e-5, 0.1)
    ladder = Ladder(id="l", corpus_id=corpus.id, members=(known, new), packed=1, seconds=1, flops=1)
    runs = climb(project, corpus, ladder, progress=Silent())
    assert {r.role for r in runs} == {"ladder"}
    assert set(done.trials[0].runs) < {r.id for r in runs}
    assert before.items() <= times(project).items()


# -- the search, on losses that a formula gives ---------------------------------------------------------


@dataclass
class Formula:
    """In place of a crew: as many jobs at once, and losses by a formula."""

    run: Run  # what all runs are like
    layout: Layout
    loss: Callable[[RunConfig], float]
    places: int = 1
    progress: Progress = field(default_factory=Silent)

    def work(self, stage: str, take: Take, tell: Tell) -> None:
        jobs: list[Asked] = []
        while True:
            while len(jobs) < self.places and (job := take()) is not None:
                jobs.append(job)
            if not jobs:
                return
            tell(jobs[0], self.result(jobs.pop(0)))

    def result(self, asked: Asked) -> Run | Failure:
        counts = asked.member.token_counts[: asked.branch + 1]
        config = asked.member.config.model_copy(update={"tokens": counts[-1]})
        loss = self.loss(config)
        if not math.isfinite(loss):
            return TrainError("the loss is not finite, twice", hint="lower the rates")
        spent = self.layout.member(config, counts).flops
        before = self.layout.member(config, counts[:-1]).flops if asked.branch else 0.0
        name = run_id(config, self.layout.corpus)
        update = {"id": name, "config": config, "loss": loss, "flops_spent": spent - before}
        return self.run.model_copy(update=update)


def bowl(config: RunConfig) -> float:
    """Lowest at three times the recipe's rate of matrices and a third of the head's; lr_head 0.03 fails."""
    far = math.log(config.lr_matrix / 0.12) ** 2 + math.log(config.lr_head / 0.0067) ** 2
    noise = float(np.random.default_rng(config.seed).normal(0, 0.001))
    return 3 + 0.1 * far + 1000 / config.tokens + noise if config.lr_head < 0.06 else math.nan


def searched(
    tuned: tuple[Project, Tuning], layout: Layout, folder: Path, loss: Callable[[RunConfig], float],
    places: int, monkeypatch: pytest.MonkeyPatch,
) -> Tuning:  # fmt: skip
    """The whole of a tuning, with losses by a formula."""
    crew = Formula(tuned[0].all("run", Run)[0], layout, loss, places)
    monkeypatch.setattr("isoflop.tuning.Crew", lambda *_: crew)
    return carry_out(Project(folder / f"project-{places}"), layout, Silent())


@pytest.mark.parametrize("places", [1, 4])
def test_a_search_finds_what_is_better_for_less_than_all_trials_in_full(
    corpus: Corpus, small: RunConfig, tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    places: int,
) -> None:  # fmt: skip
    layout = laid_out(corpus, small, planned=24, workers=places)
    done = searched(tuned(small), layout, tmp_path, bowl, places, monkeypatch)
    states = [t.state for t in done.trials]
    assert len(states) == 24
    assert {"done", "pruned", "failed"} == set(states)
    found = done.trials[done.best]
    assert abs(math.log(found.values["lr_matrix"] / 0.12)) < 0.6
    assert abs(math.log(found.values["lr_head"] / 0.0067)) < 0.6
    assert all(t.values["lr_head"] >= 0.06 for t in done.trials if t.state == "failed")
    assert sum(t.flops for t in done.trials) < 0.65 * 24 * layout.trial_cost
    assert done.better
    assert done.difference is not None
    assert done.difference.high < 0
    assert done.sentence.startswith(f"Trial {done.best} is better than the recipe with 3 other seeds: -0.")


def test_a_search_ends_within_its_budget(
    corpus: Corpus, small: RunConfig, tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = laid_out(corpus, small)
    judging = 6 * one.member(one.tuning.config, one.tuning.token_counts[-1:]).flops
    layout = laid_out(corpus, small, planned=24, budget=judging + 10 * one.trial_cost)
    done = searched(tuned(small), layout, tmp_path, bowl, 4, monkeypatch)
    assert 10 < len(done.trials) < 24
    assert 0.6 * layout.search_budget < sum(t.flops for t in done.trials) <= layout.search_budget
    assert done.flops <= judging + layout.search_budget


def test_losses_that_are_never_finite(
    corpus: Corpus, small: RunConfig, tuned: Tuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = laid_out(corpus, small)
    with pytest.raises(TrainError, match="none of 5 trials"):
        searched(tuned(small), layout, tmp_path, lambda config: math.nan, 1, monkeypatch)

    def loss(config: RunConfig) -> float:
        return math.nan if config.lr_matrix == small.lr_matrix else 3.0

    recipe_fails = searched(tuned(small), layout, tmp_path, loss, 2, monkeypatch)
    assert recipe_fails.better
    assert "the recipe fails 3 of 3 times" in recipe_fails.sentence
    assert recipe_fails.difference is None


def test_a_damaged_study_is_said_in_a_sentence(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    project = Project(tmp_path)
    (tmp_path / "tune.db").write_bytes(b"no database at all" * 100)
    with pytest.raises(ProjectError, match=r"tune\.db"):
        carry_out(project, laid_out(corpus, small), Silent())


# -- the answer -----------------------------------------------------------------------------------------


def compared(recipe: list[float], best: list[float]) -> Tuning:
    trials = [
        Trial(number=n, values={"lr_head": 1}, state="done", losses=(3.3, 3.1, 3.0 - n), runs=(), flops=1)
        for n in range(2)
    ]  # fmt: skip
    known = {"trials": tuple(trials), "best": 1, "seeds": (1, 2, 3)}
    tuning = Tuning.model_construct(None, **known)  # type: ignore[arg-type]
    return verdict(tuning, recipe, best)


def test_the_interval_is_students_of_pairs() -> None:
    rng = np.random.default_rng(0)
    base = 3 + 0.1 * rng.standard_normal(5)
    other = base - 0.02 + 0.01 * rng.standard_normal(5)
    found = paired(list(other), list(base))
    reference = stats.ttest_rel(other, base).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high))
    assert found.value == pytest.approx((other - base).mean())


@pytest.mark.parametrize(
    ("best", "says", "better"),
    [
        ([2.90, 2.91, 2.92], "is better than the recipe with 3 other seeds: -0.0900", True),
        ([2.90, 3.01, 3.10], "not told apart by 3 other seeds", False),
        ([3.10, 3.11, 3.13], "was luck", False),
        ([2.90, math.nan, 2.90], "does not hold: 1 of 3 other seeds fail", False),
    ],
)
def test_the_sentence(best: list[float], says: str, better: bool) -> None:
    found = compared([2.99, 3.00, 3.01], best)
    assert says in found.sentence
    assert found.better == better
    assert ("Keep the recipe" in found.sentence) == (not better)


def test_a_difference_in_doublings_is_over_the_recipes_own_last_doubling() -> None:
    found = compared([2.99, 3.00, 3.02], [2.89, 2.90, 2.91])
    assert found.difference is not None
    assert found.doublings is not None
    nats = 3.1 - 3.0  # of the recipe's trial, from half of the tokens to all
    assert found.doublings.value == pytest.approx(-found.difference.value / nats)
    assert (found.doublings.low, found.doublings.high) == pytest.approx(
        (-found.difference.high / nats, -found.difference.low / nats)
    )
    flat = Trial(number=0, values={}, state="done", losses=(3.0, 3.0, 3.1), runs=(), flops=1)
    assert in_doublings(found.difference, flat) is None


# -- what a budget buys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [DEFAULT, ("batch_tokens",)])
@pytest.mark.parametrize("unit", ["flops", "seconds"])
@pytest.mark.parametrize("factor", [1.0, 3.0, 30.0, 1000.0])
def test_a_budget_is_spent(corpus: Corpus, names: tuple[str, ...], unit: str, factor: float) -> None:
    config = recipe(shapes(512, largest=1)[0], 0)
    budget = Budget.model_validate({unit: factor * (3e13 if unit == "flops" else 500.0)})
    prices = Prices.of(config, names, budget, 3, TRIALS, 2, speeds(config), corpus)
    length, trials = prices.bought(None)
    assert length % (4 * (batches(config)[-1] if "batch_tokens" in names else config.batch_tokens)) == 0
    assert FEWEST_TRIALS <= trials <= MOST_TRIALS
    price = getattr(prices.price(length, trials), unit)
    assert price <= 1.001 * getattr(budget, unit)
    if trials < MOST_TRIALS:
        assert price > 0.85 * getattr(budget, unit)
    few = prices.bought(10)
    assert few[1] == 10
    assert few[0] >= length


def test_a_trial_is_expected_to_cost_what_half_of_them_cost(small: RunConfig) -> None:
    cooldown = small.cooldown  # fork at 1 - cooldown of a branch, where the next takes over
    first, second = 1 / 4, 1 / 2 - (1 - cooldown) / 4
    third = 1 - (1 - cooldown) / 2
    assert expected(small)[0] == pytest.approx(first + second / 2 + third / 4, rel=1e-3)


def test_too_little_is_refused(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    config = recipe(shapes(512, largest=1)[0], 0)
    prices = Prices.of(config, DEFAULT, Budget(seconds=3), 3, TRIALS, 2, speeds(config), corpus)
    with pytest.raises(BudgetError, match="is too little for a search: 8 trials of") as caught:
        prices.bought(None)
    needed = float(caught.value.message.split("about ")[1].split(" s")[0])
    enough = Budget(seconds=1.02 * needed)
    assert Prices.of(config, DEFAULT, enough, 3, TRIALS, 2, speeds(config), corpus).bought(None)[1] >= 8


def test_batches_are_whole_windows(small: RunConfig) -> None:
    assert batches(small) == (64, 128, 256, 512, 1024)
    assert batches(small.model_copy(update={"batch_tokens": 64})) == (64, 128, 256)
    assert with_values(small, {"batch_tokens": 512}).warmup_tokens == 2 * small.warmup_tokens
    assert with_values(small, {"batch_tokens": 512, "warmup_tokens": 99}).warmup_tokens == 99
    assert chosen(["lr_head", "lr_matrix", "lr_head"]) == ("lr_matrix", "lr_head")
