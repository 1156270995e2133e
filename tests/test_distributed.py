"""Runs of several processes: the losses of one, sharded or not, wherever they go on, and under torchrun."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from hearing import Heard, save_to
from torch.distributed.tensor import DTensor

from isoflop import checkpoint, devices, launched
from isoflop.devices import collected, device_for, rank, run_ranks, whole_machine
from isoflop.errors import TrainError
from isoflop.families import OWN, find
from isoflop.identity import job_id, run_id
from isoflop.interrupt import Interrupted
from isoflop.pipeline import corpus_of, train_model
from isoflop.progress import Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, CorpusConfig, Run, RunConfig
from isoflop.starting import chosen_config
from isoflop.store import Project
from isoflop.train import train_trunk
from isoflop.trainer import Trainer
from isoflop.variant import Variant

STEPS = 8
CLOSE = 1e-5

Losses = dict[tuple[str, bool], list[float]]  # by family or what else is tried, and whether sharded


def of_family(name: str, corpus: Corpus, **values: Any) -> RunConfig:
    model = find(name).shape(32, corpus.vocab_size, n_layers=2, context=64)
    fixed = {"batch_tokens": 256, "warmup_tokens": 1024, "seed": 1, "precision": "float32"}
    return recipe(model, STEPS * 256, **(fixed | values))


def losses(config: RunConfig, corpus: Corpus) -> list[float]:
    trainer = Trainer(config, corpus, Silent())
    return [trainer.train_step(STEPS * config.batch_tokens) for _ in range(STEPS)]


def all_losses(configs: dict[tuple[str, bool], RunConfig], corpus: Corpus) -> Losses:
    return {key: losses(config, corpus) for key, config in configs.items()}


@pytest.fixture(scope="module")
def shared(corpus: Corpus) -> Losses:
    """Losses of two ranks."""
    plain = {
        "isoflop": of_family("isoflop", corpus),
        "gpt2": of_family("gpt2", corpus),
        "bf16": of_family("isoflop", corpus, precision="bf16"),
        "normuon": of_family("isoflop", corpus, optimizer="normuon"),
    }
    configs = {
        (name, shard): config.model_copy(update={"ranks": 2, "shard": shard})
        for name, config in plain.items()
        for shard in (False, True)
    }
    return run_ranks(2, partial(all_losses, configs, corpus), fresh=True)


@pytest.mark.parametrize("family", ["isoflop", "gpt2"])
def test_ranks_have_the_losses_of_one_process(corpus: Corpus, shared: Losses, family: str) -> None:
    alone = losses(of_family(family, corpus), corpus)
    assert alone[-1] < alone[0] - 0.05  # it learns: what is compared depends on every step
    assert shared[family, False] == pytest.approx(alone, abs=CLOSE)
    assert shared[family, True] == pytest.approx(alone, abs=CLOSE)


def test_ranks_in_16_bits_have_its_losses_to_its_rounding(corpus: Corpus, shared: Losses) -> None:
    alone = losses(of_family("isoflop", corpus, precision="bf16"), corpus)
    for shard in (False, True):
        assert shared["bf16", shard] == pytest.approx(alone, abs=0.01)


def test_ranks_even_the_rows_of_normuon_as_one_process_does(corpus: Corpus, shared: Losses) -> None:
    alone = losses(of_family("isoflop", corpus, optimizer="normuon"), corpus)
    assert alone[-1] < alone[0] - 0.05
    for shard in (False, True):
        assert shared["normuon", shard] == pytest.approx(alone, abs=CLOSE)


def mine(x: Any) -> torch.Tensor:
    """What this rank has of a tensor."""
    found: torch.Tensor = x.to_local() if isinstance(x, DTensor) else x
    return found


def spoilt_steps(configs: list[RunConfig], corpus: Corpus) -> list[list[list[tuple[bool, bool]]]]:
    """Of two steps, in the second of which one rank's gradient is not finite: is the loss, do weights stay?

    By config, rank and step.
    """
    found = []
    for config in configs:
        trainer = Trainer(config, corpus, Silent())
        weights = [mine(p.detach()) for p in trainer.model.parameters()]
        real = trainer.gradients

        def gradients(
            step: int, context: int | None = None, trainer: Trainer = trainer, real: Any = real
        ) -> torch.Tensor:
            loss: torch.Tensor = real(step, context)
            if step == 1 and rank() == 1:
                mine(trainer.model.head.grad).fill_(math.nan)
            return loss

        trainer.gradients = gradients  # type: ignore[method-assign]
        steps = []
        for _ in range(2):
            before = [weight.clone() for weight in weights]
            loss = trainer.train_step(config.tokens)
            steps.append((math.isfinite(loss), all(map(torch.equal, weights, before))))
        found.append(collected(steps))
    return found


def test_ranks_agree_that_a_gradient_is_not_finite(corpus: Corpus) -> None:
    config = of_family("isoflop", corpus).model_copy(update={"ranks": 2})
    configs = [config, config.model_copy(update={"shard": True})]
    assert run_ranks(2, partial(spoilt_steps, configs, corpus), fresh=True) == 2 * [
        2 * [[(True, False), (False, True)]]
    ]


# -- going on in other processes ----------------------------------------------------------------------


def trained(
    config: RunConfig, corpus: Corpus, folder: Path, *, ranks: int = 1, stop: int = 10**9
) -> tuple[Run | None, list[str]]:
    """The run, None when it was asked to stop after `stop` steps, and what it said."""
    heard = Heard()
    try:
        (run,) = train_trunk(
            config.model_copy(update={"ranks": ranks}), [config.tokens], corpus, folder, progress=heard,
            stopping=lambda: heard.done >= stop * config.batch_tokens,
            keep=partial(save_to, folder / "weights.pt"),
        )  # fmt: skip
    except Interrupted:
        return None, heard.lines
    return run, heard.lines


@pytest.fixture
def slow(small: RunConfig) -> RunConfig:
    """Steps enough to be stopped twice, and so small that rounding grows slowly."""
    rates = ("lr_matrix", "lr_embed", "lr_head", "lr_vector")
    smaller = {name: 0.1 * getattr(small, name) for name in rates}
    return small.model_copy(update={"tokens": 150 * small.batch_tokens, **smaller})


@pytest.mark.parametrize("shard", [False, True])
def test_a_run_goes_on_in_another_number_of_processes(
    corpus: Corpus, slow: RunConfig, tmp_path: Path, shard: bool
) -> None:
    expected, _ = trained(slow, corpus, tmp_path / "undisturbed")
    config, folder = slow.model_copy(update={"shard": shard}), tmp_path / "moved"
    assert trained(config, corpus, folder, ranks=2, stop=2)[0] is None
    run, said = trained(config, corpus, folder, ranks=1, stop=60)
    assert run is None
    assert [line for line in said if "by 2 process(es)" in line and "goes on with 1" in line]
    run, said = trained(config, corpus, folder, ranks=2)
    assert [line for line in said if "by 1 process(es)" in line and "goes on with 2" in line]
    assert run is not None
    assert expected is not None
    assert run.loss == pytest.approx(expected.loss, abs=CLOSE)
    weights, others = (torch.load(path / "weights.pt") for path in (folder, tmp_path / "undisturbed"))
    assert weights.keys() == others.keys()
    assert all(torch.allclose(w, others[name], atol=1e-4) for name, w in weights.items())
    # The record says what happened.
    assert expected.stretches == ()
    assert (run.config.ranks, run.config.shard) == (2, shard)
    assert [s.ranks for s in run.stretches] == [2, 1, 2]
    first, second, third = (s.tokens for s in run.stretches)
    assert 0 == first < second < third < run.tokens


def test_a_job_is_the_same_in_any_number_of_processes(corpus: Corpus, small: RunConfig) -> None:
    others = [small.model_copy(update={"ranks": 2}), small.model_copy(update={"threads": 3})]
    assert {job_id(c, corpus) for c in others} == {job_id(small, corpus)} == {run_id(small, corpus)}
    assert len({run_id(c, corpus) for c in (small, *others)}) == 3
    assert job_id(small.model_copy(update={"shard": True}), corpus) != job_id(small, corpus)


# -- torchrun -----------------------------------------------------------------------------------------

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
PRECISION = "float32"  # as the run of this process that they are compared with
SHAPE = ("train", "--width", "64", "--precision", PRECISION, "--json")
TRAIN = (*SHAPE, "--tokens", "30000", "--shard")

# A checkpoint a step.
EAGER = """
from isoflop.cli import main
from isoflop.train import train_trunk
train_trunk.__kwdefaults__["checkpoint_seconds"] = 0
main()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, ...]) -> Path:
    """A project with a corpus."""
    folder = tmp_path_factory.mktemp("distributed") / "project"
    corpus_of(Project(folder), CorpusConfig(sources=sources, vocab_size=512, heldout_share=0.02))
    return folder


def start(*words: object) -> subprocess.Popen[str]:
    loopback = devices._interface(devices.LOOPBACK)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, *map(str, words)], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip


def ours(err: str) -> list[str]:
    """What the command said, among the lines of torchrun."""
    return [line for line in err.splitlines() if line.startswith(("error: ", "hint: ", "train", "this run"))]


def test_torchrun_trains_is_killed_and_goes_on(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "eager.py"
    program.write_text(EAGER)
    process = start("--no-python", sys.executable, program, *TRAIN, "--project", home)
    while process.poll() is None and not list(home.glob("runs/*/checkpoints.json")):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
    helper = next(
        child for child in psutil.Process(process.pid).children() if child.environ().get("RANK") == "1"
    )
    helper.kill()
    out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert out == ""
    assert [line for line in ours(err) if not line.startswith("train")] == [
        "error: one of the 2 processes of this run was killed",
        "hint: look for a lack of memory, then run the same command again: it goes on where it was",
    ], err
    process = start("-m", "isoflop", *TRAIN, "--project", home)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert ours(err)[0] == "train ..."
    assert len(ours(err)) == 2
    run = Run.model_validate(json.loads(out))
    assert (run.config.ranks, run.config.shard, run.stretches) == (2, True, ())
    project = Project(home)
    corpus = corpus_of(project)
    config = chosen_config(
        project, corpus, width=64, layers=None, tokens=30000, lr_scale=1.0, seed=0,
        variant=Variant.of(OWN, [f"precision={PRECISION}"]),
    )  # fmt: skip
    alone = train_model(project, corpus, config.model_copy(update={"ranks": 1, "threads": 1}))
    assert run.loss == pytest.approx(alone.loss, abs=1e-4)
    # What other processes finished is not trained again.
    assert train_model(project, corpus, run.config.model_copy(update={"ranks": 1, "threads": 5})) == run


# A checkpoint a step, and what each rank ends with in a file: torchrun itself ends with 1 whatever they do.
NOTED = """
import os, sys
from pathlib import Path
from isoflop.cli import main
from isoflop.train import train_trunk
train_trunk.__kwdefaults__["checkpoint_seconds"] = 0
folder = sys.argv.pop(1)
try:
    main()
except SystemExit as end:
    Path(folder, os.environ["RANK"]).write_text(str(end.code))
    raise
"""


def test_sigterm_to_torchrun_saves_and_ends(home: Path, tmp_path: Path) -> None:
    program, codes = tmp_path / "noted.py", tmp_path / "codes"
    program.write_text(NOTED)
    codes.mkdir()
    before = set(home.glob("runs/*"))
    process = start(
        "--no-python", sys.executable, program, codes, *SHAPE, "--tokens", 400_000, "--project", home
    )  # fmt: skip
    while process.poll() is None and not (
        begun := [f for f in home.glob("runs/*") if f not in before and (f / checkpoint.INDEX).exists()]
    ):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
    process.terminate()
    out, err = process.communicate(timeout=300)
    assert out == ""
    assert err.splitlines().count("interrupted; the same command goes on from here") == 1, err
    assert "error: " not in err
    assert {path.name: path.read_text() for path in codes.iterdir()} == {"0": "143", "1": "0"}
    state = checkpoint.load(begun[0], Silent())
    assert state is not None
    assert state["done_steps"] > 0
    assert not list(begun[0].glob(".*.tmp"))


def test_processes_of_torchrun_are_the_ranks_and_share_the_cores(
    corpus: Corpus, small: RunConfig, sole_rank: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched, "_group", launched.Group(None, 0))
    monkeypatch.setattr(devices, "cores", lambda: 12)
    monkeypatch.setattr(devices, "world", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # two machines
    found = whole_machine(small)
    assert (found.ranks, found.threads) == (8, 3)
    assert devices.present(small.model_copy(update={"ranks": 2})) == found


def test_each_process_of_a_machine_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_for() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_for() == torch.device("cuda", 1)
    assert device_for("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(TrainError, match="started process 3 on a machine with 2 CUDA devices"):
        device_for()
