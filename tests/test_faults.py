"""What can go wrong around a run, and what happens then.

fault                                      tests
killed at any moment                       test_train: killed_again_and_again
killed while a checkpoint is written       here: killed_in_the_middle_of_a_checkpoint
Ctrl-C, once and twice; SIGTERM            test_interrupt; test_distributed: sigterm_to_torchrun
a ladder's own process killed              test_interrupt: a_ladder_whose_process_is_killed
a worker killed                            test_ladder: a_killed_worker; test_devices: a_rank_that_is_killed
a process of torchrun killed               test_distributed: torchrun_trains_is_killed_and_goes_on
other processes than before                test_distributed: goes_on_in_another_number_of_processes
a Ray node killed                          test_cluster: a_killed_node
a Ray worker, rank, or driver killed       test_cluster: a_killed_worker, outlive_a_killed, a_killed_driver
a ledger's server stopped, or gone         test_ledger: a_server_that_is_stopped, was_cut_in_its_turn
disk full: ledger, file, artifact          test_ledger, test_store: full_disk; e2e: a_disk_that_fills_up
disk full: corpus                          test_corpus_build
disk full: checkpoint, ladder              here: full_disk; test_sharded: on_a_full_disk
checkpoint truncated or changed            here: damaged_checkpoint; test_train: a_damaged_checkpoint;
                                           test_sharded: checkpoints_of_shards
token files changed before a command       test_pipeline: damaged_token_files; here: known_corpus
token files changed or cut under a run     here: tokens_that_change, _that_are_cut, _are_gone; e2e
ledger damaged, or made by another version test_ledger
ledger locked by another process           here: locked_ledger; for too long: test_ledger
loss or gradient not finite                test_train: what_is_not_finite; test_distributed: ranks_agree
clock goes back                            test_ledger: order_is_kept; here: clock
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from disks import Disk
from hearing import stops_after

from isoflop import checkpoint
from isoflop import ladder as rungs
from isoflop.corpus import build_corpus
from isoflop.errors import CorruptError, ProjectError
from isoflop.interrupt import Interrupted
from isoflop.progress import Silent
from isoflop.records import Corpus, Interval, Ladder, Run, RunConfig
from isoflop.store import Project
from isoflop.train import train_trunk

PACKAGE = Path(rungs.__file__).parent


def train(config: RunConfig, corpus: Corpus, folder: Path, stop_after: int = 10**9) -> Run:
    """The run of `config`, with a checkpoint a step."""
    (run,) = train_trunk(
        config, [config.tokens], corpus, folder, checkpoint_seconds=0, stopping=stops_after(stop_after)
    )
    return run


@pytest.fixture(scope="module")
def expected(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Losses of undisturbed runs, by config."""
    return {}


@pytest.fixture
def loss(small: RunConfig, corpus: Corpus, tmp_path: Path, expected: dict[str, float]) -> float:
    """What the small run reaches when nothing goes wrong."""
    name = small.to_json()
    if name not in expected:
        expected[name] = train_trunk(small, [small.tokens], corpus, tmp_path / "undisturbed")[0].loss
    return expected[name]


# One process for all moments: each child is forked before torch has computed anything.
KILLED = """
import os, signal, sys
from pathlib import Path
from isoflop import checkpoint, store
folder = Path(sys.argv[1])
def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
def half(path, data, write=Path.write_bytes):
    write(path, data[: len(data) // 2])
    kill()
def index_only(path, data, write=Path.write_bytes):
    half(path, data) if "checkpoints.json" in path.name else write(path, data)
moments = {"half": (Path, "write_bytes", half), "index": (Path, "write_bytes", index_only),
           "synced": (Path, "replace", kill)}
for name, (owner, attribute, patch) in moments.items():
    child = os.fork()
    if child == 0:
        checkpoint.save(folder / name, {"step": 1}, 1)
        setattr(owner, attribute, patch)
        checkpoint.save(folder / name, {"step": 2}, 2)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_killed_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    names = ("half", "index", "synced")
    for name in names:
        (tmp_path / name).mkdir()
    killed = subprocess.check_output([sys.executable, "-c", KILLED, str(tmp_path)], text=True)
    assert killed.split() == [str(-signal.SIGKILL)] * len(names)
    for name in names:
        folder = tmp_path / name
        assert list(folder.glob(".*.tmp")), "nothing was being written"
        assert checkpoint.load(folder, Silent()) == {"step": 1}
        checkpoint.save(folder, {"step": 2}, 2)
        assert checkpoint.load(folder, Silent()) == {"step": 2}
        assert not list(folder.glob(".*.tmp"))


def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(
    corpus: Corpus, small: RunConfig, disk: Disk, loss: float
) -> None:
    folder = disk.folder / "run"
    disk.resize(4096, "remount")
    with pytest.raises(Interrupted):
        train(small, corpus, folder, stop_after=5)
    kept = sorted(path.name for path in folder.glob("*.pt"))
    disk.resize(disk.used() + disk.used() // 4, "remount")  # for half of another checkpoint
    with pytest.raises(
        ProjectError, match=r"the disk is full: the file .*checkpoint-.* not be written"
    ) as caught:
        train(small, corpus, folder)
    assert "run the same command again" in caught.value.hint
    assert sorted(path.name for path in folder.glob("*.pt")) == kept
    assert not list(folder.glob(".*.tmp"))
    disk.resize(16 * 1024, "remount")
    assert train(small, corpus, folder).loss == loss


def test_a_ladder_on_a_full_disk_ends(corpus: Corpus, small: RunConfig, disk: Disk) -> None:
    disk.resize(300, "remount")
    project = Project(disk.folder / "project")
    members = tuple(
        rungs.member(small.model_copy(update={"seed": seed}), [small.tokens], 1e-5, 0.1) for seed in range(3)
    )
    ladder = Ladder(id="k", corpus_id=corpus.id, members=members, packed=1, seconds=1, flops=1)
    with pytest.raises(ProjectError, match="the disk is full"):
        rungs.climb(project, corpus, ladder, progress=Silent())


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: data[:99] + b"?" + data[100:]]
)
def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(
    corpus: Corpus, small: RunConfig, tmp_path: Path, loss: float, damage: Callable[[bytes], bytes]
) -> None:
    with pytest.raises(Interrupted):
        train(small, corpus, tmp_path / "run", stop_after=9)
    newest = max((tmp_path / "run").glob("*.pt"))
    newest.write_bytes(damage(newest.read_bytes()))
    assert train(small, corpus, tmp_path / "run").loss == loss


def change(corpus: Corpus) -> None:
    """One bit of the training tokens."""
    with open(corpus.folder / "train.bin", "r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))


@pytest.fixture
def own(corpus: Corpus, tmp_path: Path) -> Corpus:
    """A copy of the corpus."""
    return corpus.model_copy(update={"folder": shutil.copytree(corpus.folder, tmp_path / "corpus")})


def test_tokens_that_change_under_a_run_are_noticed(own: Corpus, small: RunConfig, tmp_path: Path) -> None:
    class Changes(Silent):
        def update(self, stage: str, done: float, note: str = "") -> None:
            if done == 20 * small.batch_tokens:
                change(own)

    with pytest.raises(CorruptError, match=r"train\.bin was changed while a run was training on it"):
        train_trunk(small, [small.tokens], own, tmp_path / "run", checkpoint_seconds=0, progress=Changes())
    assert checkpoint.load(tmp_path / "run", Silent())["done_steps"] == 19  # type: ignore[index]


@pytest.mark.parametrize("side", ["train", "heldout"])
def test_tokens_that_are_cut_under_a_run_are_noticed_and_nothing_is_lost(
    own: Corpus, small: RunConfig, tmp_path: Path, loss: float, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    path, save = own.folder / f"{side}.bin", checkpoint.save
    whole = path.read_bytes()

    def cut(folder: Path, state: dict[str, Any], step: int) -> None:
        save(folder, state, step)
        if step == 20:
            os.truncate(path, 0)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", cut)
        with pytest.raises(CorruptError, match=rf"{side}\.bin was cut short while it was being read"):
            train(small, own, tmp_path / "run")
    state = checkpoint.load(tmp_path / "run", Silent())
    assert state is not None
    assert state["done_steps"] == (20 if side == "train" else 60)
    path.write_bytes(whole)
    assert train(small, own, tmp_path / "run").loss == loss


@pytest.mark.parametrize(
    ("harm", "says"), [(Path.unlink, "is missing"), (lambda path: os.truncate(path, 9), "has 9 bytes, not")]
)
def test_what_was_trained_on_tokens_that_are_gone_is_not_saved(
    own: Corpus, small: RunConfig, tmp_path: Path, harm: Callable[[Path], None], says: str
) -> None:
    class Harms(Silent):
        def update(self, stage: str, done: float, note: str = "") -> None:
            if done == 20 * small.batch_tokens:
                harm(own.folder / "train.bin")

    with pytest.raises(CorruptError, match=rf"train\.bin {says}"):
        train_trunk(small, [small.tokens], own, tmp_path / "run", checkpoint_seconds=0, progress=Harms())
    assert checkpoint.load(tmp_path / "run", Silent())["done_steps"] == 19  # type: ignore[index]


def test_tokens_that_change_between_two_starts_are_noticed(
    own: Corpus, small: RunConfig, tmp_path: Path, loss: float
) -> None:
    with pytest.raises(Interrupted):
        train(small, own, tmp_path / "run", stop_after=9)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    (own.folder / "train.bin").touch()  # written to, not changed
    assert train(small, own, tmp_path / "copy").loss == loss
    change(own)
    with pytest.raises(CorruptError, match="was changed"):
        train(small, own, tmp_path / "run")


def test_a_known_corpus_is_looked_at(own: Corpus, corpus: Corpus, tmp_path: Path) -> None:
    root = corpus.folder.parent
    for name in (".known", corpus.id):
        shutil.copytree(root / name, tmp_path / "root" / name)
    assert build_corpus(corpus.config, tmp_path / "root").id == corpus.id
    change(own.model_copy(update={"folder": tmp_path / "root" / corpus.id}))
    with pytest.raises(CorruptError, match=r"train\.bin has SHA-256"):
        build_corpus(corpus.config, tmp_path / "root")


LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
connection.commit()
"""


def test_a_locked_ledger_is_waited_for(tmp_path: Path) -> None:
    project = Project(tmp_path / "project")
    words = [sys.executable, "-c", LOCKS, str(project.folder / "ledger.db")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        record = Interval(value=1, low=0, high=2)
        put = threading.Thread(target=project.put, args=("interval", record, "x"))
        put.start()
        put.join(1.5)
        assert put.is_alive(), "it did not wait"
        assert project.get("interval", "x", Interval) is None
        holder.communicate("go on\n")
    put.join()
    assert project.get("interval", "x", Interval) == record


def test_a_clock_that_goes_back_harms_nothing(
    corpus: Corpus, small: RunConfig, tmp_path: Path, loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = count(2_000_000_000, -3600)
    monkeypatch.setattr("time.time", lambda: next(now))
    run = train(small, corpus, tmp_path / "run")
    assert run.loss == loss
    assert run.seconds_train > 0
    assert run.seconds_eval > 0
    assert [p.seconds for p in run.curve] == sorted(p.seconds for p in run.curve)
    users = sorted(path.name for path in PACKAGE.rglob("*.py") if "time.time()" in path.read_text())
    # rates.py reads what the library limits says, which is by the clock
    assert users == ["ledger.py", "rates.py"], "a duration is measured by time.monotonic or time.perf_counter"
