"""Runs that end when reading on does harm."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hearing import Heard, Kept, stops_after

from isoflop.corpus import build_corpus
from isoflop.errors import TrainError
from isoflop.interrupt import Interrupted
from isoflop.ladder import member
from isoflop.patience import Patience
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, RunConfig
from isoflop.train import train, train_trunk

LITTLE = 30_000  # bytes


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory, sources: tuple[str, ...]) -> Corpus:
    """Some pages, which a run reads again and again, in pieces that look like documents."""
    folder = tmp_path_factory.mktemp("little")
    text = (Path(sources[0]) / "base_events.py").read_text()[:LITTLE]
    for i in range(0, len(text), 2000):
        (folder / f"{i:06d}.txt").write_text(text[i : i + 2000])
    config = CorpusConfig(sources=(str(folder),), vocab_size=400, heldout_share=0.3)
    return build_corpus(config, tmp_path_factory.mktemp("corpora"))


@pytest.fixture
def config(little: Corpus) -> RunConfig:
    """At its full length seven times the corpus."""
    model = shape(64, little.vocab_size, n_layers=2, context=64)
    return recipe(model, 160 * 512, batch_tokens=512, eval_tokens=2048, patience=2, evaluate_every=5 * 512)


def restless(config: RunConfig, **changes: object) -> RunConfig:
    """A shorter run that jumps about, is scored often and stopped soon."""
    often = {
        "tokens": 40 * 512, "patience": 1, "evaluate_every": 512, "eval_tokens": 512, "lr_matrix": 0.2,
        "lr_embed": 0.28,
    }  # fmt: skip
    return config.model_copy(update=often | changes)


def plain(config: RunConfig, tokens: int) -> RunConfig:
    return config.model_copy(update={"tokens": tokens, "patience": 0, "evaluate_every": 0})


def test_a_model_that_learns_by_heart_is_better_stopped(
    little: Corpus, config: RunConfig, tmp_path: Path
) -> None:
    said = Heard()
    stopped = train(config, little, tmp_path / "stopped", progress=said)
    whole = train(plain(config, config.tokens), little, tmp_path / "whole")
    assert stopped.tokens < whole.tokens == config.tokens
    assert stopped.loss < whole.loss - 0.15
    assert stopped.curve[-1].tokens <= stopped.tokens
    assert stopped.flops == pytest.approx(whole.flops * stopped.tokens / whole.tokens)
    assert len([line for line in said.lines if "cooling down" in line]) == 1


def test_interrupted_anywhere_it_is_the_run_of_that_length(
    little: Corpus, config: RunConfig, tmp_path: Path
) -> None:
    config, kept = restless(config), Kept()
    for _ in range(4):
        with pytest.raises(Interrupted):
            train_trunk(config, [config.tokens], little, tmp_path / "killed", stopping=stops_after(4))
    (run,) = train_trunk(config, [config.tokens], little, tmp_path / "killed", keep=kept)
    assert run.tokens < config.tokens
    straight = train(config, little, tmp_path / "straight", keep=kept)
    assert (run.tokens, run.loss, run.id) == (straight.tokens, straight.loss, straight.id)
    assert run.config == config  # what was asked for
    alone = train(plain(config, run.tokens), little, tmp_path / "alone", keep=kept)
    assert alone.loss == run.loss
    assert all(torch.equal(kept.weights[0], w) for w in kept.weights[1:])


def test_ranks_stop_together(little: Corpus, config: RunConfig, tmp_path: Path) -> None:
    config = restless(config, ranks=2)
    assert train(config, little, tmp_path).tokens < config.tokens


def test_patience_counts_scores_without_a_better_one(config: RunConfig) -> None:
    watch = Patience(config.model_copy(update={"cooldown": 0.25}), 1000)
    assert watch.every == 5
    assert [step for step in range(740, 800) if watch.due(step)] == [740, 745]
    for step, loss in ((20, 3.0), (40, 3.1), (60, 2.9), (80, 2.9)):
        watch.hear(loss, step)
        assert watch.end == 1000
    state = watch.state()
    other = Patience(config.model_copy(update={"cooldown": 0.25}), 1000)
    other.load(state)
    other.hear(float("nan"), 100)
    assert other.end == 134  # 100 / (1 - 0.25), rounded up
    assert not any(map(other.due, range(101, 1000)))
    assert not any(map(Patience(config.model_copy(update={"patience": 0}), 1000).due, range(1000)))
    assert Patience(config.model_copy(update={"evaluate_every": 0}), 1000).every == 50


def test_a_trunk_with_branches_has_no_patience(little: Corpus, config: RunConfig, tmp_path: Path) -> None:
    counts = [512, 1024]
    with pytest.raises(TrainError, match="a patience of 2 would end a trunk before its 2 branches"):
        train_trunk(config, counts, little, tmp_path)
    with pytest.raises(TrainError, match="before its 2 branches"):
        member(config, counts, 1.0, 1.0)
