"""Structured pruning: a smaller model of the same architecture, of the most important parts of a larger one.

Every layer keeps as many heads and feed-forward neurons as every other, though not the same ones, and all
keep the same channels of the residual stream, so that any engine opens what comes out.

Shapes: d width, L layers, k key/value groups, e head width, f feed-forward width, v vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.errors import TrainError
from isoflop.gpt import GPT, Attention
from isoflop.records import ModelConfig
from isoflop.transforms.importance import Importance, blocks, norms
from isoflop.transforms.shapes import sizes_of, smaller


def prune(model: GPT, importance: Importance, shape: ModelConfig) -> GPT:
    """The most important structures of `model`, as many as `shape` has, in their old order.

    Where channels of the residual stream go, x / rms(x) changes size: the mean square is now that of the
    kept channels. Each norm's weights are multiplied by rms(kept) / rms(all), both over the calibration text,
    so that what a layer reads of the kept channels is as large as it was. Channels that are zero everywhere
    go without any loss: the factor is then the root of all channels over the kept ones.

    Raises TrainError when `shape` is not of the model's kind or larger.
    """
    if smaller(model.config, **sizes_of(shape)) != shape:
        raise TrainError(
            "the shape to prune to differs from the model in more than layers, heads and widths",
            hint="take it from `shapes.smaller`",
        )
    layers = top(importance.layers_l, shape.n_layers)
    width = top(importance.width_d, shape.d_model)
    made = GPT(shape)
    with torch.no_grad():
        for new, i in zip(blocks(made), layers.tolist(), strict=True):
            old = blocks(model)[i]
            groups = top(importance.groups_lk[i], shape.n_kv_heads)
            _cut_attention(new.self_attn, old.self_attn, groups, width)
            neurons = top(importance.ff_lf[i], shape.d_ff)
            new.mlp.gate_proj.weight.copy_(old.mlp.gate_proj.weight[neurons][:, width])
            new.mlp.up_proj.weight.copy_(old.mlp.up_proj.weight[neurons][:, width])
            new.mlp.down_proj.weight.copy_(old.mlp.down_proj.weight[width][:, neurons])
        kept = [*(2 * i + j for i in layers.tolist() for j in (0, 1)), 2 * model.config.n_layers]
        old_norms = norms(model)
        for norm, n in zip(norms(made), kept, strict=True):
            weight, scale = old_norms[n].weight, _rescaling(importance.squares_nd[n], width)
            norm.weight.copy_(weight[width] * scale)
        made.table.copy_(model.table[:, width])
        made.head.copy_(model.head[:, width])
    return made.eval()


def top(scores: Tensor, count: int) -> Tensor:
    """Indices (count,) of the largest scores, ascending; of equal ones the first."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _cut_attention(new: Attention, old: Attention, groups: Tensor, width: Tensor) -> None:
    """Copy whole key/value groups, each with its query heads, of the kept channels."""
    k = old.k_proj.weight.shape[0] // old.head_dim
    for ours, theirs in ((new.q_proj, old.q_proj), (new.k_proj, old.k_proj), (new.v_proj, old.v_proj)):
        ours.weight.copy_(_rows_of(theirs.weight, k, groups)[:, width])
    new.o_proj.weight.copy_(_rows_of(old.o_proj.weight.T, k, groups)[:, width].T)
    new.q_norm.weight.copy_(old.q_norm.weight)
    new.k_norm.weight.copy_(old.k_norm.weight)


def _rows_of(weight_rc: Tensor, k: int, groups: Tensor) -> Tensor:
    """The rows of some of the k groups that share them evenly."""
    return weight_rc.reshape(k, -1, weight_rc.shape[1])[groups].flatten(0, 1)


def _rescaling(squares_d: Tensor, width: Tensor) -> float:
    """rms(kept) / rms(all) of a norm's input."""
    before = float(squares_d.mean())
    return (float(squares_d[width].mean()) / before) ** 0.5 if before else 1.0
