"""Training that goes on from a model folder: the same bits after a kill, exact replay, less forgetting."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from conftest import STDLIB
from hypothesis import given, settings

from isoflop import checkpoint, flops
from isoflop.continued import Consolidation, Mixed, Past, fisher_information, initial_model
from isoflop.corpus import build_corpus
from isoflop.errors import CorpusError, CorruptError, TrainError
from isoflop.evaluate import heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families import OWN, find
from isoflop.identity import run_id
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.pipeline import corpus_of, train_model
from isoflop.places import here
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Run, RunConfig
from isoflop.starting import RATE_SHARE, continuation
from isoflop.store import Project
from isoflop.train import train, train_trunk
from isoflop.trainer import Batches, Trainer
from isoflop.variant import Variant

CHILD = """
import sys
from pathlib import Path
import isoflop.train as training
from isoflop.continued import Past
from isoflop.corpus import load_corpus
from isoflop.records import RunConfig
config, past = RunConfig.from_json(sys.argv[1]), Past(Path(sys.argv[3]), Path(sys.argv[4]))
corpus, folder = load_corpus(Path(sys.argv[2])), Path(sys.argv[5])
training.train_trunk(config, [config.tokens], corpus, folder, checkpoint_seconds=0.0, past=past)
"""


@pytest.fixture(scope="session")
def old(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Other text with the same tokenizer: tables of characters."""
    config = CorpusConfig(
        sources=(str(STDLIB / "encodings"),),
        tokenizer=str(corpus.folder / "tokenizer.json"),
        heldout_share=0.2,
    )
    return build_corpus(config, tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="session")
def learned(old: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that has learned the old text."""
    folder = tmp_path_factory.mktemp("learned")
    model = shape(32, old.vocab_size, n_layers=2, context=64)
    config = recipe(model, 100 * 256, batch_tokens=256, warmup_tokens=1024, eval_tokens=2048)
    train(config, old, folder / "run", keep=lambda model, run: save_pretrained(model, old, folder / "model"))
    return folder / "model"


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "home")


def on(home: Project, corpus: Corpus, folder: Path, **options: Any) -> tuple[RunConfig, Past]:
    """A continuation in small steps, in this process."""
    config, past = continuation(home, corpus, folder, **{"tokens": 40 * 256, **options})
    small = {"batch_tokens": 256, "warmup_tokens": 1024, "eval_tokens": 4096, "ranks": 1, "threads": 1}
    return config.model_copy(update=small), past


def test_it_starts_where_the_folder_ended_at_half_the_rates(
    home: Project, corpus: Corpus, learned: Path
) -> None:
    config, past = on(home, corpus, learned)
    trainer = Trainer(config, corpus, Silent(), past)
    pairs = zip(trainer.model.parameters(), load_pretrained(learned).parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    fresh = recipe(config.model, config.tokens)
    assert config.lr_matrix == RATE_SHARE * fresh.lr_matrix
    assert config.lr_embed == RATE_SHARE * fresh.lr_embed
    assert past.model == (home.folder / "artifacts" / f"initial-{config.initial}").absolute()
    assert on(home, corpus, past.model)[0] == config  # an artifact is not kept twice
    plain = config.model_copy(update={"initial": ""})
    assert run_id(plain, corpus) != run_id(config, corpus)
    assert "initial" not in json.loads(plain.to_json())
    with pytest.raises(TrainError, match="is not given"):
        Trainer(config, corpus, Silent())
    with pytest.raises(TrainError, match="need a model that goes on"):
        Trainer(plain.model_copy(update={"ewc": 1.0}), corpus, Silent())


def test_it_has_a_machine_of_its_place_to_itself(home: Project, corpus: Corpus, learned: Path) -> None:
    def laid_out(config: RunConfig) -> RunConfig:
        assert config.accumulate == 2  # on which the layout depends
        return config.model_copy(update={"ranks": 3, "threads": 5})

    place, variant = replace(here(), whole=laid_out), Variant.of(OWN, ["accumulate=2"])
    config, _ = continuation(home, corpus, learned, tokens=4096, variant=variant, place=place)
    assert (config.ranks, config.threads) == (3, 5)


def test_a_changed_folder_or_corpus_is_noticed(
    home: Project, corpus: Corpus, old: Corpus, learned: Path
) -> None:
    config, past = on(home, corpus, learned, old=old.folder, replay_share=0.5)
    assert past.model is not None
    (past.model / "extra").write_text("x")
    with pytest.raises(CorruptError, match="has the hash"):
        initial_model(config, past)
    (past.model / "extra").unlink()
    with pytest.raises(CorruptError, match="the run began with"):
        Trainer(config, corpus, Silent(), Past(past.model, corpus.folder))


@given(share=st.integers(0, 1000), step=st.integers(0, 200))
@settings(max_examples=30, deadline=None)
def test_the_share_of_old_text_is_exact(corpus: Corpus, old: Corpus, share: int, step: int) -> None:
    config = recipe(shape(32, corpus.vocab_size, n_layers=2, context=64), 0, batch_tokens=512)
    new, was = Batches(corpus, config), Batches(old, config)
    mixed, first = Mixed(new, was, share / 1000), 8 * step
    rows = [mixed.row(g) for g in range(first, first + 8)]
    assert torch.equal(mixed(step), torch.from_numpy(np.stack(rows)))
    olds = first * share // 1000
    news = first - olds
    for g, row in enumerate(rows, first):
        if (g + 1) * share // 1000 > olds:
            assert (row == was.row(olds)).all()
            olds += 1
        else:
            assert (row == new.row(news)).all()
            news += 1
    assert olds == (first + 8) * share // 1000


def test_the_penalty_pulls_as_autograd_says(corpus: Corpus, old: Corpus, learned: Path) -> None:
    model = load_pretrained(learned)
    config = recipe(model.config, 0, batch_tokens=256, ewc_tokens=256)
    fisher = fisher_information(model, config, Batches(old, config), old, OBJECTIVES["causal"].examples)
    held = Consolidation(model, fisher, 30.0)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=noise))
    ids = torch.randint(0, corpus.vocab_size, (2, 64), generator=noise)
    model.zero_grad()
    parts = [(fisher[n] * (p - start[n]).square()).sum() for n, p in model.named_parameters()]
    (model.loss(ids, ids) + 30.0 / 2 * torch.stack(parts).sum()).backward()  # type: ignore[no-untyped-call]
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    model.loss(ids, ids).backward()  # type: ignore[no-untyped-call]
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    held.add_gradients()
    for p, want, before in zip(model.parameters(), wanted, plain, strict=True):
        assert p.grad is not None
        assert torch.allclose(p.grad, want, rtol=1e-4, atol=1e-7)
        assert not torch.equal(p.grad, before)


def test_fisher_information_is_the_mean_of_squares_a_token(old: Corpus, learned: Path) -> None:
    model = load_pretrained(learned)
    config = recipe(model.config, 0, batch_tokens=256, ewc_tokens=128)
    text = Batches(old, config)
    found = fisher_information(model, config, text, old, OBJECTIVES["causal"].examples)
    squares = []
    for i in range(2):
        row = torch.from_numpy(text.row(i))[None]
        losses = torch.nn.functional.cross_entropy(model(row[:, :-1]).mT, row[:, 1:], reduction="sum")
        squares.append(torch.autograd.grad(losses, [model.head])[0].square())
    assert torch.allclose(found["lm_head.weight"], (squares[0] + squares[1]) / 128, rtol=1e-3, atol=1e-9)


def keep_to(path: Path, model: LanguageModel, run: Run) -> None:
    torch.save(model.state_dict(), path)


def test_killed_it_ends_with_the_same_bits(
    home: Project, corpus: Corpus, old: Corpus, learned: Path, tmp_path: Path
) -> None:
    past_ways: dict[str, Any] = {"old": old.folder, "replay_share": 0.25, "ewc": 10.0, "ewc_tokens": 512}
    config, past = on(home, corpus, learned, tokens=24 * 256, **past_ways)
    folder = tmp_path / "killed"
    places = [str(corpus.folder), str(past.model), str(past.old), str(folder)]
    child = subprocess.Popen([sys.executable, "-c", CHILD, config.to_json(), *places])
    while child.poll() is None and not (folder / checkpoint.INDEX).exists():
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL, "the run ended before it was killed"
    keeps = [partial(keep_to, tmp_path / f"{name}.pt") for name in ("after", "straight", "joined")]
    (after,) = train_trunk(config, [config.tokens], corpus, folder, keep=keeps[0], past=past)
    (straight,) = train_trunk(config, [config.tokens], corpus, tmp_path / "s", keep=keeps[1], past=past)
    assert after.loss == straight.loss
    assert after.forgetting == straight.forgetting
    first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("after", "straight"))
    assert all(torch.equal(first[k], second[k]) for k in first)
    two = config.model_copy(update={"ranks": 2})
    (joined,) = train_trunk(two, [two.tokens], corpus, tmp_path / "j", keep=keeps[2], past=past)
    assert joined.loss == pytest.approx(straight.loss, abs=2e-2)  # the same batches, other sums
    assert joined.forgetting is not None


def test_replay_and_consolidation_forget_less(
    home: Project, corpus: Corpus, old: Corpus, learned: Path, tmp_path: Path
) -> None:
    lost, new = {}, {}
    known = heldout(load_pretrained(learned), old, eval_tokens=4096).loss
    ways: dict[str, dict[str, float]] = {
        "plain": {}, "replay": {"replay_share": 0.5}, "ewc": {"ewc": 100.0, "ewc_tokens": 4096},
    }  # fmt: skip
    for name, options in ways.items():
        config, past = on(home, corpus, learned, old=old.folder, **options)
        run = train(config, corpus, tmp_path / name, past=past)
        assert Run.from_json(run.to_json()) == run
        assert run.forgetting is not None
        lost[name], new[name] = run.forgetting.nats, run.loss
        assert run.forgetting.before == pytest.approx(known)
        assert run.forgetting.nats == pytest.approx(run.forgetting.after - run.forgetting.before)
        assert 0 < run.forgetting.nats_se < 1
        spent = (run.tokens + config.ewc_tokens) * flops.flops_per_token(config.model)
        assert run.flops_spent == pytest.approx(spent)
    assert lost["replay"] < lost["plain"] - 0.1
    assert lost["ewc"] < lost["plain"] - 0.1
    assert max(new.values()) < heldout(load_pretrained(learned), corpus, eval_tokens=4096).loss - 0.5


@pytest.mark.parametrize(("name", "objective"), [("gpt2", "causal"), ("bert", "masked")])
def test_models_of_transformers_go_on_too(corpus: Corpus, name: str, objective: str, tmp_path: Path) -> None:
    """A folder, a corpus made with its tokenizer, and back: mask and end of text stay what they were."""
    family = find(name)
    made = family.build(family.shape(64, corpus.vocab_size, n_layers=2, context=64), 0)
    save_pretrained(made, corpus, tmp_path / "model")
    home = Project(tmp_path / "other")
    tokenizer = str(tmp_path / "model" / "tokenizer.json")
    text = corpus_of(
        home, CorpusConfig(sources=(str(STDLIB / "email"),), tokenizer=tokenizer, heldout_share=0.2)
    )
    config, past = on(home, text, tmp_path / "model")
    assert config.model.objective == objective
    assert flops.params_total(config.model) == sum(p.numel() for p in made.parameters())
    run = train_model(home, text, config, role="continued", past=past)
    assert run.model is not None
    kept = load_pretrained(home.folder / run.model)
    assert kept.config.vocab_size == made.config.vocab_size
    assert heldout(kept, text, eval_tokens=4096).loss == pytest.approx(run.loss, abs=1e-5)
    assert run.loss < heldout(made, text, eval_tokens=4096).loss - 0.2
    tokens = json.loads((home.folder / run.model / "tokenizer_config.json").read_text())
    assert tokens.get("mask_token") == ("<|mask|>" if objective == "masked" else None)
    again, _ = on(home, text, home.folder / run.model)
    assert again.initial == run.model.rpartition("-")[2] != config.initial
    assert not list((home.folder / "artifacts").glob(f"initial-{again.initial}"))  # it is there already
    shutil.rmtree(tmp_path / "model")
    assert train_model(home, text, config, past=past) == run


def test_what_does_not_fit_is_refused(
    home: Project, corpus: Corpus, old: Corpus, learned: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainError, match="--tokens above zero"):
        continuation(home, corpus, learned, tokens=None)
    with pytest.raises(TrainError, match="need the text"):
        continuation(home, corpus, learned, tokens=100, replay_share=0.1)
    with pytest.raises(TrainError, match=r"replay share of 1\.0"):
        continuation(home, corpus, learned, tokens=100, old=old.folder, replay_share=1.0)
    with pytest.raises(TrainError, match="cannot be negative"):
        continuation(home, corpus, learned, tokens=100, old=old.folder, ewc=-1.0)
    with pytest.raises(CorpusError, match="no old corpus in"):
        continuation(home, corpus, learned, tokens=100, old=tmp_path)
    config = CorpusConfig(sources=(str(STDLIB / "json"),), vocab_size=400, heldout_share=0.3)
    other = build_corpus(config, tmp_path / "corpora")
    with pytest.raises(CorpusError, match="tokenizer of the old corpus"):
        continuation(home, corpus, learned, tokens=100, old=other.folder)
    with pytest.raises(CorruptError, match="the tokenizer of") as caught:
        continuation(home, other, learned, tokens=100)
    assert f"--tokenizer {learned / 'tokenizer.json'}" in caught.value.hint
