"""GPTQ: less error of a layer's output, on the grids that llama.cpp reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from finished import Home
from numpy.typing import NDArray

from isoflop.errors import ProjectError
from isoflop.export import gptq
from isoflop.export.calibrate import importance, second_moments
from isoflop.export.gated import chosen_rounding, export, exportable
from isoflop.export.gguf import restored, stored
from isoflop.export.rounders import rounder_of
from isoflop.gpt import GPT
from isoflop.recipe import shape
from isoflop.records import Corpus
from isoflop.transforms import quantize as room
from isoflop.transforms.quantize import quantize
from isoflop.using import evaluate_model

pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")

ROWS, COLUMNS = 24, 96


def weight() -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(0).standard_normal((ROWS, COLUMNS))).astype(np.float32)


def moments() -> NDArray[np.float32]:
    """Of inputs that are correlated."""
    draw = np.random.default_rng(1)
    x = draw.standard_normal((2000, COLUMNS)) @ draw.standard_normal((COLUMNS, COLUMNS))
    found: NDArray[np.float32] = (x.T @ x / len(x)).astype(np.float32)
    return found


def error(rounded: NDArray[np.float32]) -> float:
    """Mean square error of the output."""
    e = (weight() - rounded).astype(np.float64)
    return float(np.einsum("rc,cd,rd->", e, moments(), e))


@pytest.mark.parametrize("kind", gptq.KINDS)
def test_errors_are_made_up_for(kind: str) -> None:
    found = restored(*gptq.compensated(weight(), kind, moments()))
    calibrated = restored(*stored(weight(), kind, np.ascontiguousarray(moments().diagonal())))
    assert error(found) < 0.75 * error(calibrated)


@pytest.mark.parametrize("kind", gptq.KINDS)
def test_a_block_holds_the_levels_that_were_chosen(kind: str) -> None:
    packed, _ = stored(weight()[:, :32], kind)
    codes = torch.randint(len(gptq.LEVELS[kind]), (ROWS, 32), generator=torch.Generator().manual_seed(0))
    changed = gptq._packed(codes, packed, kind)
    assert changed.shape == packed.shape
    scale, minimum = gptq._scales(packed, kind)
    wanted = scale[:, None] * torch.tensor(gptq.LEVELS[kind])[codes] + minimum[:, None]
    assert restored(changed, stored(weight(), kind)[1]) == pytest.approx(wanted.numpy(), rel=1e-6, abs=1e-9)


def test_inputs_that_never_come_and_rows_of_zeros_do_no_harm() -> None:
    some = weight()
    some[0] = 0.0
    never = moments()
    never[:, 5] = never[5] = 0.0
    found = restored(*gptq.compensated(some, "q4_0", never))
    assert np.isfinite(found).all()
    assert (found[0] == 0).all()
    assert np.isfinite(restored(*gptq.compensated(some, "q4_0", np.zeros_like(never)))).all()


def test_rows_that_are_no_whole_blocks_are_rounded_as_ever() -> None:
    narrow, there = weight()[:, :40], moments()[:40, :40]
    found, type = gptq.compensated(narrow, "q4_0", there)
    assert type.name == "F16"
    assert (found == stored(narrow, "q4_0")[0]).all()


def test_importance_is_the_diagonal_of_the_second_moments(corpus: Corpus) -> None:
    model = GPT(shape(32, corpus.vocab_size, n_layers=2, context=64))
    whole = second_moments(model, corpus, 1024)
    for name, diagonal in importance(model, corpus, 1024).items():
        assert whole[name].diagonal() == pytest.approx(diagonal, rel=1e-4)


def test_a_model_loses_less_by_it(home: Home) -> None:
    losses = {}
    for rounding in ("nearest", "gptq"):
        done = export(*home, kind="q4_0", rounding=rounding)
        assert done.rounding == rounding
        losses[rounding] = evaluate_model(home[0].folder / done.path, home[1], eval_tokens=8192).loss
    whole = evaluate_model(home[2], home[1], eval_tokens=8192).loss
    assert losses["gptq"] - whole < 0.75 * (losses["nearest"] - whole)


def test_matrices_of_several_types_are_rounded_by_it(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SENSITIVITY_TOKENS", 512)
    made = quantize(*home, max_loss_increase=0.01, rounding="gptq", calibrate=8192, eval_tokens=4096)
    assert made.export.rounding == "gptq"
    assert made.transform.before is not None
    assert made.transform.after.loss <= 1.01 * made.transform.before.loss


def test_the_embedding_is_rounded_to_its_nearest(corpus: Corpus, home: Home) -> None:
    model = exportable(home[2], home[1])
    table = model.table.detach().numpy()
    rounder = rounder_of(model, home[1], "gptq", 512)
    assert (rounder("model.embed_tokens.weight", table, "q4_0")[0] == stored(table, "q4_0")[0]).all()
    assert rounder("lm_head.weight", table, "f16")[1].name == "F16"


@pytest.mark.parametrize(
    ("said", "meant"),
    [((None, None), ("calibrated", 65_536)), ((None, 0), ("nearest", 0)), (("nearest", None), ("nearest", 0)),
     (("gptq", 512), ("gptq", 512))],
)  # fmt: skip
def test_what_is_not_said_follows(said: tuple[Any, Any], meant: tuple[str, int]) -> None:
    assert chosen_rounding(*said) == meant


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "q4_0", "rounding": "awq"}, "no rounding 'awq'"),
        ({"kind": "q4_0", "rounding": "gptq", "calibrate": 0}, "gptq does not go with 0"),
        ({"kind": "q4_0", "rounding": "nearest", "calibrate": 512}, "nearest does not go with 512"),
        ({"kind": "q6_k", "rounding": "gptq"}, "q6_k knows no rounding gptq"),
        ({"kind": "f16", "rounding": "gptq"}, "f16 rounds no weights by text: --rounding gptq"),
    ],
)
def test_roundings_that_cannot_be_are_told(home: Home, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ProjectError, match=words):
        export(*home, **options)
