"""torch's dynamic int8: behind the gate, opened and scored like any other engine's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from isoflop.engines import TORCH, is_export, open_engine
from isoflop.errors import CorruptError, ProjectError
from isoflop.export import save_pretrained
from isoflop.export.gated import export
from isoflop.gpt import GPT
from isoflop.recipe import shape
from isoflop.records import Corpus
from isoflop.store import Project
from isoflop.using import evaluate_model


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def home(request: pytest.FixtureRequest, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with a model of initial weights, and its int8 export as `made`."""
    place = tmp_path_factory.mktemp("torch")
    torch.manual_seed(0)
    config = shape(64, corpus.vocab_size, n_layers=2, context=64).model_copy(update={"tied": request.param})
    model = GPT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    save_pretrained(model, corpus, place / "model")
    done = export(Project(place / "project"), corpus, place / "model", to="torch", kind="int8")
    assert 0 < done.parity.deviation < done.parity.tolerance == 0.1
    assert done.parity.lines == 1000
    (place / "made").symlink_to(place / "project" / done.path)
    return place


def test_it_is_scored_in_its_engine(home: Path, corpus: Corpus) -> None:
    assert is_export(home / "made")
    whole = evaluate_model(home / "model", corpus, eval_tokens=2048).loss
    assert evaluate_model(home / "made", corpus, eval_tokens=2048).loss == pytest.approx(whole, rel=5e-3)


def test_the_engine_says_what_it_reads_for_a_token(home: Path) -> None:
    with open_engine(home / "made") as ours, open_engine(home / "model") as whole:
        assert (ours.name, whole.name) == ("torch int8", "transformers")
        assert 0 < ours.weight_bytes < 0.5 * whole.weight_bytes


def test_a_damaged_file_is_refused(home: Path, tmp_path: Path) -> None:
    for file in (home / "made").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 1000 if file.name == TORCH else None])
    with pytest.raises(CorruptError, match="transformers cannot open"), open_engine(tmp_path):
        pass


def test_it_has_one_type(home: Path, corpus: Corpus) -> None:
    with pytest.raises(ProjectError, match="torch has no type 'int4'"):
        export(Project(home / "project"), corpus, home / "model", to="torch", kind="int4")
