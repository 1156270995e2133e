"""The average of models is a model, and is refused where it would be none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from isoflop.averaging import average
from isoflop.errors import CorruptError, ProjectError
from isoflop.export import load_pretrained, save_pretrained
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, RunConfig
from isoflop.trainer import Trainer


def small_run(corpus: Corpus) -> RunConfig:
    model = shape(64, corpus.vocab_size, n_layers=2, context=64)
    return recipe(model, 120 * 512, batch_tokens=512)


@pytest.fixture(scope="module")
def models(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """One trunk at a constant rate after 60, 75 and 90 steps; and what it began with."""
    root, config = tmp_path_factory.mktemp("models"), small_run(corpus)
    trainer, folders = Trainer(config, corpus, Silent()), []
    for steps in (0, 60, 75, 90):
        while trainer.step < steps:
            trainer.train_step(10 * config.tokens)
        folders.append(root / f"after-{steps}")
        save_pretrained(trainer.model, corpus, folders[-1])
    return [*folders[1:], folders[0]]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_average_is_the_mean_and_transformers_opens_it(
    models: list[Path], corpus: Corpus, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    made = average(models[:3], tmp_path / "even", corpus, eval_tokens=8192)
    found, parts = tensors(tmp_path / "even"), [tensors(m) for m in models[:3]]
    for name, tensor in found.items():
        mean = torch.stack([p[name].double() for p in parts]).mean(0)
        assert torch.allclose(tensor.double(), mean, rtol=1e-7, atol=0)  # as float32 rounds
    ids = torch.arange(20)[None]
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "even")(ids).logits
        assert (load_pretrained(tmp_path / "even")(ids) - theirs).abs().max() < 1e-4
    assert made.average.loss < min(
        s.loss for s in made.ingredients
    )  # a constant rate's noise is averaged out
    assert [s.share for s in made.ingredients] == pytest.approx([1 / 3] * 3)
    weighted = average(models[:2], tmp_path / "weighted", corpus, weights=[3, 1], eval_tokens=1024)
    assert [s.share for s in weighted.ingredients] == [0.75, 0.25]
    for name, tensor in tensors(tmp_path / "weighted").items():
        assert torch.equal(tensor, (0.75 * parts[0][name].double() + 0.25 * parts[1][name].double()).float())
    assert not list(tmp_path.glob(".*"))


def test_the_greedy_average_leaves_out_what_harms(models: list[Path], corpus: Corpus, tmp_path: Path) -> None:
    made = average([models[3], *models[:3]], tmp_path / "greedy", corpus, greedy=True, eval_tokens=8192)
    shares = [s.share for s in made.ingredients]
    assert shares[0] == 0.0
    assert sum(shares) == pytest.approx(1)
    assert made.average.loss <= min(s.loss for s in made.ingredients)
    chosen = [s.folder for s in made.ingredients if s.share]
    assert len(chosen) > 1
    even = average(chosen, tmp_path / "again", corpus, eval_tokens=8192)
    assert even.average.loss == pytest.approx(made.average.loss, abs=1e-6)
    worse = average([models[3], *models[:3]], tmp_path / "all", corpus, eval_tokens=8192)
    assert worse.average.loss > made.average.loss


def test_models_that_differ_are_named(models: list[Path], corpus: Corpus, tmp_path: Path) -> None:
    other = shutil.copytree(models[0], tmp_path / "other")
    raw = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(raw | {"rope_theta": 5.0}))
    with pytest.raises(ProjectError, match=r"other/config.json says rope_theta 5.0, .* says 10000.0"):
        average([models[0], other], tmp_path / "out", corpus)
    (other / "config.json").write_text(json.dumps(raw | {"attention_dropout": 0.1, "dtype": "bfloat16"}))
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["added_tokens"][0]["lstrip"] = True
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CorruptError, match=r"tokenizer of .*other is not"):
        average([models[0], other], tmp_path / "out", corpus)
    with pytest.raises(ProjectError, match=r"no config\.json"):
        average([models[0], tmp_path], tmp_path / "out", corpus)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "greedy", "says"),
    [
        ([1.0, 2.0, 3.0], False, "3 weights for 2 models"),
        ([1.0, -1.0], False, "the weights 1, -1 are no shares"),
        ([0.0, 0.0], False, "no shares"),
        ([1.0, 1.0], True, "decides the weights itself"),
    ],
)
def test_weights_that_cannot_be(
    models: list[Path], corpus: Corpus, tmp_path: Path, weights: list[float], greedy: bool, says: str
) -> None:
    with pytest.raises(ProjectError, match=says):
        average(models[:2], tmp_path / "out", corpus, weights=weights, greedy=greedy)


def test_an_average_is_on_disk_before_it_has_its_name(
    models: list[Path], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out", set()

    def note(path: Path) -> None:
        synced.add(path.name)
        assert out.exists() == (path == tmp_path)

    monkeypatch.setattr("isoflop.store._fsync", note)
    average(models[:2], out, corpus, eval_tokens=1024)
    assert {path.name for path in out.iterdir()} | {tmp_path.name} < synced


def test_a_failed_average_leaves_nothing(
    models: list[Path], corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isoflop.families.decoder.save_file", full)
    with pytest.raises(ProjectError, match="disk is full"):
        average(models[:2], tmp_path / "out", corpus, eval_tokens=1024)
    assert not list(tmp_path.iterdir())
