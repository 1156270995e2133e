"""Ctrl-C, SIGTERM and SIGKILL in real processes: the first saves, a second Ctrl-C ends at once, a kill loses
little, and the same command ends with the same bits.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from hearing import Heard, until

from isoflop import checkpoint
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.families import OWN
from isoflop.interrupt import ASKING, Interrupted, Terminated, heeded
from isoflop.packed import folder_of
from isoflop.pipeline import corpus_of, key_of, sweep, train_model
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import CorpusConfig, Ladder, Run
from isoflop.starting import chosen_config
from isoflop.store import Project
from isoflop.variant import Variant
from isoflop.workers import cores

# One rank a core; in 32 bits, as the runs of this process that it is compared with.
PRECISION = "float32"
TRAIN = ("train", "--width", "64", "--tokens", "40000", "--precision", PRECISION)
SWEEP = ("sweep", "--budget", "1e12flops")
RESUMES = "interrupted; the same command goes on from here"

# Stands still in the middle of writing a checkpoint.
STUCK = """
import sys, time
from pathlib import Path
from isoflop import checkpoint, store
from isoflop.cli import main
def stand(handle):
    print("stuck", file=sys.stderr, flush=True)
    time.sleep(600)
checkpoint.torch.save = lambda state, buffer, real=checkpoint.torch.save: (
    real(state, buffer), setattr(store, "_fsync", stand))
sys.argv[0] = "isoflop"
main()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, ...]) -> Path:
    """A project with a corpus, and a small ladder that is designed and not trained."""
    folder = tmp_path_factory.mktemp("interrupted") / "project"
    project = Project(folder)
    corpus = corpus_of(project, CorpusConfig(sources=sources, vocab_size=512, heldout_share=0.02))
    shapes = [shape(width, corpus.vocab_size, n_layers=2, context=64) for width in (32, 64, 96)]
    configs = [recipe(model, 0, batch_tokens=256, eval_tokens=2048) for model in shapes]
    members = tuple(rungs.member(config, [40 * 256, 80 * 256], 1e-5, 0.1) for config in configs)
    key = key_of(corpus, Budget.parse(SWEEP[-1]), 0, 1.0)
    project.put("ladder", Ladder(id=key, corpus_id=corpus.id, members=members, packed=2, seconds=1, flops=1))
    return folder


def start(
    *words: str, program: tuple[str, ...] = ("-m", "isoflop"), one_core: bool = False
) -> subprocess.Popen[str]:
    """The command in a process group of its own, as a terminal starts it."""
    cpu = min(os.sched_getaffinity(0))
    return subprocess.Popen(
        [sys.executable, *program, *words], start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=(lambda: os.sched_setaffinity(0, {cpu})) if one_core else None,
    )  # fmt: skip


def heard(process: subprocess.Popen[str], word: str) -> list[str]:
    """The lines of its stderr up to the one that holds `word`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError(f"it ended without saying {word!r}: {''.join(lines)}")


def ended(process: subprocess.Popen[str], said: list[str], code: int = 130) -> str:
    """What it said in all, once it has ended as one that was interrupted does."""
    out, rest = process.communicate(timeout=300)
    err = "".join(said) + rest
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err, err
    assert err.strip().splitlines()[-1] == RESUMES
    return err


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that can be read, by run."""
    states = [checkpoint.load(run, Silent()) for run in sorted((folder / "runs").iterdir())]
    return [state["done_steps"] for state in states if state is not None]


def trained(folder: Path, ranks: int) -> tuple[float, str | None]:
    """Loss and hash of the weights that the command ends with here."""
    project = Project(folder)
    corpus = corpus_of(project)
    config = chosen_config(
        project, corpus, width=int(TRAIN[2]), layers=None, tokens=int(TRAIN[4]), lr_scale=1.0, seed=0,
        variant=Variant.of(OWN, [f"precision={PRECISION}"]),
    )  # fmt: skip
    run = train_model(project, corpus, config.model_copy(update={"ranks": ranks, "threads": 1}))
    assert not list((folder / "runs").iterdir()), "it did not go on with what was saved"
    return run.loss, run.model


def swept(folder: Path) -> list[tuple[str, float]]:
    """The runs that the command ends with here."""
    project = Project(folder)
    corpus = corpus_of(project)
    budget = Budget.parse(SWEEP[-1])
    _, runs = sweep(project, corpus, budget, key=key_of(corpus, budget, 0, 1.0))
    return [(r.id, r.loss) for r in runs]


def signalled(*numbers: int, listener: Silent) -> None:
    """Work that gets these signals, and then does as it was asked."""
    with heeded(listener) as asked:
        assert not asked()
        for number in numbers:
            os.kill(os.getpid(), number)
        assert asked()
        raise Interrupted


def test_sigterm_asks_and_a_ctrl_c_after_it_ends_at_once() -> None:
    listener = Heard()
    before = [signal.getsignal(number) for number in ASKING]
    with pytest.raises(Terminated) as stop:
        signalled(*3 * [signal.SIGTERM], listener=listener)  # a scheduler may repeat it
    assert stop.value.code == 143
    assert len(listener.lines) == 1
    with pytest.raises(KeyboardInterrupt) as pressed:
        signalled(signal.SIGTERM, signal.SIGINT, listener=listener)
    assert not isinstance(pressed.value, Interrupted)
    with pytest.raises(Interrupted):  # a Ctrl-C that came first ends with its own code
        signalled(signal.SIGINT, signal.SIGTERM, listener=listener)
    assert [signal.getsignal(number) for number in ASKING] == before


def test_once_saves_twice_ends_at_once_and_the_same_command_goes_on(home: Path, tmp_path: Path) -> None:
    folder, other = (shutil.copytree(home, tmp_path / name) for name in ("project", "undisturbed"))
    words = (*TRAIN, "--project", str(folder))
    process = start(*words, one_core=True)
    said = heard(process, "train ...")
    os.killpg(process.pid, signal.SIGINT)
    assert "Ctrl-C again ends at once" in ended(process, said)
    (before,) = steps(folder)
    process = start(*words, program=("-c", STUCK), one_core=True)
    said = heard(process, "train ...")
    os.killpg(process.pid, signal.SIGINT)
    said += heard(process, "stuck")
    os.killpg(process.pid, signal.SIGINT)
    ended(process, said)
    assert steps(folder) == [before]
    assert not list(folder.rglob("*.tmp"))
    process = start(*words, one_core=True)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    done = Project(folder).latest("run", Run)
    assert done is not None
    assert (done.loss, done.model) == trained(other, ranks=1)


@pytest.mark.skipif(cores() < 2, reason="a run is shared by several processes only where there are cores")
def test_a_run_of_several_ranks_saves_and_goes_on(home: Path, tmp_path: Path) -> None:
    folder, other = (shutil.copytree(home, tmp_path / name) for name in ("project", "undisturbed"))
    process = start(*TRAIN, "--project", str(folder))
    said = heard(process, "train ...")
    os.killpg(process.pid, signal.SIGTERM)  # as a scheduler does, the ranks too
    ended(process, said, code=143)
    assert len(steps(folder)) == 1
    ranks = min(2, cores())
    assert trained(folder, ranks) == trained(other, ranks)


def test_the_members_of_a_ladder_save_and_end(home: Path, tmp_path: Path) -> None:
    folder, other = (shutil.copytree(home, tmp_path / name) for name in ("project", "undisturbed"))

    def training() -> bool:
        return (folder / "runs").exists() and len(list((folder / "runs").iterdir())) >= 2

    process = start(*SWEEP, "--project", str(folder))
    said = heard(process, "ladder ...")
    until(training)
    os.killpg(process.pid, signal.SIGINT)
    ended(process, said)
    assert len(steps(folder)) >= 2
    process = start(*SWEEP, "--project", str(folder))
    said = heard(process, "ladder ...")
    os.kill(process.pid, signal.SIGINT)
    said += heard(process, "Ctrl-C again")
    os.kill(process.pid, signal.SIGINT)
    ended(process, said)
    assert len(steps(folder)) >= 2
    assert swept(folder) == swept(other)


def outlasting(folder: Path) -> Path:
    """Give the ladder a member so long that it is in training when another is done; returns its folder."""
    project = Project(folder)
    ladder = project.latest("ladder", Ladder)
    assert ladder is not None
    first, *others = ladder.members
    long = rungs.member(first.config, [40 * 256, 600 * 256], 1.0, 0.1)
    project.put("ladder", ladder.model_copy(update={"members": (long, *others)}))
    return folder_of(project, corpus_of(project), long)


def seconds(folder: Path) -> dict[str, float]:
    """Of the training of each run in the ledger: trained again, it would take others."""
    return {r.id: r.seconds_train for r in Project(folder).all("run", Run)}


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # whose new parent does not ask for it
    except psutil.NoSuchProcess:
        return True


def test_a_ladder_whose_process_is_killed_leaves_none_and_goes_on(home: Path, tmp_path: Path) -> None:
    folder, other = (shutil.copytree(home, tmp_path / name) for name in ("project", "undisturbed"))
    outlasting(other)
    long = outlasting(folder)
    process = start(*SWEEP, "--project", str(folder))
    heard(process, "ladder ...")

    def one_is_done_and_another_saved() -> bool:
        assert process.poll() is None, "it ended before it was killed"
        return bool(seconds(folder)) and (long / checkpoint.INDEX).exists()

    until(one_is_done_and_another_saved)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    until(lambda: all(map(gone, workers)))
    before = seconds(folder)
    state = checkpoint.load(long, Silent())
    assert state is not None, "it was done before it was killed"
    assert 40 <= state["done_steps"] < 600
    assert swept(folder) == swept(other)
    assert before.items() <= seconds(folder).items()
