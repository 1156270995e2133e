"""Runs end with the same bits whatever happens to them."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from hearing import Heard, Kept, save_to

from isoflop import checkpoint
from isoflop.errors import CorruptError, TrainError
from isoflop.progress import Silent
from isoflop.records import Corpus, Run, RunConfig
from isoflop.train import train, train_trunk
from isoflop.trainer import Batches, Trainer

CHILD = """
import json, sys
from pathlib import Path
import isoflop.train as training
from isoflop.corpus import load_corpus
from isoflop.records import RunConfig
config = RunConfig.from_json(sys.argv[1])
training.train_trunk(
    config, json.loads(sys.argv[2]), load_corpus(Path(sys.argv[3])), Path(sys.argv[4]), checkpoint_seconds=0.0
)
"""


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_learns_and_accounts(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    run = train(small, corpus, tmp_path)
    assert run.loss < 5.5 < 6.0 < run.curve[0].loss  # ln 512 = 6.24
    assert run.tokens == small.tokens
    assert run.flops == pytest.approx(run.flops_spent)
    assert run.bpb == pytest.approx(run.loss / 0.6931 / corpus.bytes_per_token, rel=0.1)
    assert 0 < run.loss_se < 0.2
    assert run.seconds_train > 0
    assert run.params_matmul < run.params_total
    assert [p.tokens for p in run.curve] == sorted({p.tokens for p in run.curve})
    assert Run.from_json(run.to_json()) == run


def test_a_branch_is_the_run_of_its_own_length(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    kept = Kept()
    counts = [20 * 256, 40 * 256, 60 * 256]
    runs = train_trunk(small, counts, corpus, tmp_path / "trunk", keep=kept)
    assert [r.tokens for r in runs] == counts
    assert len({r.trunk for r in runs}) == 1
    alone = Kept()
    for tokens, run, weights in zip(counts, runs, kept.weights, strict=True):
        again = train(small.model_copy(update={"tokens": tokens}), corpus, tmp_path / str(tokens), keep=alone)
        assert torch.equal(weights, alone.weights[-1])
        assert (again.loss, again.id) == (run.loss, run.id)
        points = [p.tokens for p in run.curve]
        assert points == sorted(set(points))


@pytest.mark.parametrize(("kills", "ranks"), [(3, 1), (2, 2)])
def test_killed_again_and_again_it_ends_with_the_same_bits(
    corpus: Corpus, small: RunConfig, tmp_path: Path, kills: int, ranks: int
) -> None:
    counts = [80 * 256, 160 * 256]
    config = small.model_copy(update={"tokens": counts[-1], "ranks": ranks})
    folder = tmp_path / "killed"
    arguments = [
        sys.executable,
        "-c",
        CHILD,
        config.to_json(),
        json.dumps(counts),
        str(corpus.folder),
        str(folder),
    ]
    seen = -1
    for _ in range(kills):
        child = subprocess.Popen(arguments)
        while child.poll() is None and _saved_step(folder) < seen + 20:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.returncode == -signal.SIGKILL, "the run ended before it was killed"
        seen = _saved_step(folder)
    resumed, straight = partial(save_to, tmp_path / "resumed.pt"), partial(save_to, tmp_path / "straight.pt")
    after = train_trunk(config, counts, corpus, folder, keep=resumed)
    before = train_trunk(config, counts, corpus, tmp_path / "straight", keep=straight)
    assert [r.loss for r in after] == [r.loss for r in before]
    assert same(torch.load(tmp_path / "resumed.pt"), torch.load(tmp_path / "straight.pt"))


def _saved_step(folder: Path) -> int:
    try:
        return int(json.loads((folder / checkpoint.INDEX).read_text())[-1]["file"][11:-3])
    except (OSError, ValueError, IndexError):
        return -1


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, {"step": step}, step)
    files = sorted(tmp_path.glob("*.pt"))
    assert len(files) == checkpoint.KEEP
    data = bytearray(files[-1].read_bytes())
    data[len(data) // 2] ^= 1
    files[-1].write_bytes(data)
    assert checkpoint.load(tmp_path, Silent()) == {"step": 2}
    files[0].write_bytes(b"short")
    with pytest.raises(CorruptError, match="no checkpoint"):
        checkpoint.load(tmp_path, Silent())


@pytest.mark.parametrize(
    "harm",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("sha256", "sha25v"),  # one bit, and still JSON
        lambda text: text.replace("file", "fhle"),
        lambda text: text.replace('"file": "checkpoint-000000002.pt"', '"file": 2'),
        lambda text: "{}",
        lambda text: "[7]",
    ],
)
def test_a_damaged_index_is_said_in_a_sentence(tmp_path: Path, harm: Callable[[str], str]) -> None:
    checkpoint.save(tmp_path, {"step": 1}, 1)
    checkpoint.save(tmp_path, {"step": 2}, 2)
    path = tmp_path / checkpoint.INDEX
    text = path.read_text()
    path.write_text(harm(text))
    with pytest.raises(CorruptError, match=r"checkpoints\.json is not a checkpoint index: ") as caught:
        checkpoint.load(tmp_path, Silent())
    assert caught.value.hint == f"delete {tmp_path} to start this run again"
    path.write_text(text)
    assert checkpoint.load(tmp_path, Silent()) == {"step": 2}


def spoils(what: str, number: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first so many computations of batch `number` find a weight, or leave a gradient, not finite."""
    real, left = Trainer.gradients, [times]

    def gradients(self: Trainer, step: int, context: int | None = None) -> torch.Tensor:
        spoilt = step == number and left[0] > 0
        left[0] -= spoilt
        if spoilt and what == "loss":
            self.model.head.detach()[0, 0] = math.inf
        loss = real(self, step, context)
        if spoilt and what == "gradient":
            assert self.model.head.grad is not None
            self.model.head.grad[0, 0] = math.inf
        assert math.isfinite(loss) == (not spoilt or what == "gradient")
        return loss

    monkeypatch.setattr(Trainer, "gradients", gradients)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_goes_back_once_then_stops_and_spoils_no_checkpoint(
    corpus: Corpus, small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def trained(name: str) -> Run:
        return train_trunk(small, [small.tokens], corpus, tmp_path / name, checkpoint_seconds=0)[0]

    with monkeypatch.context() as once:
        spoils(what, 30, 1, once)
        run = trained("once")
    assert run.rate_scale == 0.5
    assert run.loss < 5.7
    with monkeypatch.context() as twice:
        spoils(what, 30, 2, twice)
        with pytest.raises(TrainError, match="not finite at step 31, twice"):
            trained("twice")
    state = checkpoint.load(tmp_path / "twice", Silent())
    assert state is not None
    assert state["done_steps"] == 30
    assert all(torch.isfinite(weight).all() for weight in state["trainer"]["model"].values())
    again = trained("twice")
    assert (again.loss, again.rate_scale) == (trained("undisturbed").loss, 1.0)


def test_an_epoch_visits_every_window_once(corpus: Corpus, small: RunConfig) -> None:
    batches = Batches(corpus, small)
    windows = [batches._window(i) for i in range(batches.windows)]
    assert sorted(windows) == list(range(batches.windows))
    other = Batches(corpus, small.model_copy(update={"seed": 1}))
    assert [other._window(i) for i in range(20)] != windows[:20]


def test_compiled_training_agrees(corpus: Corpus, small: RunConfig, tmp_path: Path) -> None:
    short = small.model_copy(update={"tokens": 20 * 256})
    plain = train(short, corpus, tmp_path / "plain")
    compiled = train(short.model_copy(update={"compile": True}), corpus, tmp_path / "compiled")
    assert compiled.loss == pytest.approx(plain.loss, abs=2e-3)
    assert compiled.seconds_compile > 0


def test_without_a_compiler_it_says_so_and_trains(
    corpus: Corpus, small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    said = Heard()
    config = small.model_copy(update={"tokens": 10 * 256, "compile": True})
    run = train(config, corpus, tmp_path, progress=said)
    assert run.seconds_compile == 0
    assert said.lines == ["no C++ compiler found: training runs uncompiled"]
