"""Every method: what it trains, that it is saved and read with the same predictions, and what it does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LAYERS, TINY, reviews, tiny_bert, tiny_qwen3, tiny_t5

from isoflop.adapting.loop import fine_tune, predict_all
from isoflop.adapting.methods import METHODS, merged, prepared
from isoflop.adapting.parts import depths, new_parameters
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import ADAPTED, TASK, is_adapted, load_adapted, save_adapted
from isoflop.adapting.training import groups_of
from isoflop.errors import AdaptError, CorruptError, ProjectError
from isoflop.tasks import Base, load_base, task_of

CLASSIFY = task_of("classification")
OPTIONS: dict[str, dict[str, Any]] = {
    "adapters": {"width": 8}, "last-layers": {"layers": 1}, "prefix": {"num_virtual_tokens": 4},
    "prompt": {"num_virtual_tokens": 4}, "p-tuning": {"num_virtual_tokens": 4},
}  # fmt: skip
UNFIT = {("qwen3", "prompt"), ("qwen3", "p-tuning")}  # with a head of labels
PAIRS = [(m, n) for m in ("bert", "qwen3") for n in METHODS if (m, n) not in UNFIT]


def base_of(name: str) -> Base:
    return load_base(TINY[name](), max_length=32)


def config_of(method: str, **options: Any) -> AdaptConfig:
    given = {"lr": METHODS[method].lr, "steps": 20, "batch": 8, "evaluations": 2, **options}
    return AdaptConfig(
        task="classification", method=method, method_options=OPTIONS.get(method, {}), **given
    )


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_it_trains_and_comes_back_with_equal_predictions(model: str, method: str, tmp_path: Path) -> None:
    base, rows, held = base_of(model), reviews(64), reviews(24, seed=5)
    spec = CLASSIFY.spec(rows, base)
    torch.manual_seed(0)
    before = {n: p.clone() for n, p in CLASSIFY.build(base, spec).named_parameters()}
    config = config_of(method, averaged=0.0)
    tuned = fine_tune(CLASSIFY, base, spec, rows, held, config)
    trained = {n for n, p in tuned.model.named_parameters() if p.requires_grad}
    assert trained and all("embed" not in n for n in trained) or method in ("full", "prefix", "prompt", "p-tuning")
    assert any(p.abs().sum() > 0 and not torch.equal(p, before.get(n, p + 1))
               for n, p in tuned.model.named_parameters() if p.requires_grad)  # fmt: skip
    assert len({tuple(p.flatten()[:3].tolist()) for n, p in tuned.model.named_parameters()}) > 1
    made = predict_all(CLASSIFY, base, spec, tuned.model, held)
    save_adapted(tmp_path / "model", CLASSIFY, base, spec, config, tuned.model)
    assert (tmp_path / "model" / ADAPTED).exists() == (not METHODS[method].merges)
    task, read_base, read_spec, read = load_adapted(tmp_path / "model")
    again = predict_all(task, read_base, read_spec, read, held)
    np.testing.assert_allclose(np.stack(again), np.stack(made), atol=1e-6)
