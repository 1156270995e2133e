"""compressed-tensors: packed weights behind the gate, opened by transformers and scored as any export is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import Home
from safetensors.torch import load_file

from isoflop.engines import COMPRESSED, is_export, open_engine
from isoflop.errors import CorruptError, ProjectError
from isoflop.export import load_pretrained
from isoflop.export.calibrate import second_moments
from isoflop.export.gated import Export, export
from isoflop.families import OWN
from isoflop.gpt import GPT
from isoflop.improving.space import representations
from isoflop.recipe import shape
from isoflop.using import evaluate_model

pytest.importorskip("compressed_tensors", reason="the extra isoflop[compressed-tensors] is not installed")

KINDS = ("w8a16", "w4a16")


@pytest.fixture(scope="module")
def exports(home: Home) -> dict[str, Export]:
    return {kind: export(*home, to=COMPRESSED, kind=kind) for kind in KINDS}


def test_both_types_pass_the_gate_and_cost_what_their_bits_say(
    home: Home, exports: dict[str, Export]
) -> None:
    whole = evaluate_model(home[2], home[1], eval_tokens=4096).loss
    losses = {}
    for kind, done in exports.items():
        assert done.parity.lines == 1000
        assert done.parity.deviation < 1e-5  # float32 of the same weights
        folder = home[0].folder / done.path
        assert is_export(folder)
        losses[kind] = evaluate_model(folder, home[1], eval_tokens=4096).loss
    assert losses["w8a16"] == pytest.approx(whole, rel=5e-3)
    assert whole < losses["w4a16"] < 1.2 * whole
    assert exports["w4a16"].bytes < exports["w8a16"].bytes


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("kind", "d_ff", "group"), [
    ("w4a16", 256, 128), ("w4a16", 192, 64), ("w4a16", 160, 32), ("w4a16", 168, None), ("w8a16", 256, None),
])  # fmt: skip
def test_what_is_packed_is_rounded_to_the_nearest_level(
    tmp_path: Path, tied: bool, kind: str, d_ff: int, group: int | None
) -> None:
    """Read again here, by the layout of the format: the first of a word's values in its lowest bits."""
    from isoflop.export.compressed import read_compressed, write_compressed

    torch.manual_seed(0)
    config = shape(128, 300, n_layers=1, context=32)
    model = GPT(config.model_copy(update={"tied": tied, "d_ff": d_ff}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    OWN.save(model, tmp_path, 0)
    write_compressed(model, tmp_path, kind=kind)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["dtype"] == "bfloat16"
    assert raw["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] == group
    found = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in found) == (not tied)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    read_compressed(model, tmp_path)
    bits = int(kind[1])
    packed = [n.removesuffix(".weight_packed") for n in found if n.endswith("packed")]
    assert len(packed) == 7
    for name in packed:
        words = found[f"{name}.weight_packed"].numpy().view(np.uint32)
        levels = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)) & (2**bits - 1)
        rows, columns = found[f"{name}.weight_shape"].tolist()
        whole = torch.tensor(levels.reshape(rows, -1)[:, :columns].astype(np.float32) - 2 ** (bits - 1))
        scale = found[f"{name}.weight_scale"].float()
        wide = scale.repeat_interleave(columns // scale.shape[1], dim=1)
        nearest = (before[f"{name}.weight"] / wide).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert torch.equal(whole, nearest)
        ours = model.state_dict()[f"{name}.weight"]
        assert torch.allclose(ours, whole * wide, rtol=0.005)  # products are rounded to bf16
    assert torch.allclose(
        model.state_dict()["model.embed_tokens.weight"], before["model.embed_tokens.weight"], rtol=0.005
    )


@pytest.mark.parametrize(("kind", "d_ff"), [("w4a16", 256), ("w4a16", 168), ("w8a16", 256)])
def test_errors_are_made_up_for(home: Home, tmp_path: Path, kind: str, d_ff: int) -> None:
    """By groups, by rows in 4 bits, and in 8: less error of each layer's output than to the nearest."""
    from isoflop.export.compressed import read_compressed, write_compressed

    torch.manual_seed(0)
    corpus = home[1]
    model = GPT(shape(128, corpus.vocab_size, n_layers=1, context=64).model_copy(update={"d_ff": d_ff}))
    OWN.save(model, tmp_path, 0)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    moments = second_moments(model, corpus, 2048)
    rounded = []
    for known in (None, moments):
        OWN.save(model, tmp_path, 0)
        write_compressed(model, tmp_path, kind=kind, moments=known)
        read_compressed(model, tmp_path)
        rounded.append({name: weight.clone() for name, weight in model.state_dict().items()})
        model.load_state_dict(before)
    for name in (name for name in moments if name != "lm_head.weight"):
        nearest, by_gptq = (
            float(np.einsum("rc,cd,rd->", e, moments[name], e))
            for e in ((found[name] - before[name]).numpy().astype(np.float64) for found in rounded)
        )
        assert by_gptq < nearest


def test_a_model_loses_less_by_gptq(home: Home, exports: dict[str, Export]) -> None:
    nearest = export(*home, to=COMPRESSED, kind="w4a16", rounding="nearest")
    assert (exports["w4a16"].rounding, nearest.rounding) == ("gptq", "nearest")
    losses = [
        evaluate_model(home[0].folder / done.path, home[1], eval_tokens=4096).loss
        for done in (exports["w4a16"], nearest)
    ]
    assert losses[0] < losses[1]


def test_it_knows_no_calibrated_rounding(home: Home) -> None:
    with pytest.raises(ProjectError, match="w4a16 knows no rounding calibrated") as told:
        export(*home, to=COMPRESSED, kind="w4a16", rounding="calibrated")
    assert told.value.hint == "name one of gptq, nearest"


def test_it_is_no_model_folder(home: Home, exports: dict[str, Export]) -> None:
    with pytest.raises(ProjectError, match="packed by compressed-tensors, and only an engine"):
        load_pretrained(home[0].folder / exports["w4a16"].path)


def test_a_damaged_file_is_refused(home: Home, exports: dict[str, Export], tmp_path: Path) -> None:
    for file in (home[0].folder / exports["w4a16"].path).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(CorruptError, match="transformers cannot open"), open_engine(tmp_path):
        pass


def test_without_the_package_its_extra_is_named(
    home: Home, exports: dict[str, Export], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    kept = home[0].folder / exports["w4a16"].path
    with pytest.raises(ProjectError, match="compressed-tensors is not installed") as told, open_engine(kept):
        pass
    assert told.value.hint == "pip install 'isoflop[compressed-tensors]'"


def test_a_search_has_it_only_when_asked() -> None:
    assert COMPRESSED not in {form[0] for form in representations(())}
    asked = representations(("hf", COMPRESSED))
    assert asked == [("hf", "f32"), (COMPRESSED, "w4a16"), (COMPRESSED, "w8a16")]
    with pytest.raises(ProjectError, match="compressed-tensors cannot hold f32"):
        representations((COMPRESSED,))
