"""Every tracker's files, read back by the tool's own reader; and that none of them can end a training."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hearing import Heard

from isoflop.errors import TrainError
from isoflop.pipeline import train_model
from isoflop.progress import Silent
from isoflop.records import Corpus, Gain, Interval, Plan, Result, Run, RunConfig
from isoflop.store import Project
from isoflop.trackers import TRACKERS, Config, Values, check, tracked

INSTALLED = [name for name in TRACKERS if find_spec(name)]
Points = dict[str, list[tuple[int, float]]]  # by metric: tokens and value, in order


@pytest.fixture(scope="module")
def home(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run trained under every tracker, a ladder's run, and what is said of a job."""
    made = Project(tmp_path_factory.mktemp("tracked") / "study")
    with pytest.MonkeyPatch.context() as patch, tracked(INSTALLED, made, Silent()) as progress:
        for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TRACKIO_DIR"):
            patch.delenv(name, raising=False)
        run = train_model(made, corpus, config_of(corpus), progress=progress)
        made.put("run", run.model_copy(update={"role": "ladder", "id": "another"}))
        loss = Interval(value=2.5, low=2.4, high=2.7)
        made.put("plan", Plan(
            id="key", fit_id="f", corpus_id=corpus.id, budget_seconds=1, budget_flops=None, config=run.config,
            params=10, tokens=20, flops=30, seconds=1, memory_bytes=1, tokens_per_second=1, loss=loss,
            params_optimum=loss, tokens_optimum=loss, doubling_loss=loss, doubling_saves=loss,
        ))  # fmt: skip
        made.put("gain", Gain(
            loss=2.5, flops=1, flops_base=loss, doublings=Interval(value=-0.1, low=-0.5, high=0.3),
            extrapolated=False, undefined_share=0,
        ), "key-total")  # fmt: skip
        made.put("result", Result(
            loss=2.6, loss_se=0.01, bpb=1.25, predicted=2.5, interval=(2.4, 2.7), within_interval=True,
            params=10, tokens=20, flops=30, flops_total=40, seconds={"total": 9}, doublings=loss,
            doublings_total=loss, model="", report="", corpus_id=corpus.id, fit_id="f", plan_id="key",
            run_id=run.id,
        ), "key")  # fmt: skip
    return made


def config_of(corpus: Corpus) -> RunConfig:
    from isoflop.recipe import recipe, shape

    model = shape(32, corpus.vocab_size, n_layers=2, context=64)
    return recipe(model, 60 * 256, batch_tokens=256, warmup_tokens=1024, eval_tokens=2048)


def run_of(home: Project, role: str) -> Run:
    return next(r for r in home.all("run", Run) if r.role == role)


def expect(home: Project, role: str, points: Points) -> None:
    """What a run's curve and scores must have become."""
    run = run_of(home, role)
    tokens, losses = zip(*points["train/loss"], strict=True)
    assert tokens == tuple(p.tokens for p in run.curve)
    assert losses == pytest.approx([p.loss for p in run.curve], rel=1e-5)
    share = run.curve[-1].tokens / run.tokens
    assert points["train/flops"][-1][1] == pytest.approx(run.flops * share, rel=1e-5)
    assert points["train/lr_matrix"][-1][1] < 0.2 * run.config.lr_matrix  # at the end of its cooldown
    assert max(v for _, v in points["train/lr_matrix"]) == pytest.approx(run.config.lr_matrix)
    assert all(v > 0 for _, v in points["train/tokens_per_second"])
    for name, value in (("heldout/loss", run.loss), ("heldout/bpb", run.bpb), ("run/flops", run.flops)):
        assert [t for t, _ in points[name]] == [run.tokens]
        assert points[name][0][1] == pytest.approx(value, rel=1e-5)


def expect_job(points: Points) -> None:
    wanted = {"plan/loss_high": 2.7, "plan/flops": 30, "gain/doublings_total": -0.1, "result/loss": 2.6,
              "result/bpb": 1.25, "result/within_interval": 1}  # fmt: skip
    for name, value in wanted.items():
        assert [v for _, v in points[name]] == [pytest.approx(value, rel=1e-5)], name


def name_of(home: Project, role: str) -> str:
    return f"{role}-{run_of(home, role).id}"


# -- readers --------------------------------------------------------------------------------------------


def tensorboard(home: Project, name: str) -> tuple[Points, str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(home.folder / "tracking" / "tensorboard" / name))
    read.Reload()
    points = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    (text,) = read.Tensors("config/text_summary")
    return points, text.tensor_proto.string_val[0].decode()


def wandb(home: Project, name: str) -> tuple[Points, str]:
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = (home.folder / "tracking" / "wandb").glob(f"wandb/offline-run-*-{name}/run-{name}.wandb")
    points: Points = {}
    config = ""
    for data in records(path.read_bytes()):
        record = Record.FromString(data)
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for key, value in items.items():
            points.setdefault(key, []).append((int(items["tokens"]), float(value)))
        config += "".join(f"{u.key} {u.value_json}\n" for u in record.run.config.update)
    return points, config


def records(data: bytes) -> Iterator[bytes]:
    """Of W&B's file: LevelDB's log format (blocks of 32 KiB, whole or in parts) after a header of 7 bytes."""
    position, parts = 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def mlflow(home: Project, name: str) -> tuple[Points, str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{home.folder / 'tracking' / 'mlflow' / 'mlflow.db'}")
    study = client.get_experiment_by_name("study")
    assert study is not None
    (run,) = client.search_runs([study.experiment_id], f"attributes.run_name = '{name}'")
    assert run.info.status == "FINISHED"
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    points = {key: sorted((m.step, m.value) for m in found) for key, found in history.items()}
    return points, "\n".join(f"{key} {value}" for key, value in run.data.params.items())


def trackio(home: Project, name: str) -> tuple[Points, str]:
    from trackio.sqlite_storage import SQLiteStorage

    points: Points = {}
    for row in SQLiteStorage.get_logs("study", name):
        for key, value in row.items():
            if "/" in key:
                points.setdefault(key, []).append((int(row["tokens"]), float(value)))
    config: dict[str, Any] = SQLiteStorage.get_run_config("study", name) or {}
    return points, "\n".join(f"{key} {value}" for key, value in config.items())


READERS = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow, "trackio": trackio}


@pytest.mark.parametrize("tracker", TRACKERS)
def test_what_was_written_is_read_back(home: Project, tracker: str) -> None:
    if tracker not in INSTALLED:
        pytest.skip(f"the extra isoflop[{tracker}] is not installed")
    for role in ("train", "ladder"):
        points, config = READERS[tracker](home, name_of(home, role))
        expect(home, role, points)
        assert "model.d_model" in config
        assert str(run_of(home, role).config.lr_embed)[:8] in config
    expect_job(READERS[tracker](home, "job")[0])


# -- without the tools ----------------------------------------------------------------------------------


class Memory:
    """A tracker that only remembers; `fails_at` its so many-th call."""

    calls: list[tuple[str, str, int]]
    fails_at = 10**9

    def __init__(self, folder: Path, name: str, config: Config) -> None:
        self.name = name
        self.call("begin", config["tokens"] if config else 0)

    def call(self, what: str, tokens: Any) -> None:
        type(self).calls.append((self.name, what, tokens))
        if len(self.calls) == self.fails_at:
            raise OSError(28, "No space left on device")

    def write(self, values: Values, tokens: int) -> None:
        self.call(next(iter(values)), tokens)

    def close(self) -> None:
        self.call("close", 0)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> type[Memory]:
    """A tracker under the name of a module that is there."""

    class Fresh(Memory):
        calls: list[tuple[str, str, int]] = []  # noqa: RUF012

    monkeypatch.setitem(TRACKERS, "json", Fresh)
    return Fresh


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_is_seen_while_it_trains(
    corpus: Corpus, small: RunConfig, memory: type[Memory], tmp_path: Path, ranks: int
) -> None:
    project, seen = Project(tmp_path), []
    project.listeners.append(lambda kind, id, record: seen.append(len(memory.calls)))
    with tracked(["json", "json"], project, Silent()) as progress:
        run = train_model(project, corpus, small.model_copy(update={"ranks": ranks}), progress=progress)
    name, points = f"train-{run.id}", [(f"train-{run.id}", "train/loss", p.tokens) for p in run.curve]
    begin, scores, close = (name, "begin", run.tokens), (name, "heldout/loss", run.tokens), (name, "close", 0)
    assert memory.calls == [begin, *points, scores, close]
    assert seen == [1 + len(points)]  # by the time the ledger had it
    assert len(project.listeners) == 1


def test_a_tracker_that_fails_costs_one_line(
    corpus: Corpus, small: RunConfig, memory: type[Memory], tmp_path: Path
) -> None:
    (tmp_path / "tracking").write_text("not a folder")
    project, listener = Project(tmp_path), Heard()
    memory.fails_at = 5
    with tracked(["json", "tensorboard"], project, listener) as progress:
        run = train_model(project, corpus, small, progress=progress)
    assert project.get("run", run.id, Run) == run
    lines = [line for line in listener.lines if line.startswith("tracking by ")]
    assert [line.split()[2] for line in lines] == ["tensorboard", "json"]
    assert (
        lines[1] == "tracking by json ends here, the run goes on: OSError: [Errno 28] No space left on device"
    )
    assert len(memory.calls) == 5


def test_what_is_open_is_closed_when_the_work_fails(
    corpus: Corpus, small: RunConfig, memory: type[Memory], tmp_path: Path
) -> None:
    project = Project(tmp_path)
    bad = small.model_copy(update={"lr_matrix": 1e30})
    with pytest.raises(TrainError, match="not finite"), tracked(["json"], project, Silent()) as progress:
        train_model(project, corpus, bad.model_copy(update={"tokens": 200 * 256}), progress=progress)
    assert project.listeners == []
    begun = [name for name, what, _ in memory.calls if what == "begin"]
    assert begun == [name for name, what, _ in memory.calls if what == "close"]


def test_names_are_checked_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainError, match="no tracker 'comet'") as caught:
        check(["comet"])
    assert "tensorboard, wandb, mlflow, trackio" in caught.value.hint
    monkeypatch.setattr("isoflop.trackers.find_spec", lambda name: None)
    with pytest.raises(TrainError, match="wandb is not installed") as caught:
        check(["wandb"])
    assert caught.value.hint == "install the extra: pip install 'isoflop[wandb]'"


UNTRACKED = """
import sys
from pathlib import Path
from isoflop import cli
from isoflop.corpus import load_corpus
from isoflop.pipeline import train_model
from isoflop.records import RunConfig
from isoflop.store import Project
train_model(Project(sys.argv[1]), load_corpus(Path(sys.argv[2])), RunConfig.from_json(sys.argv[3]))
print(*{"tensorboard", "torch.utils.tensorboard", "wandb", "mlflow", "trackio", "optuna"} & set(sys.modules))
"""


def test_without_a_tracker_none_is_imported(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    short = small.model_copy(update={"tokens": 256})
    words = [sys.executable, "-c", UNTRACKED, str(tmp_path), str(corpus.folder), short.to_json()]
    assert subprocess.check_output(words, text=True).strip() == ""
    assert not (tmp_path / "tracking").exists()
