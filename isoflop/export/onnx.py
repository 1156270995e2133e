"""ONNX: the decoder with its keys and values as inputs and outputs, for ONNX Runtime and what else reads it.

Names of inputs and outputs are those that optimum gives a decoder, so that what serves its exports serves
ours. Weights are rounded by ONNX Runtime's own tool in blocks of BLOCK along a row, each with its scale.

Shapes: b batch, p past, t time, s = p + t, k key/value heads, e head width, d width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.errors import ProjectError
from isoflop.gpt import GPT, Attention, rotate

OPSET = 21
BLOCK = 32  # every width of the recipe is a multiple
TYPES = {"f32": 0, "int8": 8, "int4": 4}  # bits; 0: as they are
HINT = "pip install 'isoflop[onnx]'"


class Cached(nn.Module):
    """The decoder that goes on from keys and values: logits (b, t, v), and keys and values (b, k, s, e)."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_bt: Tensor, seen_bs: Tensor, positions_bt: Tensor, *past: Tensor) -> list[Tensor]:
        """`past` holds keys and values of each layer in turn, (b, k, p, e); `seen_bs` is 0 on padding."""
        decoder, t, s = self.model.model, ids_bt.shape[1], seen_bs.shape[1]
        keys = torch.arange(s, device=ids_bt.device)
        causal_ts = keys[None, :] <= (keys[None, :] + (s - t))[:, :t].mT
        mask_b1ts = causal_ts & (seen_bs[:, None, None, :] > 0)
        cos, sin = (table[positions_bt][:, None] for table in (decoder.cos_te, decoder.sin_te))
        x_btd, present = decoder.embed_tokens(ids_bt), []
        layers: list[Any] = list(decoder.layers)
        for i, layer in enumerate(layers):
            y, *kept = _attend(
                layer.self_attn, layer.input_layernorm(x_btd), cos, sin, mask_b1ts, past[2 * i : 2 * i + 2]
            )
            present += kept
            x_btd = x_btd + y
            x_btd = x_btd + layer.mlp(layer.post_attention_layernorm(x_btd))
        return [self.model.lm_head(decoder.norm(x_btd)), *present]


def _attend(
    attention: Attention, x_btd: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """What one layer's attention adds, and its keys and values with the new ones."""
    b, t, _ = x_btd.shape
    heads = (b, t, -1, attention.head_dim)
    q = rotate(attention.q_norm(attention.q_proj(x_btd).view(heads)).transpose(1, 2), cos, sin)
    k = rotate(attention.k_norm(attention.k_proj(x_btd).view(heads)).transpose(1, 2), cos, sin)
    v = attention.v_proj(x_btd).view(heads).transpose(1, 2)
    k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    each = q.shape[1] // k.shape[1]
    y = F.scaled_dot_product_attention(
        q, k.repeat_interleave(each, 1), v.repeat_interleave(each, 1), attn_mask=mask
    )
    return attention.o_proj(y.transpose(1, 2).reshape(b, t, -1)), k, v


def names(layers: int, prefix: str) -> list[str]:
    """Of the keys and values of all layers, in their order."""
    return [f"{prefix}.{i}.{part}" for i in range(layers) for part in ("key", "value")]


def write_onnx(model: GPT, path: Path, *, kind: str) -> None:
    """Write the graph with its weights as `kind`, one of TYPES. Raises ProjectError without the packages."""
    onnx = package()
    config, (b, p, t) = model.config, (1, 2, 3)
    past = torch.zeros(b, config.n_kv_heads, p, config.head_dim)
    caches = [past.clone() for _ in range(2 * config.n_layers)]
    positions = torch.arange(p, p + t)[None]
    example = (torch.zeros(b, t, dtype=torch.int64), torch.ones(b, p + t, dtype=torch.int64), positions)
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: Any = torch.onnx.export(
            Cached(model).eval(), (*example, *caches), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["input_ids", "attention_mask", "position_ids",
                         *names(config.n_layers, "past_key_values")],
            output_names=["logits", *names(config.n_layers, "present")],
            dynamic_shapes=(
                {0: "batch", 1: "time"}, {0: "batch", 1: "total"}, {0: "batch", 1: "time"},
                tuple({0: "batch", 2: "past"} for _ in caches),
            ),
        )  # fmt: skip
    proto = made.model_proto
    fixed = {tensor.name for tensor in proto.graph.initializer}
    products = [n for n in proto.graph.node if n.op_type in ("MatMul", "Gemm") and n.input[1] in fixed]
    for node, name in zip(products, linears(model), strict=True):
        node.name = name  # by which its weights are found again, whatever becomes of the graph
    if TYPES[kind]:
        proto = _rounded(proto, TYPES[kind])
    onnx.save(proto, str(path))


def _rounded(proto: Any, bits: int) -> Any:
    """With the matrices in `bits` bits, symmetric, in blocks along a row."""
    from onnxruntime.quantization import matmul_nbits_quantizer as tool

    logging.getLogger(tool.__name__).setLevel(logging.ERROR)
    config = tool.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=True, bits=bits)
    quantizer = tool.MatMulNBitsQuantizer(proto, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def linears(model: GPT) -> dict[str, nn.Linear]:
    """By name, in the order in which they are computed."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def read_onnx(model: GPT, path: Path) -> None:
    """Give `model` the matrices of a file as they were rounded: those of its MatMulNBits."""
    onnx = package()
    graph = onnx.load(str(path)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = linears(model)
    for node in (node for node in graph.node if node.op_type == "MatMulNBits"):
        read = {a.name: a.i for a in node.attribute}
        packed, scales = values[node.input[1]], values[node.input[2]]
        matrix = _unpacked(packed, scales, read["N"], read["K"], read["bits"])
        with torch.no_grad():
            found[node.name.removesuffix(f"_Q{read['bits']}")].weight.copy_(torch.from_numpy(matrix))


def _unpacked(
    packed: NDArray[np.uint8], scales: NDArray[np.float32], rows: int, columns: int, bits: int
) -> NDArray[np.float32]:
    """(rows, columns) of a matrix packed in blocks, the first of two 4-bit values in the low half."""
    whole = packed.reshape(rows, -1, packed.shape[-1])
    if bits == 4:
        whole = np.stack((whole & 15, whole >> 4), axis=-1).reshape(rows, whole.shape[1], -1)
    blocks = whole.astype(np.float32) - 2 ** (bits - 1)
    out: NDArray[np.float32] = blocks * scales.reshape(rows, -1, 1)
    return out.reshape(rows, -1)[:, :columns]


def package() -> Any:
    """Raises ProjectError where a package of the extra is not installed."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ProjectError(f"ONNX export needs the package {error.name}", hint=HINT) from None
    return onnx
