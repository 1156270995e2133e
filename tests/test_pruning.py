"""The whole transform: records, healing, steps, masks on disk, and folders that cannot be pruned."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop import flops
from isoflop.errors import CorruptError, IsoflopError, ProjectError, TrainError
from isoflop.evaluate import heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.export.calibrate import importance
from isoflop.families.sparse import SPARSE, WEIGHTS, compact
from isoflop.gpt import GPT
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, Run
from isoflop.store import Project
from isoflop.trainer import Trainer
from isoflop.transforms import Transform
from isoflop.transforms.importance import blocks
from isoflop.transforms.masks import mask, mask_model, matrices
from isoflop.transforms.pruning import Heal, Wanted, calibration_loss, prune_model

EVAL = 4096


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after 120 steps."""
    folder = tmp_path_factory.mktemp("pruning") / "model"
    config = recipe(shape(64, corpus.vocab_size, n_layers=3, context=64), 120 * 512, batch_tokens=512)
    trainer = Trainer(config, corpus, Silent())
    for _ in range(120):
        trainer.train_step(config.tokens)
    with torch.no_grad():  # weights that began at zero and never moved are not told from pruned ones
        for p in trainer.model.parameters():
            p.add_(1e-6 * torch.randn_like(p) * (p == 0))
    save_pretrained(trainer.model, corpus, folder)
    return folder


@pytest.fixture
def model(trained: Path) -> GPT:
    found = load_pretrained(trained)
    assert isinstance(found, GPT)
    return found


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "home")


def test_pruning_in_steps_heals_each_and_records_all(home: Project, corpus: Corpus, trained: Path) -> None:
    wanted = Wanted({"n_layers": 2, "d_ff": 96}, tokens=2048, steps=2)
    heal = Heal(16_384, by="train")
    chain = prune_model(home, corpus, trained, wanted, heal=heal, eval_tokens=EVAL)
    assert [step.kind for step in chain] == ["prune", "heal", "prune", "heal"]
    assert chain == home.all("transform", Transform)
    first, healed, second, last = chain
    assert first.flops["calibration"] == flops.flops_per_token(load_pretrained(trained).config) * 2048 / 3
    assert first.options["target"] == {"n_layers": 2, "n_heads": 2, "d_ff": 96, "d_model": 64}
    assert first.options["shape"] == {"n_layers": 3, "n_heads": 2, "d_ff": 128, "d_model": 64}
    for before, after in pairwise(chain):
        assert after.before == before.after
    assert healed.after.loss < first.after.loss
    assert last.after.loss < second.after.loss
    assert healed.change == pytest.approx(healed.after.loss - first.after.loss, abs=1e-6)
    run = home.get("run", str(last.run_id), Run)
    assert run is not None
    assert last.flops == {"training": run.flops_spent}
    found = load_pretrained(home.folder / last.model)
    assert (found.config.n_layers, found.config.d_ff) == (2, 96)
    assert last.after.loss == pytest.approx(heldout(found, corpus, eval_tokens=EVAL).loss, abs=1e-6)
    assert last.after.params_total == sum(p.numel() for p in found.parameters())
    runs = len(home.all("run", Run))
    assert prune_model(home, corpus, trained, wanted, heal=heal, eval_tokens=EVAL) == chain
    assert len(home.all("run", Run)) == runs  # nothing is done again


def test_healing_asks_the_unpruned_model(home: Project, corpus: Corpus, trained: Path) -> None:
    wanted = Wanted({"d_ff": 96}, tokens=2048)
    pruned, healed = prune_model(home, corpus, trained, wanted, heal=Heal(16_384), eval_tokens=EVAL)
    assert healed.kind == "distill"
    roles = {source.role: source for source in healed.sources}
    assert roles["teacher"].hash == pruned.sources[0].hash
    assert (home.folder / roles["model"].path).samefile(home.folder / pruned.model)
    assert healed.flops["teacher"] > 0
    assert healed.after.loss < pruned.after.loss


def test_a_share_takes_the_shape_with_the_lowest_loss(home: Project, corpus: Corpus, trained: Path) -> None:
    (done,) = prune_model(home, corpus, trained, Wanted(share=0.75, tokens=2048), eval_tokens=EVAL)
    whole = flops.params_total(load_pretrained(trained).config)
    assert 0.6 * whole < done.after.params_total <= 0.75 * whole
    assert done.flops["search"] > 0
    kept = load_pretrained(home.folder / done.model)
    assert isinstance(kept, GPT)
    chosen = calibration_loss(kept, corpus, 2048)
    (narrow,) = prune_model(
        home, corpus, trained, Wanted({"n_layers": 1}, share=0.75, tokens=2048), eval_tokens=EVAL
    )
    other = load_pretrained(home.folder / narrow.model)
    assert isinstance(other, GPT)
    assert chosen <= calibration_loss(other, corpus, 2048) + 1e-6


def test_llama_cpp_serves_what_was_pruned(home: Project, corpus: Corpus, trained: Path) -> None:
    """Heads that together are narrower than the model, in 8-bit blocks, through the gate of exports."""
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    from isoflop.export.gated import export

    keep = {"n_layers": 2, "n_heads": 1, "d_ff": 96}
    (done,) = prune_model(home, corpus, trained, Wanted(keep, tokens=2048), eval_tokens=EVAL)
    made = export(home, corpus, home.folder / done.model, kind="q8_0")
    assert made.params_total == done.after.params_total


def test_calibration_loss_is_the_mean_over_windows(model: GPT, corpus: Corpus) -> None:
    from isoflop.export.calibrate import windows

    rows = torch.cat(list(windows(corpus, 64, 2048)))
    with torch.no_grad():
        expected = float(model.loss(rows[:, :-1], rows[:, 1:]))
    assert calibration_loss(model, corpus, 2048) == pytest.approx(expected, rel=1e-5)


def test_masks_take_the_lowest_scores(model: GPT, corpus: Corpus) -> None:
    squares = importance(model, corpus, 2048)
    before = {name: w.detach().clone() for name, w in matrices(model).items()}
    table = model.table.detach().clone()
    mask(model, 0.5, squares, two_four=False)
    assert len(before) == 7 * 3
    for name, weight in matrices(model).items():
        zero = weight == 0
        score = before[name].abs().numpy() * np.sqrt(squares[name])
        assert (zero.sum(1) == weight.shape[1] // 2).all()
        for row, gone in zip(score, zero.numpy(), strict=True):
            assert row[gone].max() <= row[~gone].min()
        assert torch.equal(weight[~zero], before[name][~zero])
    assert torch.equal(model.table, table)


def test_magnitude_compares_within_a_matrix(model: GPT) -> None:
    before = {name: w.detach().clone() for name, w in matrices(model).items()}
    mask(model, 0.25, None, two_four=False)
    for name, weight in matrices(model).items():
        zero = weight == 0
        assert int(zero.sum()) == round(0.25 * weight.numel())
        assert before[name][zero].abs().max() <= before[name][~zero].abs().min()


def test_two_of_four(model: GPT) -> None:
    mask(model, 0.5, None, two_four=True)
    for weight in matrices(model).values():
        assert ((weight.view(-1, 4) != 0).sum(1) == 2).all()


@pytest.mark.parametrize("two_four", [False, True])
def test_masked_models_take_less_room_and_open_again(
    home: Project, corpus: Corpus, trained: Path, two_four: bool
) -> None:
    done = mask_model(home, corpus, trained, two_four=two_four, tokens=2048, eval_tokens=EVAL)
    folder = home.folder / done.model
    assert not (folder / WEIGHTS).exists()
    masked = load_pretrained(folder)
    assert isinstance(masked, GPT)
    packed = sum(w.numel() for w in matrices(masked).values())
    saved = (trained / WEIGHTS).stat().st_size - (folder / SPARSE).stat().st_size
    assert saved == pytest.approx(packed * (4 - 2 - 1 / 8), abs=8192)  # but for the files' headers
    assert done.after.loss == pytest.approx(heldout(masked, corpus, eval_tokens=EVAL).loss, abs=1e-6)
    assert done.change is not None
    assert done.change > 0
    assert mask_model(home, corpus, trained, two_four=two_four, tokens=2048, eval_tokens=EVAL) == done


def test_sparse_weights_are_the_same_bits(model: GPT, corpus: Corpus, tmp_path: Path) -> None:
    with torch.no_grad():
        blocks(model)[0].mlp.up_proj.weight[:, ::3] = 0.0
    save_pretrained(model, corpus, tmp_path / "m")
    dense = load_file(tmp_path / "m" / WEIGHTS)
    compact(tmp_path / "m")
    packed = load_file(tmp_path / "m" / SPARSE)
    name = "model.layers.0.mlp.up_proj.weight"
    assert f"{name}.mask" in packed
    assert "lm_head.weight" in packed  # nothing is zero in it
    again = load_pretrained(tmp_path / "m").state_dict()
    assert all(torch.equal(again[n], w) for n, w in dense.items())
    save_file({**packed, f"{name}.values": packed[f"{name}.values"][1:]}, tmp_path / "m" / SPARSE)
    with pytest.raises(CorruptError, match=f"{name}.values has"):
        load_pretrained(tmp_path / "m")
    save_file({**packed, f"{name}.mask": packed[f"{name}.mask"][1:].clone()}, tmp_path / "m" / SPARSE)
    with pytest.raises(CorruptError, match=f"{name}.mask does not fit"):
        load_pretrained(tmp_path / "m")


def changed(trained: Path, to: Path, **tensors: Tensor | None) -> Path:
    """A copy of the folder with other tensors, or without."""
    folder = shutil.copytree(trained, to)
    weights = {k: v for k, v in (load_file(folder / WEIGHTS) | tensors).items() if v is not None}
    save_file(weights, folder / WEIGHTS)
    return folder


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        ({NORM: None}, f"weights lack {NORM}"),
        ({NORM: torch.ones(63)}, rf"{NORM} has the shape \(63,\), its config says \(64,\)"),
        ({NORM: torch.full((64,), torch.nan)}, f"{NORM} of .* not finite"),
        (
            {"model.layers.7.x": torch.ones(1)},
            r"weights model.layers.7.x, which a model of its config has not",
        ),
    ],
)
def test_damaged_folders_are_named(
    home: Project, corpus: Corpus, trained: Path, tmp_path: Path, tensor: dict[str, Tensor | None], says: str
) -> None:
    folder = changed(trained, tmp_path / "damaged", **tensor)
    with pytest.raises(CorruptError, match=says):
        prune_model(home, corpus, folder, Wanted({"n_layers": 2}), eval_tokens=EVAL)
    assert not (home.folder / "artifacts").exists()
    assert not home.all("transform", Transform)


def test_other_architectures_are_named(home: Project, corpus: Corpus, tmp_path: Path) -> None:
    from isoflop.families import find

    family = find("gpt2")
    other = family.build(family.shape(64, corpus.vocab_size, context=64), 0)
    save_pretrained(other, corpus, tmp_path / "gpt2")
    with pytest.raises(ProjectError, match=r"of the family gpt2, and only our decoder"):
        prune_model(home, corpus, tmp_path / "gpt2", Wanted({"n_layers": 1}))


def test_a_failed_step_leaves_nothing(
    home: Project, corpus: Corpus, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("isoflop.families.decoder.save_file", full)
    with pytest.raises(ProjectError, match="disk is full"):
        prune_model(home, corpus, trained, Wanted({"n_layers": 2}, tokens=512), eval_tokens=EVAL)
    monkeypatch.undo()
    monkeypatch.setattr("isoflop.families.sparse.save_file", full)
    with pytest.raises(ProjectError, match="disk is full"):
        mask_model(home, corpus, trained, tokens=512, eval_tokens=EVAL)
    assert not list((home.folder / "artifacts").iterdir())
    assert not home.all("transform", Transform)


@pytest.mark.parametrize(
    ("wanted", "heal", "says"),
    [
        (Wanted(), None, "nothing to prune to"),
        (Wanted({"n_layers": 2}, tokens=0), None, "0 tokens are no text to calibrate on"),
        (Wanted({"n_layers": 2}, steps=0), None, "0 steps prune nothing"),
        (Wanted({"n_layers": 2}), Heal(0), "--heal-tokens is 0"),
        (Wanted({"n_layers": 2}), Heal(4096, by="prayer"), "--heal-by prayer heals nothing"),
        (Wanted(share=1.5), None, "share of 1.5 of the parameters is not between"),
        (Wanted({"n_layers": 2}, by="wanda"), None, "--by wanda is no importance"),
    ],
)
def test_what_cannot_be_wanted(
    home: Project, corpus: Corpus, trained: Path, wanted: Wanted, heal: Heal | None, says: str
) -> None:
    with pytest.raises(IsoflopError, match=says):
        prune_model(home, corpus, trained, wanted, heal=heal, eval_tokens=EVAL)
    assert not home.all("transform", Transform)


def test_masks_that_cannot_be(home: Project, corpus: Corpus, trained: Path, model: GPT) -> None:
    with pytest.raises(TrainError, match="--by taylor is no rule"):
        mask_model(home, corpus, trained, rule="taylor")
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(TrainError, match="is not between 0 and 1"):
            mask(model, share, None, two_four=False)


def test_text_shorter_than_a_window(home: Project, corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained, tmp_path / "far")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"max_position_embeddings": corpus.train_tokens}))
    with pytest.raises(IsoflopError, match="less than one window"):
        prune_model(home, corpus, folder, Wanted({"n_layers": 2}), eval_tokens=EVAL)
    with pytest.raises(IsoflopError, match="less than one window"):
        mask_model(home, corpus, folder)
