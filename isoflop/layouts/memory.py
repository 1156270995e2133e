"""Bytes a device holds while it trains, by part, of many layouts at once.

Activations: Korthikanti et al. 2205.05198, eqs. 1 to 6, generalised to gated feed-forward parts,
grouped-query attention and experts. States: Rajbhandari et al. 1910.02054, section 5, with gradients
accumulated in float32, as Megatron-LM does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.layouts.layouts import FULL, MODERN, NONE, Floats, Layouts, Practice
from isoflop.layouts.shapes import Shape

WEIGHT, GRADIENT, STATES = 2, 4, 12  # bytes a parameter: bf16; float32; its float32 copy and Adam's moments
BUFFERS = 1.5e9  # bytes: the runtime's context, and communication buffers (assumed)
FRAGMENTATION = 0.05  # share of activations that the allocator loses (assumed)


@dataclass(frozen=True)
class Memory:
    """(n,) bytes of the device that holds most."""

    weights: Floats
    gradients: Floats
    optimizer: Floats
    activations: Floats
    buffers: Floats
    fragmentation: Floats

    @property
    def total(self) -> Floats:
        return (
            self.weights + self.gradients + self.optimizer
            + self.activations + self.buffers + self.fragmentation
        )  # fmt: skip


def memory(shape: Shape, layouts: Layouts, practice: Practice = MODERN) -> Memory:
    """Of each layout; the pipeline stage that holds most counts."""
    held, dense, routed = parameters(shape, layouts)
    shards = layouts.data * layouts.context
    copies = shards / layouts.expert  # of the experts

    def sharded(from_stage: int, bytes_each: float) -> Floats:
        divided = dense / shards + routed / copies
        return bytes_each * np.where(layouts.zero >= from_stage, divided, held)

    kept = activations(shape, layouts, practice)
    gathered = np.where(
        layouts.zero == 3, 2 * WEIGHT * _layer_parameters(shape, layouts), 0.0
    )  # and the next
    return Memory(
        weights=sharded(3, WEIGHT),
        gradients=sharded(2, GRADIENT) + np.where(layouts.zero >= 2, GRADIENT * _whole(shape, layouts), 0.0),
        optimizer=sharded(1, STATES),
        activations=kept,
        buffers=BUFFERS + gathered,
        fragmentation=FRAGMENTATION * kept,
    )


def parameters(shape: Shape, layouts: Layouts) -> tuple[Floats, Floats, Floats]:
    """(n,) of the fullest device before sharding: all, those outside routed experts, the routed ones.

    Stages hold equal numbers of layers; embedding and head are taken as spread over them, as is usual where
    the first and last stages get fewer layers.
    """
    tables = 0 if shape.tied else shape.vocab * shape.width
    share = stage_layers(shape, layouts) / shape.layers / layouts.tensor
    dense = (shape.dense_params + tables) * share
    routed = shape.expert_params * share / layouts.expert
    return dense + routed, dense, routed


def _layer_parameters(shape: Shape, layouts: Layouts) -> Floats:
    """(n,) of one layer, whole."""
    dense = (shape.dense_params - shape.vocab * shape.width) / shape.layers
    routed = shape.expert_params / shape.layers / layouts.expert
    return np.asarray((dense + routed) / layouts.tensor)


def _whole(shape: Shape, layouts: Layouts) -> Floats:
    """(n,) parameters whose gradients wait to be sharded: a layer, or in a pipeline a chunk."""
    chunk = np.where(layouts.pipeline > 1, stage_layers(shape, layouts) / layouts.interleave, 1)
    return chunk * _layer_parameters(shape, layouts)


def stage_layers(shape: Shape, layouts: Layouts) -> Floats:
    """(n,) of the longest stage, in whole chunks."""
    chunks = layouts.pipeline * layouts.interleave
    return np.ceil(shape.layers / chunks) * layouts.interleave


def activations(shape: Shape, layouts: Layouts, practice: Practice = MODERN) -> Floats:
    """(n,) bytes kept for the backward pass by the device that keeps most.

    The first stage holds as many micro-batches as there are stages, and a share more with interleaving
    (Korthikanti et al., section 4.2.3); a last stage holds one, and the logits in float32.
    """
    tokens = layouts.micro * shape.context / layouts.context
    p, v, t = layouts.pipeline, layouts.interleave, layouts.tensor
    selective = layer_activations(shape, layouts, practice)
    scores = np.where(layouts.recompute == NONE, score_bytes(shape) / t, 0.0)
    full = layouts.recompute == FULL
    a_layer = tokens * np.where(full, 2.0 * shape.width / spread_over(layouts), selective + scores)
    working = tokens * np.where(full, selective, 0.0)  # of the one layer that is computed again
    embedded = tokens * p * shape.width / spread_over(layouts) if shape.dropout else 0.0
    chunk = stage_layers(shape, layouts) / v
    in_flight = np.minimum(layouts.micro_batches * v, np.where(v > 1, p * v + p - 1, p))  # chunks
    first = a_layer * chunk * in_flight + working + embedded
    logits = tokens * (4.0 * shape.vocab + 4 * shape.width) / t
    last = a_layer * chunk * v + working + logits
    return np.asarray(np.where(p == 1, first + logits, np.maximum(first, last)))


def layer_activations(shape: Shape, layouts: Layouts, practice: Practice = MODERN) -> Floats:
    """(n,) bytes a token and layer with attention's core computed again: Korthikanti et al., eq. 4 and 6.

    Theirs are 34 h, of which 24 h are divided by tensor parallelism and 10 h by sequence parallelism:
    inputs of two norms and of two linear layers (8 h), and two dropout masks (2 h). Queries, keys, values and
    the attention's output are 8 h there, 16 h the feed-forward part's inner input and output; a gated one
    keeps its two inputs and computes their product again. Of experts, the tokens sent to them are kept;
    latent attention keeps its latents. Inputs of linear layers take 1 byte in FP8.
    """
    h, t, e = shape.width, layouts.tensor, practice.linear_bytes
    spread = (4.0 + 2 * e + (2 if shape.dropout else 0)) * h
    inner = 1.0 * e * (shape.layers - shape.sparse_layers) * 2 * shape.ff
    inner += e * shape.sparse_layers * 2 * (shape.active_experts + shape.shared_experts) * shape.expert_ff
    spread += e * shape.sparse_layers * shape.active_experts * h / shape.layers
    queries = 2.0 * (shape.kv_cached or shape.heads * shape.dim)
    keys = 2.0 * shape.kv_cached if shape.kv_cached else 4.0 * shape.dim * np.maximum(shape.kv_heads, t)
    output = e * shape.heads * shape.dim
    return np.asarray(spread / spread_over(layouts) + (queries + keys + output + inner / shape.layers) / t)


def score_bytes(shape: Shape) -> float:
    """A token and layer: the softmax, and dropout's mask and output where there is dropout."""
    return float((5 if shape.dropout else 2) * shape.heads * shape.context)


def spread_over(layouts: Layouts) -> Floats:
    """(n,) devices among which norms, dropouts and layer inputs are divided."""
    return np.where(layouts.sequence, layouts.tensor, 1).astype(float)
