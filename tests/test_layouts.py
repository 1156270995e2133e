"""Memory, time and search of layouts: the papers' worked examples, invariances and bad input."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from isoflop.errors import LayoutError
from isoflop.layouts.hardware import Accelerator, Cluster, accelerator, accelerators
from isoflop.layouts.layouts import Layout, Layouts, Practice
from isoflop.layouts.memory import activations, memory
from isoflop.layouts.search import candidates, judge, search
from isoflop.layouts.serving import serve, serving_table
from isoflop.layouts.shapes import Shape, shape_for
from isoflop.layouts.time import step

SHARED = Path(__file__).parents[2] / "shared/data/trend/accelerators.csv"


def gpt3(layers: int, width: int, heads: int) -> Shape:
    """As in Narayanan et al. 2104.04473 and Korthikanti et al. 2205.05198."""
    return Shape(
        layers=layers, width=width, heads=heads, kv_heads=heads, ff=4 * width, vocab=51200, context=2048,
        gated=False, tied=True, dropout=True,
    )  # fmt: skip


GPT_22B, GPT_175B = gpt3(48, 6144, 64), gpt3(96, 12288, 96)
LLAMA_405B = Shape(
    layers=126, width=16384, heads=128, kv_heads=8, ff=53248, vocab=128256, context=8192
)  # fmt: skip
DEEPSEEK_V3 = Shape(
    layers=61, width=7168, heads=128, kv_heads=128, head_dim=160, ff=18432, vocab=129280, context=4096,
    experts=256, active_experts=8, shared_experts=1, expert_ff=2048, dense_layers=3,
    attention_params=187_107_328, kv_cached=576,
)  # fmt: skip


# Shapes


@pytest.mark.parametrize(
    ("shape", "params", "active"),
    [(GPT_175B, 174.6e9, None), (LLAMA_405B, 405.8e9, None), (DEEPSEEK_V3, 671e9, 37e9)],
)
def test_published_shapes_have_their_published_parameters(
    shape: Shape, params: float, active: float | None
) -> None:
    assert shape.params == pytest.approx(params, rel=2e-3)
    if active is not None:
        assert shape.active_params == pytest.approx(active, rel=0.02)


def test_flops_are_narayanans_without_recomputation() -> None:
    """72 l h^2 (1 + s / 6h + V / 12lh) a token: eq. 3 less the forward pass that is computed again."""
    g = GPT_175B
    h = g.width
    expected = 72 * g.layers * h**2 * (1 + g.context / (6 * h) + g.vocab / (12 * g.layers * h))
    assert g.flops_per_token == pytest.approx(expected)


@pytest.mark.parametrize("params", [1e8, 1e9, 8e9, 7e10, 4e11, 2e12])
@pytest.mark.parametrize("experts", [0, 64])
def test_a_shape_for_a_size_has_about_that_size(params: float, experts: int) -> None:
    shape = shape_for(params, experts=experts)
    assert shape.active_params == pytest.approx(params, rel=0.06)
    assert 50 < shape.width / shape.layers < 200
    assert (shape.params > 2 * shape.active_params) == bool(experts)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(LayoutError, match="not planned"):
        shape_for(10)
    with pytest.raises(LayoutError, match="dense model"):
        shape_for(1e9, experts=1)
    base = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 4, "ff": 64, "vocab": 10, "context": 8}
    for changes in ({"kv_heads": 3}, {"layers": 0}, {"experts": 4, "active_experts": 5}):
        with pytest.raises(ValidationError):
            Shape.model_validate({**base, **changes})


# Memory


def a_layer(shape: Shape, **layout: object) -> float:
    """Activations a layer over s b h, the logits left out."""
    kept = [
        activations(s, Layouts.of(Layout.model_validate({"micro": 4, **layout})))[0]
        for s in (shape, shape.model_copy(update={"layers": shape.layers + 1}))
    ]
    return float(kept[1] - kept[0]) / (4 * shape.context * shape.width)


def test_activations_are_korthikantis() -> None:
    """Table 2: s b h times what is said there, with t = 8."""
    a, s, h, t = 64, 2048, 6144, 8
    scores = 5 * a * s / h
    assert a_layer(GPT_22B, recompute="none") == pytest.approx(34 + scores)
    assert a_layer(GPT_22B, recompute="none", tensor=t, sequence=False) == pytest.approx(
        10 + 24 / t + scores / t
    )
    assert a_layer(GPT_22B, recompute="none", tensor=t) == pytest.approx((34 + scores) / t)
    assert a_layer(GPT_22B, recompute="selective", tensor=t, sequence=False) == pytest.approx(10 + 24 / t)
    assert a_layer(GPT_22B, recompute="selective", tensor=t) == pytest.approx(34 / t)
    assert a_layer(GPT_22B, recompute="full", tensor=t, sequence=False) == pytest.approx(2)


def test_interleaving_keeps_more_by_p_minus_1_over_pm() -> None:
    """Korthikanti et al., section 4.2.3, on their 175B: 34 s b h L / t times 1 + (p - 1) / (p m)."""
    layout = Layout(tensor=8, pipeline=8, interleave=3, micro_batches=64)
    expected = 34 * 2048 * 12288 * 96 / 8 * (1 + 7 / 24)
    embedding_dropout = 2048 * 12288 * 8 / 8
    assert activations(GPT_175B, Layouts.of(layout))[0] == pytest.approx(expected + embedding_dropout)


def test_zero_stages_shard_what_rajbhandari_says() -> None:
    """2 + 2 + 12 bytes there with 16-bit gradients, 2 + 4 + 12 here; each stage divides one more part."""
    shape = shape_for(7.5e9)
    held = [memory(shape, Layouts.of(Layout(data=64, zero=z))) for z in range(4)]
    n = shape.params
    assert held[0].weights[0] + held[0].gradients[0] + held[0].optimizer[0] == pytest.approx(18 * n)
    assert held[1].optimizer[0] == pytest.approx(12 * n / 64)
    assert held[1].gradients[0] == pytest.approx(4 * n)
    assert held[2].gradients[0] < 4 * n / 64 + 4 * n / shape.layers
    assert held[3].weights[0] == pytest.approx(2 * n / 64)


def test_tensor_parallelism_divides_and_experts_are_shared_out() -> None:
    one, eight = (memory(LLAMA_405B, Layouts.of(Layout(tensor=t, zero=0))) for t in (1, 8))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(one, part)[0] == pytest.approx(8 * getattr(eight, part)[0])
    alone, shared = (memory(DEEPSEEK_V3, Layouts.of(Layout(data=64, expert=e, zero=0))) for e in (1, 64))
    routed = 2 * DEEPSEEK_V3.expert_params
    assert alone.weights[0] - shared.weights[0] == pytest.approx(routed * 63 / 64)


# Time


def timed(shape: Shape, cluster: Cluster, layout: Layout, **practice: object) -> dict[str, float]:
    found = step(shape, cluster, Layouts.of(layout), 0.6, Practice.model_validate(practice))
    return {f.name: float(getattr(found, f.name)[0]) for f in fields(found)}


def test_the_bubble_is_p_minus_1_over_v_m() -> None:
    """Narayanan et al., section 2.2, of the time without it."""
    cluster = Cluster.of(64, "A100")
    for v in (1, 3):
        part = timed(GPT_175B, cluster, Layout(tensor=8, pipeline=8, micro_batches=64, interleave=v, zero=0))
        steady = sum(part[n] for n in ("compute", "recompute", "elementwise", "tensor", "stages"))
        assert part["bubble"] / steady == pytest.approx(7 / (64 * v))


def test_a_tensor_parallel_all_reduce_moves_what_megatron_says() -> None:
    """Four a layer and micro-batch, of 2 (t - 1) / t times 2 b s h bytes."""
    cluster = Cluster.of(8, "A100")
    part = timed(GPT_22B, cluster, Layout(tensor=8, micro=4, zero=0))
    moved = 48 * 4 * 2 * 7 / 8 * 2 * 4 * 2048 * 6144
    assert part["tensor"] == pytest.approx(moved / (0.7 * 300e9))


def test_alone_a_device_computes_and_nothing_else() -> None:
    part = timed(shape_for(1e9), Cluster.of(1, "H100"), Layout(micro_batches=8, zero=0))
    for name in ("tensor", "experts", "context", "stages", "bubble", "data"):
        assert part[name] == 0
    assert 0.4 < part["mfu"] < 0.6
    assert part["compute"] == pytest.approx(
        shape_for(1e9).flops_per_token * part["tokens"] / (0.6 * 989.4e12)
    )


def test_full_recomputation_costs_a_forward_pass() -> None:
    none, full = (
        timed(LLAMA_405B, Cluster.of(64, "H100"), Layout(tensor=8, data=8, recompute=r))
        for r in ("none", "full")
    )
    assert none["recompute"] == 0
    assert full["recompute"] == pytest.approx(full["compute"] / 3, rel=0.02)  # the head is not
    assert full["hfu"] / full["mfu"] == pytest.approx(4 / 3, rel=0.01)


def test_more_bandwidth_is_never_slower_and_slower_links_never_faster() -> None:
    cluster = Cluster.of(512, "H100")
    layouts = candidates(LLAMA_405B, cluster, 512)
    usual = step(LLAMA_405B, cluster, layouts, 0.6).total
    slower = step(LLAMA_405B, cluster.model_copy(update={"internode_bytes": 12.5e9}), layouts, 0.6).total
    faster = step(LLAMA_405B, cluster.model_copy(update={"intranode_bytes": 900e9}), layouts, 0.6).total
    assert np.all(slower >= usual)
    assert np.any(slower > 1.2 * usual)
    assert np.all(faster <= usual)


# Search


def test_candidates_use_every_device_and_divide_everything() -> None:
    cluster = Cluster.of(2048, "H800")
    found = candidates(DEEPSEEK_V3, cluster, 4096)
    assert len(found) > 1000
    assert np.all(found.devices == 2048)
    assert np.all(DEEPSEEK_V3.heads % found.tensor == 0)
    assert np.all(8 % found.tensor == 0)
    assert np.all(DEEPSEEK_V3.experts % found.expert == 0)
    assert np.all((found.data * found.context) % found.expert == 0)
    assert np.all(np.abs(found.sequences / 4096 - 1) <= 0.1)
    rows = {tuple(int(getattr(found, f.name)[i]) for f in fields(found)) for i in range(len(found))}
    assert len(rows) == len(found)


def test_tensor_parallel_groups_stay_in_a_node_and_divide_key_value_heads() -> None:
    shape = shape_for(9.7e10)
    assert shape.heads % 5 == 0
    assert set(candidates(shape, Cluster.of(1000, "H100"), 1000).tensor.tolist()) == {1, 2, 4, 8}
    assert set(candidates(shape, Cluster.of(72, "GB200"), 72).tensor.tolist()) == {1, 2, 4, 8}


def test_the_best_is_the_fastest_that_fits_and_others_are_explained() -> None:
    cluster = Cluster.of(1024, "H100")
    found = search(LLAMA_405B, cluster, sequences=2048, efficiency=0.57)
    all_ = judge(LLAMA_405B, cluster, candidates(LLAMA_405B, cluster, 2048), 0.57)
    assert found.best[0].tokens_per_second == pytest.approx(all_.speed[all_.fits].max())
    assert len(found.best) == 3
    speeds = [p.tokens_per_second for p in found.best]
    assert speeds == sorted(speeds, reverse=True)
    for planned in found.best:
        assert planned.layout.devices == 1024
        assert planned.memory_bytes == pytest.approx(sum(planned.memory.values()))
        assert planned.memory_bytes <= cluster.memory_bytes
        assert planned.step_seconds == pytest.approx(sum(planned.seconds.values()))
    reasons = {f.kind: f.reason for f in found.failing}
    assert "GB a device" in reasons["data"]
    assert "slower" in reasons["FSDP"]


def test_one_layout_alone_is_what_it_is_among_many() -> None:
    cluster = Cluster.of(256, "A100")
    all_ = candidates(GPT_175B, cluster, 512)
    many = step(GPT_175B, cluster, all_, 0.6).total
    rng = np.random.default_rng(0)
    for i in rng.integers(0, len(all_), 20).tolist():
        assert step(GPT_175B, cluster, Layouts.of(all_.one(i)), 0.6).total[0] == pytest.approx(many[i])


def test_a_model_that_fits_nowhere_says_what_would() -> None:
    with pytest.raises(LayoutError, match="do not fit on 8 x NVIDIA A100") as caught:
        search(LLAMA_405B, Cluster.of(8, "A100"), sequences=512, efficiency=0.6)
    assert "of these devices hold it" in caught.value.hint
    assert "fits here" in caught.value.hint
    devices = int(caught.value.hint.split(" of these")[0].replace(",", ""))
    assert search(LLAMA_405B, Cluster.of(devices, "A100"), sequences=512, efficiency=0.6).fitting > 0
    with pytest.raises(LayoutError, match="do not fit"):
        search(LLAMA_405B, Cluster.of(devices // 2, "A100"), sequences=512, efficiency=0.6)


def test_devices_that_nothing_divides_are_refused() -> None:
    with pytest.raises(LayoutError, match="No layout divides"):
        search(LLAMA_405B, Cluster.of(1021, "H100"), sequences=64, efficiency=0.6)


# Hardware


def test_names_aliases_and_clusters() -> None:
    assert accelerator("h100") is accelerator("NVIDIA H100 SXM5 80GB")
    assert accelerator("TPUv5p").name == "Google TPU v5p"
    cluster = Cluster.parse("1,024 x H100")
    assert (cluster.devices, cluster.node_devices, cluster.intranode_bytes) == (1024, 8, 450e9)
    with pytest.raises(LayoutError, match="no accelerator named 'H1000'") as caught:
        accelerator("H1000")
    assert "H100" in caught.value.hint
    assert [Cluster.of(144, name).host_devices for name in ("H100", "GB200")] == [8, 4]
    for text in ("H100", "0xH100", "x", "-3xH100"):
        with pytest.raises(LayoutError):
            Cluster.parse(text)
    with pytest.raises(LayoutError, match="16-bit matrix rate"):
        Cluster.of(8, "TPU v1")


def test_the_table_is_whole() -> None:
    rows = accelerators()
    assert len(rows) >= 60
    names = [word.lower() for row in rows for word in {row.name, *row.aliases}]
    assert len(names) == len(set(names))
    for row in rows:
        assert row.source
        assert row.confidence in ("confident", "likely", "speculative")
        assert (row.rental_usd_per_hour is None) == (row.rental_date is None)
        figures = [v for k, v in row if k.endswith(("_flops", "_bytes", "_ops")) and v is not None]
        assert all(v > 0 for v in figures)
        if row.half_flops and row.fp8_flops:
            assert row.fp8_flops >= row.half_flops
    assert not any(row.announced for row in rows if row.confidence == "confident")


COMPARED = {
    "bf16_flops": ("bf16_fp16_tensor_dense_flops", 1.0), "fp8_flops": ("fp8_dense_flops", 1.0),
    "memory_bytes": ("memory_gb", 1e9), "bandwidth_bytes": ("bandwidth_gb_s", 1e9), "tdp_w": ("tdp_w", 1.0),
}  # fmt: skip
DISAGREE = {
    ("Google TPU v2", "bandwidth_bytes"): "700 GB/s in CACM 2020",
    ("Google TPU v1", "memory_bytes"): "8 GiB",
    ("NVIDIA Tesla K80", "bandwidth_bytes"): "of both its chips",
    ("NVIDIA GeForce RTX 4090", "bf16_flops"): "330 is with FP16 accumulation",
    ("NVIDIA GeForce RTX 4090", "fp8_flops"): "likewise",
    ("NVIDIA Quadro RTX 8000", "tdp_w"): "of the whole board",
    ("AMD Instinct MI355X", "fp8_flops"): "4.6 is the MI350X's",
    ("AMD Instinct MI300A", "tdp_w"): "550 W; 760 W at its peak",
    ("AMD Radeon RX 7900 XTX", "tdp_w"): "355 W on its datasheet",
    ("Huawei Ascend 910", "bandwidth_bytes"): "1.2 TB/s at Hot Chips 31",
}


def test_accelerators_agree_with_the_shared_table() -> None:
    """Every row whose name is the same there, within 3%."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED.name} is not beside the project (shared/data/trend)")
    with SHARED.open() as file:
        theirs = {re.sub(r"(\d) GB$", r"\1GB", row["name"]): row for row in csv.DictReader(file)}
    compared, off = 0, set()
    for row in accelerators():
        other = theirs.get(row.name)
        for ours, (column, scale) in COMPARED.items() if other else ():
            value = getattr(row, ours)
            if value and other and other[column]:
                compared += 1
                if abs(value / (float(other[column]) * scale) - 1) > 0.03:
                    off.add((row.name, ours))
    assert compared > 60
    assert off <= DISAGREE.keys()


# Serving


def test_decoding_alone_reads_the_weights_once_a_token() -> None:
    cluster = Cluster.of(8, "H100")
    shape = shape_for(8e9)
    one = serve(shape, cluster, devices=1, batch=1, efficiency=0.6)
    assert one.bound == "bandwidth"
    read = 2.0 * (shape.params - shape.vocab * shape.width) + 2.0 * shape.kv_cache * shape.context
    assert one.token_seconds == pytest.approx(read / (0.7 * 3.35e12))
    many = serve(shape, cluster, devices=1, batch=16, efficiency=0.6)
    assert one.tokens_per_second < many.tokens_per_second < 16 * one.tokens_per_second
    assert many.usd_per_million is not None
    assert many.usd_per_million == pytest.approx(2.99 / 3600 / many.tokens_per_second * 1e6)
    with pytest.raises(LayoutError, match="do not fit"):
        serve(shape, cluster, devices=1, batch=4096, efficiency=0.6)


def test_a_sparse_model_reads_more_experts_in_a_larger_batch() -> None:
    cluster = Cluster.of(8, "H200")
    shape = DEEPSEEK_V3.model_copy(update={"context": 128})
    seconds = [
        serve(shape, cluster, devices=8, batch=b, efficiency=0.6, bits=8).token_seconds for b in (1, 64)
    ]
    assert 5 < seconds[1] / seconds[0] < 30


def test_the_serving_table_has_the_fewest_devices_and_a_node() -> None:
    cluster = Cluster.of(64, "H200")
    assert [s.devices for s in serving_table(shape_for(1.3e11), cluster, 0.6)][::4] == [4, 8]
    assert serving_table(shape_for(2e12), cluster, 0.6) == ()


def test_nothing_of_it_needs_torch() -> None:
    code = "import isoflop.layouts.launch, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_accelerator_is_a_record_of_its_columns() -> None:
    row = accelerator("B200")
    assert Accelerator.from_json(row.to_json()) == row
