"""Quantization-aware training: gradients at rounded weights, and a file of exactly what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finished import Home

from isoflop.errors import TrainError
from isoflop.export import load_pretrained
from isoflop.export.gguf import read_weights
from isoflop.gpt import GPT
from isoflop.interrupt import Interrupted
from isoflop.options import check_options
from isoflop.progress import Silent
from isoflop.records import Corpus, ModelConfig, Run, RunConfig
from isoflop.rounding import KINDS, rounded
from isoflop.train import train, train_trunk
from isoflop.trainer import Trainer
from isoflop.transforms import Transform, qat
from isoflop.transforms.qat import UNTRAINED, Training, train_rounded
from isoflop.using import evaluate_model

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")

TOKENS = 8192  # held-out


def matrices(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.ndim == 2}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_type_holds_is_rounded_to_itself(kind: str) -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    once = rounded(weight, kind)
    assert not torch.equal(once, weight)
    assert torch.equal(rounded(once, kind), once)


def test_gradients_are_those_at_the_rounded_weights(small: RunConfig, corpus: Corpus) -> None:
    trainer = Trainer(small.model_copy(update={"rounding": "q4_0"}), corpus, Silent())
    other = Trainer(small, corpus, Silent())
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    with torch.no_grad():
        for p in matrices(other.model).values():
            p.copy_(rounded(p, "q4_0"))
    assert float(trainer.gradients(0)) == float(other.gradients(0))
    for (name, ours), theirs in zip(trainer.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(ours, before[name])
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_what_is_scored_and_kept_has_rounded_weights(
    small: RunConfig, corpus: Corpus, tmp_path: Path
) -> None:
    kept: list[dict[str, torch.Tensor]] = []

    def keep(model: Any, run: Run) -> None:
        kept.append({name: p.detach().clone() for name, p in matrices(model).items()})

    train(small.model_copy(update={"rounding": "q4_0"}), corpus, tmp_path, keep=keep)
    assert kept[0]
    for weight in kept[0].values():
        assert torch.equal(rounded(weight, "q4_0"), weight)


def test_an_interrupted_run_goes_on_to_the_same_bits(
    small: RunConfig, corpus: Corpus, tmp_path: Path
) -> None:
    config = small.model_copy(update={"rounding": "q4_0", "tokens": 20 * small.batch_tokens})
    whole = train(config, corpus, tmp_path / "whole")
    steps = iter(range(8))
    with pytest.raises(Interrupted):
        train_trunk(
            config, [config.tokens], corpus, tmp_path / "parts", stopping=lambda: next(steps, None) is None
        )
    assert train(config, corpus, tmp_path / "parts").loss == whole.loss


@pytest.fixture(scope="module")
def trained(home: Home) -> qat.Trained:
    return train_rounded(*home, Training("q4_0", 40_000, lr_scale=0.3), eval_tokens=TOKENS)


def test_training_wins_back_what_rounding_costs(home: Home, trained: qat.Trained) -> None:
    made = trained.transform
    assert made.before is not None
    lost = made.measured[UNTRAINED] - made.before.loss
    assert lost > 0
    assert made.after.loss - made.before.loss < 0.8 * lost
    file = home[0].folder / trained.export.path
    assert evaluate_model(file, home[1], eval_tokens=TOKENS).loss == made.after.loss
    assert home[0].get("transform", made.id, Transform) == made
    assert set(made.flops) == {"training", "teacher"}
    assert all(spent > 0 for spent in made.flops.values())


def test_the_file_holds_exactly_what_was_trained(home: Home, trained: qat.Trained) -> None:
    run = home[0].get("run", str(trained.transform.run_id), Run)
    assert run is not None
    assert run.config.rounding == "q4_0"
    folder = load_pretrained(home[0].folder / str(run.model))
    assert isinstance(folder, GPT)
    file = GPT(folder.config)
    read_weights(file, home[0].folder / trained.export.path)
    for name, weight in folder.state_dict().items():
        assert torch.equal(file.state_dict()[name], weight), name


def test_what_is_done_is_not_done_again(
    home: Home, trained: qat.Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qat, "_run", None)
    training = Training("q4_0", 40_000, lr_scale=0.3)
    assert train_rounded(*home, training, eval_tokens=TOKENS) == trained


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounding": "q3_k"}, "trained for weights of the type 'q3_k'"),
        ({"rounding": "q4_0", "shard": True}, "sharded"),
    ],
)
def test_roundings_that_cannot_be_are_told(small: RunConfig, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainError, match=words):
        check_options(small.model_copy(update=changes))


def test_only_our_decoder_is_trained_for_it(small: RunConfig) -> None:
    model = ModelConfig(**{**small.model.model_dump(), "family": "gpt2"})
    with pytest.raises(TrainError, match="family gpt2 is not written as GGUF"):
        check_options(small.model_copy(update={"rounding": "q4_0", "model": model}))


def test_another_teacher_is_refused(home: Home) -> None:
    with pytest.raises(TrainError, match="--train-by me trains nothing"):
        train_rounded(*home, Training("q4_0", 40_000, by="me"))
