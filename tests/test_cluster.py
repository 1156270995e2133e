"""Ladders and runs on a Ray cluster of two nodes: killed nodes, workers, ranks and drivers change no bit."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import ray
from hearing import Heard, until
from ray.cluster_utils import Cluster as Nodes
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from isoflop import checkpoint, cluster
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.cluster import Cluster, connected
from isoflop.errors import ProjectError, TrainError
from isoflop.model import LanguageModel
from isoflop.on_node import STOPPED, Job, do, stop_file
from isoflop.pipeline import corpus_of, key_of
from isoflop.places import Place
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Ladder, Run
from isoflop.store import Project
from isoflop.train import train, train_part, train_trunk

# The nodes cannot import tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

STEPS = 12
ANYWHERE = ""


@pytest.fixture
def place(connection: None) -> Place:
    """The cluster, with a checkpoint a step."""
    return Cluster(checkpoint_seconds=0).place()


@pytest.fixture(scope="module")
def ladder(corpus: Corpus) -> Ladder:
    """Three sizes, the largest first to be trained."""
    shapes = [shape(width, corpus.vocab_size, n_layers=2, context=64) for width in (16, 32, 48)]
    configs = [recipe(m, 0, batch_tokens=256, warmup_tokens=1024, eval_tokens=2048) for m in shapes]
    counts = [STEPS // 2 * 256, STEPS * 256]
    members = tuple(rungs.member(c, counts, 1e-5 * (i + 1), 0.1) for i, c in enumerate(configs))
    return Ladder(id="k", corpus_id=corpus.id, members=members, packed=2, seconds=1, flops=1)


@pytest.fixture(scope="module")
def expected(
    ladder: Ladder, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[str, float]]:
    """Ids and losses of the ladder's runs, trained in this process."""
    folder = tmp_path_factory.mktemp("here")
    runs = [
        train_trunk(m.config, m.token_counts, corpus, folder / f"{i}") for i, m in enumerate(ladder.members)
    ]
    return sorted((r.id, r.loss) for some in runs for r in some)


def losses(runs: list[Run]) -> list[tuple[str, float]]:
    return sorted((r.id, r.loss) for r in runs)


def alone(turn: Path) -> bool:
    """Whether this is the first process that comes here: ranks come at the same time."""
    try:
        turn.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def held(mark: Path, node: str, *words: Any, progress: Any, stopping: Callable[[], bool]) -> Any:
    """`train_part` that stands still in its fifth step, once and on that node, and says so in `mark`."""
    calls = count(1)
    here = ray.get_runtime_context().get_node_id()

    def stand() -> bool:
        if next(calls) == 5 and node in (ANYWHERE, here) and alone(mark.with_suffix(".turn")):
            mark.with_suffix(".new").write_text(f"{os.getpid()}")
            mark.with_suffix(".new").rename(mark)
            threading.Event().wait()
        return stopping()

    return train_part(*words, progress=progress, stopping=stand)  # type: ignore[misc]


def holding(mark: Path, node: str = ANYWHERE) -> Place:
    """The cluster, with a checkpoint a step, where one run stands still."""
    return Cluster(checkpoint_seconds=0, train=partial(held, mark, node)).place()


def when(mark: Path, act: Callable[[int], object]) -> threading.Thread:
    """Acts on the process that stands still, as soon as one does."""

    def wait() -> None:
        until(mark.exists)
        act(int(mark.read_text()))

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


# The first two, before this process is connected.


def test_a_cluster_that_is_not_there() -> None:
    with (
        pytest.raises(ProjectError, match="the Ray cluster at nowhere cannot be reached"),
        connected("nowhere", Silent()),
    ):
        pass


def test_a_machine_on_which_ray_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nMore.")

    monkeypatch.setattr(ray, "init", slow)
    with (
        pytest.raises(ProjectError, match=r"Ray does not start on this machine: The current .* startup\.$"),
        connected("local", Silent()),
    ):
        pass


def test_a_killed_node_costs_what_was_done_since_the_last_checkpoint(
    nodes: Nodes, connection: None, ladder: Ladder, corpus: Corpus, expected: list[tuple[str, float]],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (other,) = nodes.worker_nodes
    mark, project, said = tmp_path / "mark", Project(tmp_path / "project"), Heard()
    monkeypatch.setattr(cluster, "LOOK_SECONDS", 0.0)
    steps: list[Any] = []

    def lose(pid: int) -> None:
        for folder in (project.folder / "runs").iterdir():
            if folder.is_dir():
                steps.append(checkpoint.load(folder, Silent()))
        nodes.remove_node(other, allow_graceful=False)

    thread = when(mark, lose)
    try:
        place = holding(mark, other.node_id)
        runs = rungs.climb(project, corpus, ladder, progress=said, place=place)
    finally:
        thread.join()
        nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    assert 4 in [s["done_steps"] for s in steps if s is not None], "no checkpoint had been written"
    assert losses(runs) == expected
    assert len([line for line in said.lines if "goes on from its last checkpoint" in line]) == 1, said.lines
    assert said.done == pytest.approx(sum(m.flops for m in ladder.members))
    assert list((project.folder / "runs").iterdir()) == []
    assert capfd.readouterr().out == ""  # it is for results


def test_a_killed_worker_costs_no_member(
    connection: None, ladder: Ladder, corpus: Corpus, expected: list[tuple[str, float]], tmp_path: Path
) -> None:
    mark, said = tmp_path / "mark", Heard()
    thread = when(mark, kill)
    runs = rungs.climb(Project(tmp_path / "project"), corpus, ladder, progress=said, place=holding(mark))
    thread.join()
    assert losses(runs) == expected
    assert len([line for line in said.lines if "goes on from its last checkpoint" in line]) == 1, said.lines


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
import test_cluster
from isoflop import cluster, ladder
from isoflop.corpus import load_corpus
from isoflop.progress import Silent
from isoflop.records import Ladder
from isoflop.store import Project
project = Project(sys.argv[3])
with cluster.connected(sys.argv[1], Silent()):
    place = test_cluster.holding(Path(sys.argv[2]))
    corpus = load_corpus(Path(sys.argv[4]))
    ladder.climb(project, corpus, project.latest("ladder", Ladder), progress=Silent(), place=place)
"""


def test_a_killed_driver_trains_no_finished_member_again(
    nodes: Nodes, ladder: Ladder, corpus: Corpus, expected: list[tuple[str, float]], tmp_path: Path
) -> None:
    mark, project, said = tmp_path / "mark", Project(tmp_path / "project"), Heard()
    project.put("ladder", ladder)
    words = [nodes.address, str(mark), str(project.folder), str(corpus.folder), str(Path(__file__).parent)]
    with subprocess.Popen([sys.executable, "-c", DRIVER, *words]) as driver:
        until(lambda: driver.poll() is not None or (mark.exists() and len(project.all("run", Run)) == 4))
        driver.kill()
    assert driver.returncode == -signal.SIGKILL
    with connected(nodes.address, Silent()) as place:
        runs = rungs.climb(project, corpus, ladder, progress=said, place=place)
    assert losses(runs) == expected
    assert len([line for line in said.lines if "bits per byte" in line]) == 1


def test_ranks_meet_across_nodes_and_outlive_a_killed_one(
    connection: None, ladder: Ladder, corpus: Corpus, tmp_path: Path
) -> None:
    config = ladder.members[0].config.model_copy(update={"ranks": 2})
    here = train(config, corpus, tmp_path / "here")
    mark, said, kept = tmp_path / "mark", Heard(), tmp_path / "kept"
    thread = when(mark, kill)

    def keep(model: LanguageModel, run: Run) -> None:
        kept.write_text(run.id)

    there = holding(mark).train(
        config, corpus, tmp_path / "runs" / "there", role="train", progress=said, keep=keep
    )
    thread.join()
    assert (there.id, there.loss) == (here.id, here.loss)
    assert kept.read_text() == there.id
    assert said.done == config.tokens
    assert any("goes on from its last checkpoint" in line for line in said.lines)


def test_the_error_of_a_member_is_its_own(
    place: Place, ladder: Ladder, corpus: Corpus, tmp_path: Path, expected: list[tuple[str, float]]
) -> None:
    bad = ladder.members[0]
    broken = bad.config.model.model_copy(update={"n_heads": 3, "n_kv_heads": 2})
    members = (bad.model_copy(update={"config": bad.config.model_copy(update={"model": broken})}),)
    said = Heard()
    runs = rungs.climb(
        Project(tmp_path / "project"), corpus,
        ladder.model_copy(update={"members": members + ladder.members[1:]}), progress=said, place=place,
    )  # fmt: skip
    assert losses(runs) == [e for e in expected if e in losses(runs)]
    assert len(runs) == 4
    assert any(line.startswith(f"ladder member of {bad.params:,} parameters failed") for line in said.lines)


class Slow:
    """A board that answers once it is let go."""

    def __init__(self) -> None:
        self.posted, self.go = 0, asyncio.Event()

    async def post(self, *said: object) -> bool:
        self.posted += 1
        await self.go.wait()
        return True

    async def count(self) -> int:
        return self.posted

    async def let_go(self) -> None:
        self.go.set()


def reports(*, progress: Any, stopping: Callable[[], bool]) -> None:
    """A job's work: it reports once, and looks at each of its steps whether to stop."""
    progress.update("train", 1.0)
    while not stopping():
        time.sleep(0.001)


class Newcomer:
    """Takes a process of its own: when it is there, a job that found a free CPU before is as well."""

    def here(self) -> None: ...


def test_no_more_jobs_run_than_there_are_cpus(nodes: Nodes, connection: None) -> None:
    board: Any = ray.remote(Slow).options(num_cpus=0).remote()
    tasks = [do.options(num_cpus=1).remote(Job(f"{i}", f"{i}", reports), board, None, None) for i in range(3)]

    def reported() -> int:
        found: int = ray.get(board.count.remote())
        return found

    def settled() -> int:
        """How many once whoever could begin has begun."""
        for node in 2 * nodes.list_all_nodes():  # type: ignore[no-untyped-call]
            where = NodeAffinitySchedulingStrategy(node.node_id, soft=False)
            newcomer: Any = ray.remote(Newcomer).options(num_cpus=0, scheduling_strategy=where).remote()
            ray.get(newcomer.here.remote())
            ray.kill(newcomer)
        return reported()

    until(lambda: reported() >= 2)
    assert settled() == 2, "a job began while another reported"
    ray.get(board.let_go.remote())
    ray.get(tasks)  # the third as well


def test_jobs_that_come_after_the_stop_do_not_begin(connection: None, tmp_path: Path) -> None:
    board: Any = ray.remote(Slow).options(num_cpus=0).remote()
    mark = tmp_path / ".seen-1"
    mark.touch()
    stop_file(mark).touch()
    job = Job("a", "a", reports, folder=tmp_path / "run")
    assert ray.get(do.options(num_cpus=1).remote(job, board, mark, None)) == STOPPED
    assert not (tmp_path / "run").exists()


def test_speeds_are_measured_on_the_cluster(
    place: Place, ladder: Ladder, corpus: Corpus, tmp_path: Path
) -> None:
    project, config = Project(tmp_path / "project"), ladder.members[0].config
    for _ in range(2):
        model = rungs.measure(project, corpus, [config], packed=2, progress=Silent(), place=place)
        place = Place(**{**vars(place), "probe": None})  # what is known is not measured again
    assert model.tokens_per_second(config) > 0
    assert place.cores == 2
    assert (place.whole(config).ranks, place.whole(config).threads) == (1, 1)  # a node has one CPU


def test_a_run_that_has_no_room_is_refused(
    place: Place, ladder: Ladder, corpus: Corpus, tmp_path: Path
) -> None:
    config = ladder.members[0].config
    for layout in ({"threads": 2}, {"ranks": 3}):
        with pytest.raises(TrainError, match=r"no room for . process.* of . CPUs on .* nodes of 1, 1"):
            place.train(
                config.model_copy(update=layout), corpus, tmp_path / "run", role="train", progress=None,
                keep=lambda model, run: None,
            )  # fmt: skip


def test_a_node_that_does_not_see_the_project_is_named(
    place: Place, ladder: Ladder, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "touch", lambda self: None)  # so that nobody sees it
    with pytest.raises(
        ProjectError, match=r"the node \S+ does not see the project's folder .*/runs"
    ) as caught:
        rungs.climb(Project(tmp_path / "project"), corpus, ladder, progress=Silent(), place=place)
    assert "every node mounts" in caught.value.hint


def test_ctrl_c_saves_the_members_and_ends(nodes: Nodes, sources: tuple[str, ...], tmp_path: Path) -> None:
    project, budget = Project(tmp_path / "project"), "1e12flops"
    text = corpus_of(project, CorpusConfig(sources=sources[3:], vocab_size=512, heldout_share=0.1))
    configs = [
        recipe(shape(width, text.vocab_size, n_layers=2, context=64), 0, batch_tokens=256, eval_tokens=2048)
        for width in (32, 48)
    ]
    members = tuple(rungs.member(c, [10**6 * 256], 1.0, 0.1) for c in configs)  # never to be finished
    key = key_of(text, Budget.parse(budget), 0, 1.0)
    project.put("ladder", Ladder(id=key, corpus_id=text.id, members=members, packed=2, seconds=1, flops=1))
    words = ["sweep", "--budget", budget, "--project", str(project.folder), "--ray", nodes.address]
    with subprocess.Popen(
        [sys.executable, "-m", "isoflop", *words], start_new_session=True, text=True, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    ) as command:  # fmt: skip
        runs = project.folder / "runs"
        until(lambda: command.poll() is not None or len(list(runs.glob("*/.lock"))) == 2)
        os.killpg(command.pid, signal.SIGINT)
        _, said = command.communicate(timeout=300)
    assert command.returncode == 130, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1] == "interrupted; the same command goes on from here"
    states = [checkpoint.load(folder.parent, Silent()) for folder in runs.glob("*/.lock")]
    assert all(state is not None and 0 < state["done_steps"] < 10**6 for state in states)
