"""ONNX and OpenVINO: graphs with keys and values, rounded by kept tools, compute what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finished import Home

from isoflop.engines import open_engine
from isoflop.errors import CorruptError, ProjectError
from isoflop.export.gated import FORMATS, Export, export
from isoflop.export.onnx import Cached, _unpacked
from isoflop.gpt import GPT
from isoflop.recipe import shape
from isoflop.using import evaluate_model

for package in ("onnx", "onnxruntime", "onnxscript", "openvino", "nncf"):
    pytest.importorskip(package, reason="the extras isoflop[onnx,openvino] are not installed")

KINDS = [(to, kind) for to in ("onnx", "openvino") for kind in FORMATS[to].kinds]


def once(trace: Callable[..., Any]) -> Callable[..., Any]:
    """The first call's answer, whatever is asked later."""
    made: list[Any] = []

    def traced(*model: Any, **options: Any) -> Any:
        made[:] = made or [trace(*model, **options)]
        return made[0]

    return traced


@pytest.fixture(scope="module")
def exports(home: Home) -> dict[tuple[str, str], Export]:
    """All are of one model, whose graph is traced once: that takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", once(torch.onnx.export))
        return {(to, kind): export(*home, to=to, kind=kind) for to, kind in KINDS}


def test_keys_and_values_change_nothing() -> None:
    torch.manual_seed(0)
    model = GPT(shape(64, 300, context=32).model_copy(update={"n_heads": 4, "n_kv_heads": 2, "head_dim": 16}))
    ids = torch.randint(0, 300, (2, 12))
    whole = model(ids)
    empty, cached = torch.zeros(2, 2, 0, 16), Cached(model)
    past, logits = [empty] * 4, []
    for start, end in ((0, 5), (5, 6), (6, 12)):
        seen, positions = torch.ones(2, end, dtype=torch.int64), torch.arange(start, end).expand(2, -1)
        out, *past = cached(ids[:, start:end], seen, positions, *past)
        logits.append(out)
    assert torch.allclose(torch.cat(logits, 1), whole, atol=1e-5)


def test_padding_before_a_text_is_not_seen() -> None:
    torch.manual_seed(0)
    model = GPT(shape(64, 300, context=32))
    ids, empty = torch.randint(0, 300, (1, 6)), torch.zeros(1, 2, 0, 32)
    padded, seen = (
        torch.cat((torch.zeros(1, 3, dtype=torch.int64), ids), 1),
        torch.ones(1, 9, dtype=torch.int64),
    )
    seen[:, :3] = 0
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    out = Cached(model)(padded, seen, positions, *[empty] * 4)[0]
    assert torch.allclose(out[:, 3:], model(ids), atol=1e-5)


def test_every_type_passes_the_gate_and_needs_fewer_bytes(exports: dict[tuple[str, str], Export]) -> None:
    for to in ("onnx", "openvino"):
        sizes = [exports[to, kind].bytes for kind in ("f32", "int8", "int4")]
        assert sizes == sorted(sizes, reverse=True)
    for done in exports.values():
        assert done.parity.lines == 1000
        assert done.parity.deviation < done.parity.tolerance


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_rounding_costs_what_its_bits_say(
    home: Home, exports: dict[tuple[str, str], Export], to: str
) -> None:
    whole = evaluate_model(home[2], home[1], eval_tokens=4096).loss
    losses = {
        kind: evaluate_model(home[0].folder / exports[to, kind].path, home[1], eval_tokens=4096).loss
        for kind in ("f32", "int8", "int4")
    }
    assert losses["f32"] == pytest.approx(whole, rel=1e-4)
    assert losses["int8"] == pytest.approx(whole, rel=5e-3)
    assert losses["f32"] < losses["int4"] < 1.2 * whole


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_tokens_may_come_in_parts(home: Home, exports: dict[tuple[str, str], Export], to: str) -> None:
    ids = list(range(1, 33))
    with open_engine(home[0].folder / exports[to, "f32"].path) as engine:
        whole = engine.feed(ids, every=True)
        engine.reset()
        parts = [engine.feed(ids[:20], every=True), *(engine.feed([i], every=False) for i in ids[20:])]
        assert np.concatenate(parts) == pytest.approx(whole, abs=1e-3 * float(whole.std()))
        with pytest.raises(ProjectError, match=f"{engine.context + 1} tokens do not fit"):
            engine.feed([1] * (engine.context - 31), every=False)


@pytest.mark.parametrize(("to", "file"), [("onnx", "model.onnx"), ("openvino", "openvino_model.xml")])
def test_a_damaged_graph_is_told(
    home: Home, exports: dict[tuple[str, str], Export], tmp_path: Path, to: str, file: str
) -> None:
    folder = home[0].folder / exports[to, "f32"].path
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:200])
    with pytest.raises(CorruptError, match="cannot open"), open_engine(tmp_path):
        pass


def test_four_bits_are_read_in_their_order() -> None:
    high, low = np.arange(16, dtype=np.uint8), np.arange(15, -1, -1, dtype=np.uint8)
    packed = (high << 4 | low).astype(np.uint8).reshape(1, 1, 16)
    found = _unpacked(packed, np.array([0.5], np.float32), 1, 32, 4)
    assert found[0, :4].tolist() == [0.5 * (15 - 8), 0.5 * (0 - 8), 0.5 * (14 - 8), 0.5 * (1 - 8)]
