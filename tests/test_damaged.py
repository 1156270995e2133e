"""A model folder that is damaged, or of another architecture, is refused alike by all that take one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.errors import CorruptError, ProjectError
from isoflop.export import load_pretrained, save_pretrained
from isoflop.export.gated import export
from isoflop.families import find
from isoflop.families.sparse import WEIGHTS
from isoflop.records import Corpus, Run
from isoflop.store import Project
from isoflop.transforms import Transform
from isoflop.transforms.distill import distill, student
from isoflop.transforms.masks import mask_model
from isoflop.transforms.pruning import Wanted, prune_model
from isoflop.transforms.quantize import quantize

Use = Callable[[Project, Corpus, Path], object]


def taught_by(home: Project, corpus: Corpus, folder: Path) -> object:
    config, past = student(home, corpus, tokens=4096, width=32, layers=1)
    return distill(home, corpus, [folder], config, past)


def gone_on_from(home: Project, corpus: Corpus, folder: Path) -> object:
    return student(home, corpus, tokens=4096, start=folder)


USES: dict[str, Use] = {
    "teacher": taught_by,
    "student": gone_on_from,
    "prune": lambda home, corpus, folder: prune_model(home, corpus, folder, Wanted({"n_layers": 1})),
    "mask": mask_model,
    "quantize": lambda home, corpus, folder: quantize(home, corpus, folder, max_bytes=1e6),
    "export": lambda home, corpus, folder: export(home, corpus, folder, to="hf", kind="f32"),
}
NORM = "model.layers.1.input_layernorm.weight"
DAMAGES: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "missing": ({NORM: None}, f"weights lack {NORM}"),
    "misshapen": ({NORM: torch.ones(63)}, rf"{NORM} has the shape \(63,\), its config says \(32,\)"),
    "not finite": ({NORM: torch.full((32,), torch.nan)}, f"{NORM} of .* not finite"),
    "extra": ({"model.layers.7.x": torch.ones(1)}, "weights model.layers.7.x, which a model of its config"),
}


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "home")


def saved(corpus: Corpus, family: str, folder: Path) -> Path:
    """A small model of a family, as it begins."""
    found = find(family)
    shape = found.shape(32 if family == "isoflop" else 64, corpus.vocab_size, n_layers=2, context=64)
    save_pretrained(found.build(shape, 0), corpus, folder)
    return folder


def damage(folder: Path, tensors: dict[str, Tensor | None]) -> Path:
    weights = {k: v for k, v in (load_file(folder / WEIGHTS) | tensors).items() if v is not None}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", DAMAGES)
def test_the_tensor_is_named(home: Project, corpus: Corpus, tmp_path: Path, use: str, kind: str) -> None:
    tensors, says = DAMAGES[kind]
    folder = damage(saved(corpus, "isoflop", tmp_path / "model"), tensors)
    with pytest.raises(CorruptError, match=says):
        USES[use](home, corpus, folder)
    assert not home.all("run", Run)
    assert not home.all("transform", Transform)


@pytest.mark.parametrize("use", ["prune", "mask", "quantize", "export"])
def test_the_architecture_is_named(home: Project, corpus: Corpus, tmp_path: Path, use: str) -> None:
    folder = saved(corpus, "gpt2", tmp_path / "gpt2")
    with pytest.raises(ProjectError, match="of the family gpt2, and only our decoder can be"):
        USES[use](home, corpus, folder)


def test_tensors_of_transformers_models_are_named_too(corpus: Corpus, tmp_path: Path) -> None:
    folder, name = saved(corpus, "gpt2", tmp_path / "gpt2"), "transformer.h.1.ln_1.weight"
    whole = load_file(folder / WEIGHTS)
    for tensors, says in (
        ({name: None}, f"weights lack {name}"),
        ({name: torch.ones(63)}, rf"{name} has the shape \(63,\), its config says \(64,\)"),
        ({"transformer.h.9.x": torch.ones(1)}, "weights transformer.h.9.x, which a model of its config"),
    ):
        damage(folder, {**whole, "transformer.h.9.x": None, **tensors})
        with pytest.raises(CorruptError, match=says):
            load_pretrained(folder)
