"""Values of the recipe that the user replaces."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from isoflop.errors import TrainError
from isoflop.families import OWN
from isoflop.identity import run_id
from isoflop.pipeline import corpus_of, fit_runs
from isoflop.recipe import recipe, shape
from isoflop.records import Ladder, Result, Run
from isoflop.store import Project
from isoflop.variant import DEFAULT, Variant


def test_without_changes_it_is_the_recipe() -> None:
    model = shape(96, 512)
    assert DEFAULT.shape(96, 512) == model
    assert DEFAULT.config(model, 10_000, seed=3) == recipe(model, 10_000, seed=3)


def test_values_are_replaced_or_multiplied_in_their_own_type() -> None:
    made = Variant.of(
        OWN, ["cooldown=0.5", "lr_matrix=x0.5", "betas=0.8,0.95", "model.d_ff=x1.5", "model.tied=true"]
    )
    model = made.shape(96, 512)
    config, derived = made.config(model, 10_000), recipe(model, 10_000)
    assert (model.d_ff, model.tied) == (round(1.5 * shape(96, 512).d_ff), True)
    assert (config.cooldown, config.betas) == (0.5, (0.8, 0.95))
    assert config.lr_matrix == derived.lr_matrix / 2
    assert made.applied(derived) == config.model_copy(update={"model": made.applied(derived).model})


def test_what_is_derived_from_a_changed_value_follows_it() -> None:
    config = Variant.of(OWN, ["batch_tokens=x2"]).config(shape(96, 512), 0)
    assert config.batch_tokens == 2 * recipe(shape(96, 512), 0).batch_tokens
    assert config.warmup_tokens == 10 * config.batch_tokens
    for name in ("adamw", "soap"):
        halved = Variant.of(OWN, [f"optimizer={name}", "lr_matrix=x0.5"])
        config = halved.config(shape(96, 512), 0)
        derived = recipe(shape(96, 512), 0, optimizer=name)
        assert config.lr_matrix == derived.lr_matrix / 2
        assert halved.applied(recipe(shape(96, 512), 0)).lr_matrix == pytest.approx(config.lr_matrix)


def test_values_go_with_a_power_of_the_width() -> None:
    made = Variant.of(
        OWN,
        ["weight_decay=0.1@128^-1", "lr_embed=x2@128^0.5", "batch_tokens=2048@96^1", "model.n_layers=2@96^1"],
    )
    narrow, wide = (made.config(made.shape(d, 512), 0) for d in (96, 384))
    assert narrow.weight_decay == pytest.approx(0.1 * 4 / 3)
    assert wide.weight_decay == pytest.approx(0.1 / 3)
    assert wide.lr_embed == pytest.approx(2 * recipe(shape(384, 512), 0).lr_embed * 3**0.5)
    assert (narrow.model.n_layers, wide.model.n_layers) == (2, 8)
    assert (narrow.batch_tokens, wide.batch_tokens) == (2048, 8192)
    whole = Variant.of(OWN, ["batch_tokens=2048@96^1"]).config(shape(64, 512), 0)
    assert whole.batch_tokens == 1536  # of whole windows


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("lr_matirx=0.1", "no 'lr_matirx' of --set"),
        ("cooldown", "'cooldown' of --set has no value"),
        ("cooldown=long", "'cooldown=long' of --set is not a value of cooldown, which is 0.3"),
        ("batch_tokens=xx", "'batch_tokens=xx' of --set is not a value of batch_tokens"),
        ("betas=0.9", "'betas=0.9' of --set is not a value of betas"),
        ("seed=3", "'seed' of --set is decided elsewhere"),
        ("model.d_model=64", "'model.d_model' of --set is decided elsewhere"),
        ("cooldown=2", "cooldown is 2.0, and must be at least 0 and below 1"),
        ("lr_matrix=nan", "lr_matrix is nan, and must be at least 0"),
        ("grad_clip=inf", "grad_clip is inf, and must be at least 0 and below inf"),
        ("betas=0.9,1", "betas is 0.9,1.0, and both"),
        ("batch_tokens=100", "a batch of 100 tokens is less than one window of 512"),
        ("precision=fp8", "no precision 'fp8'"),
        ("optimizer=lion", "no optimizer 'lion'"),
        ("cooldown_shape=none", "no cooldown_shape 'none'"),
        ("lr_matrix=0.1@0^1", "'lr_matrix=0.1@0\\^1' of --set is not a value of lr_matrix"),
        ("lr_matrix=0.1@64", "'lr_matrix=0.1@64' of --set is not a value of lr_matrix"),
        ("lr_matrix=-1@64^1", "lr_matrix is -2.0, and must be at least 0"),
        ("model.n_layers=0", "model.n_layers is 0, and must be at least 1"),
        ("model.n_heads=7", "7 heads cannot share 4 key and value heads"),
        ("model.head_dim=31", "model.head_dim is 31"),
    ],
)
def test_a_wrong_change_is_named(change: str, words: str) -> None:
    with pytest.raises(TrainError, match=words):
        Variant.of(OWN, [change])


def test_laws_of_two_variants_in_one_project_are_apart(project: tuple[Path, Result], tmp_path: Path) -> None:
    home = Project(shutil.copytree(project[0], tmp_path / "p"))
    corpus = corpus_of(home)
    ladder, runs = home.all("ladder", Ladder)[0], [r for r in home.all("run", Run) if r.role == "ladder"]
    before = fit_runs(home, corpus, bootstrap=0)[1]
    variant = Variant.of(OWN, ["lr_matrix=x0.5"])

    members = tuple(m.model_copy(update={"config": variant.applied(m.config)}) for m in ladder.members)
    home.put("ladder", ladder.model_copy(update={"id": "v", "members": members, "changes": variant.changes}))
    for r in runs:
        config = variant.applied(r.config)
        changed = {"config": config, "id": run_id(config, corpus), "loss": 0.9 * r.loss}
        home.put("run", r.model_copy(update=changed))
    after = fit_runs(home, corpus, bootstrap=0)[1]
    assert before.n == after.n == len(runs)
    assert after.observations.loss == pytest.approx([0.9 * x for x in before.observations.loss])
