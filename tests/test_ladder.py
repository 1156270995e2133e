"""Which small runs, and what happens when one of them dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from hearing import Heard

from isoflop import flops
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.errors import BudgetError, LadderError
from isoflop.identity import tokens_of_trunk, trunk_id
from isoflop.progress import Silent, gather
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, Ladder, ModelConfig, Run
from isoflop.store import Project


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Where speeds are kept once they are measured."""
    return Project(tmp_path_factory.mktemp("timed") / "project")


@pytest.fixture
def ladder(corpus: Corpus) -> Ladder:
    """Four sizes that are trained in a moment."""
    shapes = [shape(width, corpus.vocab_size, n_layers=2, context=64) for width in (32, 48, 64, 80)]
    members = tuple(
        rungs.member(recipe(m, 0, batch_tokens=256, eval_tokens=2048), [100 * 256, 200 * 256], 1e-5, 0.1)
        for m in shapes
    )
    return Ladder(id="k", corpus_id=corpus.id, members=members, packed=2, seconds=1, flops=1)


def design(home: Project, corpus: Corpus, budget: Budget) -> Ladder:
    return rungs.design(home, corpus, budget, seed=0, progress=Silent(), key="k", workers=2)


def test_sizes_surround_the_best_size_of_a_member() -> None:
    for compute in (1e11, 1e13, 1e16):
        sizes = [flops.params_matmul(m) for m in rungs.choose_shapes(1024, compute)]
        assert sizes == sorted(set(sizes))
        assert len(sizes) == rungs.DESIGNS[0][0]
        assert sizes[-1] / sizes[0] > 3
        if compute > 1e12:
            middle = (compute / (6 * rungs.TOKENS_PER_PARAM)) ** 0.5
            assert sizes[0] < middle < sizes[-1]


@pytest.mark.parametrize("cores", [1.0, 2.0, 3.0, 4.0, 5.0])
@pytest.mark.parametrize("sizes", [3, 4])
def test_the_smallest_size_is_trained_longest_and_no_core_is_idle(cores: float, sizes: int) -> None:
    parts = rungs.shares(cores, sizes)
    assert len(parts) == sizes
    assert parts == sorted(parts, reverse=True)
    assert parts[0] <= 1.0
    assert sum(parts) == pytest.approx(min(cores, sizes))
    even = rungs.shares(cores, sizes, tapered=False)
    assert sum(even) == pytest.approx(min(cores, sizes))
    assert max(even[1:]) == pytest.approx(min(even[1:]))


@pytest.mark.parametrize(
    ("steps", "lengths"),
    [(2000, [250, 500, 1000, 2000]), (400, [100, 200, 400]), (100, [50, 100]), (16, [8, 16]), (15, [])],
)
def test_short_branches_are_left_out(steps: int, lengths: list[int]) -> None:
    assert rungs.branch_steps(steps) == lengths


def test_one_good_branch_is_better_than_a_short_one() -> None:
    assert rungs.branch_steps(170) == [85, 170]
    assert rungs.branch_steps(170, 1) == [170]
    assert rungs.branch_steps(400, 1, 150) == [200, 400]


def test_the_ladder_spends_its_share(timed: Project, corpus: Corpus) -> None:
    ladder = design(timed, corpus, Budget(flops=8e11))
    assert 0.9 * 8e11 < ladder.flops < 1.02 * 8e11
    for member in ladder.members:
        tokens = sum(tokens_of_trunk(member.token_counts, member.config))
        assert flops.mean_flops_per_token(member.config) * tokens == pytest.approx(member.flops, rel=0.05)


def test_too_small_a_budget_is_refused(timed: Project, corpus: Corpus) -> None:
    with pytest.raises(BudgetError, match="sizes that a law needs"):
        design(timed, corpus, Budget(flops=1e9))


def test_finished_members_are_never_done_again_and_a_failed_one_is_reported(
    home: Project, corpus: Corpus, ladder: Ladder
) -> None:
    bad = ladder.members[0]
    broken = bad.config.model.model_copy(
        update={"n_heads": 3, "n_kv_heads": 2}
    )  # 3 heads on 2: no such model
    members = (
        bad.model_copy(update={"config": bad.config.model_copy(update={"model": broken})}),
        *ladder.members[1:],
    )
    said = Heard()
    runs = rungs.climb(home, corpus, ladder.model_copy(update={"members": members}), progress=said)
    assert len({r.params_matmul for r in runs}) == len({m.params for m in ladder.members}) - 1
    assert any("failed" in line and f"{bad.params:,}" in line for line in said.lines)
    said.lines.clear()
    again = rungs.climb(home, corpus, ladder, progress=said)
    assert len([line for line in said.lines if "bits per byte" in line]) == 1  # the one that had failed
    assert len(again) == sum(len(m.token_counts) for m in ladder.members)
    assert {r.id for r in runs} < {r.id for r in again}
    first = ladder.members[0]
    fewer = first.model_copy(update={"token_counts": first.token_counts[:1]})
    home.delete("run", next(r.id for r in again if r.params_matmul == first.params))
    said.lines.clear()
    mended = rungs.climb(
        home, corpus, ladder.model_copy(update={"members": (fewer, *ladder.members[1:])}), progress=said
    )
    assert len([line for line in said.lines if "bits per byte" in line]) == 1  # a branch was missing
    assert len(mended) == len(again) - len(first.token_counts) + 1


def test_a_killed_worker_costs_one_member(home: Project, corpus: Corpus, ladder: Ladder) -> None:
    killed: list[int] = []

    def kill() -> None:
        folder = home.folder / "runs"
        deadline = time.monotonic() + 60
        while not killed and time.monotonic() < deadline:
            children = psutil.Process().children(recursive=True)
            workers = [c for c in children if "loky" in " ".join(c.cmdline()) and c.memory_info().rss > 2e8]
            if folder.exists() and any(folder.iterdir()) and workers:
                killed.append(workers[0].pid)
                os.kill(workers[0].pid, signal.SIGKILL)
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        runs = rungs.climb(home, corpus, ladder, progress=Silent())
    except LadderError as error:
        pytest.fail(str(error))
    thread.join()
    assert killed
    assert len({r.params_matmul for r in runs}) >= len({m.params for m in ladder.members}) - 1


def test_progress_of_workers_is_summed() -> None:
    from isoflop.progress import Relay

    seen: list[tuple[float, str]] = []
    said: list[str] = []

    class Listener(Silent):
        def update(self, stage: str, done: float, note: str = "") -> None:
            seen.append((done, note))

        def log(self, message: str) -> None:
            said.append(message)

    with gather(Listener(), "ladder", lambda: False) as address:
        first, second = Relay(address, "a", 2.0), Relay(address, "b", 10.0)
        first.update("x", 3, "loss 1")
        second.update("x", 1, "loss 2")
        second.finish("x", "bye")
        deadline = time.monotonic() + 5
        while not (said and len(seen) == 2) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert max(done for done, _ in seen) == 16.0
    assert said == ["b: bye"]


def test_runs_of_one_trunk_share_its_name(
    corpus: Corpus, small: object, project: tuple[Path, object]
) -> None:
    runs = Project(project[0]).all("run", Run)
    ladder = [r for r in runs if r.role == "ladder"]
    assert {r.trunk for r in ladder} == {
        trunk_id(r.config, corpus.model_copy(update={"id": r.corpus_id})) for r in ladder
    }
    assert isinstance(ladder[0].config.model, ModelConfig)
