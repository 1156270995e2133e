"""Seconds of a training step by part, of many layouts at once.

Matrix products run at the accelerator's 16-bit peak times one efficiency (`published.efficiency`); the rest
is counted from bytes and bandwidths. The pipeline's bubble is (p - 1) / (m v) of Narayanan et al. 2104.04473,
section 2.2; a ring's all-reduce moves 2 (n - 1) / n of its bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.layouts.hardware import Cluster
from isoflop.layouts.layouts import FULL, MODERN, NONE, Floats, Ints, Layouts, Practice
from isoflop.layouts.memory import (
    GRADIENT,
    STATES,
    WEIGHT,
    layer_activations,
    parameters,
    score_bytes,
    spread_over,
    stage_layers,
)
from isoflop.layouts.shapes import Shape

# Assumed, the same for every machine and run; what they miss goes into the fitted efficiency.
BUS = 0.7  # share of a link's bandwidth that a collective reaches
TRAFFIC = 6  # times that kept activations pass through memory, forward and backward
OVERLAP = 0.8  # share of the computation beside which data-parallel and expert traffic can hide
STOLEN = 0.15  # of the computation's speed while traffic hides behind it: 20 of 132 units in DeepSeek-V3
FP8_SPEED = 1.5  # of linear layers over 16 bits, their scaling counted
ROUTED_NODES = 4  # nodes that a token's experts are on, at most: DeepSeek-V3 2412.19437
INTER_LATENCY, INTRA_LATENCY = 5e-6, 1e-6  # seconds a hop of a ring


@dataclass(frozen=True)
class Step:
    """(n,) seconds of one step by part; `compute` is of the longest stage."""

    compute: Floats
    recompute: Floats
    elementwise: Floats
    tensor: Floats
    experts: Floats
    context: Floats
    stages: Floats  # sent between pipeline stages
    bubble: Floats
    data: Floats  # gradients and sharded weights, what is not hidden
    optimizer: Floats
    tokens: Floats  # of a step
    mfu: Floats  # model FLOPs over peak
    hfu: Floats  # what is computed again counted too

    @property
    def total(self) -> Floats:
        return (
            self.compute + self.recompute + self.elementwise + self.tensor + self.experts
            + self.context + self.stages + self.bubble + self.data + self.optimizer
        )  # fmt: skip


PARTS = ("compute", "recompute", "elementwise", "tensor", "experts", "context", "stages", "bubble", "data",
         "optimizer")  # fmt: skip


def step(
    shape: Shape, cluster: Cluster, layouts: Layouts, efficiency: float, practice: Practice = MODERN
) -> Step:
    """Of each layout on the cluster, `efficiency` being what matrix products reach of the peak.

    A stage that holds fewer layers than the longest waits for it.
    """
    m, p = layouts.micro_batches, layouts.pipeline
    tokens = layouts.micro * shape.context / layouts.context  # of a micro-batch, a device
    met = tokens * stage_layers(shape, layouts)  # times layers
    rate = cluster.peak_flops * efficiency
    forward, again = _flops(shape, layouts, practice)
    compute, recompute = 3 * forward * met / rate, again * met / rate
    hiding = OVERLAP * (compute + recompute)
    parts = {
        "compute": compute,
        "recompute": recompute,
        "elementwise": _traffic(shape, layouts, practice) * met / cluster.bandwidth_bytes,
        "tensor": _tensor(shape, cluster, layouts) * met,
        "experts": _shown(_experts(shape, cluster, layouts, practice) * met, hiding),
        "context": _shown(_context(shape, cluster, layouts) * met, hiding),
        "stages": _stages(shape, cluster, layouts) * tokens,
    }
    micro = np.sum(np.stack([np.broadcast_to(part, len(layouts)) for part in parts.values()]), axis=0)
    parts = {name: np.asarray(m * part) for name, part in parts.items()}
    parts["bubble"] = micro * (p - 1) / layouts.interleave
    parts["data"] = _data(shape, cluster, layouts, hiding)
    parts["optimizer"] = _optimizer(shape, cluster, layouts)
    all_tokens = np.asarray(layouts.sequences * float(shape.context))
    mfu = shape.flops_per_token * all_tokens / (sum(parts.values()) * layouts.devices * cluster.peak_flops)
    return Step(**parts, tokens=all_tokens, mfu=mfu, hfu=mfu * (1 + again_share(shape, layouts)))


def again_share(shape: Shape, layouts: Layouts) -> Floats:
    """(n,) FLOPs of what is computed again over the model's own, the head left out.

    Full: a forward pass, as in Narayanan et al., eq. 3; selective: attention's scores.
    """
    full = (shape.flops_per_token / 3 - shape.head_flops_per_token) / shape.flops_per_token
    scores = shape.score_flops_per_token / shape.flops_per_token
    return np.where(layouts.recompute == FULL, full, np.where(layouts.recompute == NONE, 0.0, scores))


def _flops(shape: Shape, layouts: Layouts, practice: Practice) -> tuple[Floats, Floats]:
    """(n,) a token and layer of a device: forward, and again in the backward pass.

    In FLOPs at 16 bits: a product in FP8 counts as fewer. The head's work is spread over the layers.
    """
    speed = FP8_SPEED if practice.precision == "fp8" else 1.0
    scores = shape.score_flops_per_token / shape.layers / layouts.tensor
    head = shape.head_flops_per_token / shape.layers / layouts.tensor
    weights = 2.0 * shape.active_params / shape.layers / layouts.tensor - head
    forward = weights / speed + scores + head
    selective = scores * (0.5 if practice.flash else 1.0)
    again = np.where(layouts.recompute == FULL, weights / speed + scores,
                     np.where(layouts.recompute == NONE, 0.0, selective))  # fmt: skip
    return forward, again


def _traffic(shape: Shape, layouts: Layouts, practice: Practice) -> Floats:
    """(n,) bytes a token and layer that go through memory beside matrix products."""
    kept = layer_activations(shape, layouts, practice)
    if not practice.flash:
        kept = kept + score_bytes(shape) / layouts.tensor
    return TRAFFIC * kept * np.where(layouts.recompute == FULL, 1.5, 1.0)


def _collective(cluster: Cluster, size: Floats, group: Ints | Floats, near: Ints | Floats) -> Floats:
    """(n,) seconds of a ring that gathers or scatters `size` bytes over `group` devices, `near` in each node.

    Devices of a node share out what crosses to other nodes.
    """
    inter = size * (1 - near / group) / (near * cluster.internode_bytes * BUS)
    intra = size * (1 - 1 / near) / (cluster.intranode_bytes * BUS)
    return np.asarray(np.maximum(inter, intra))


def _near(cluster: Cluster, group: Ints, inside: Ints) -> Floats:
    """(n,) devices of a group in one node, where `inside` devices of other groups lie between two of them."""
    return np.clip(np.minimum(group, cluster.node_devices // inside), 1, None).astype(float)


def _tensor(shape: Shape, cluster: Cluster, layouts: Layouts) -> Floats:
    """(n,) seconds a token and layer: all-reduces of the hidden state, two forward and two backward."""
    t = layouts.tensor
    rounds = (1 if shape.parallel_block else 2) * np.where(layouts.recompute == FULL, 3, 2)
    near = _near(cluster, t, np.ones_like(t))
    return np.asarray(rounds * 2 * _collective(cluster, np.full(len(t), 2.0 * shape.width), t, near))


def _experts(shape: Shape, cluster: Cluster, layouts: Layouts, practice: Practice) -> Floats:
    """(n,) seconds a token and layer: to the experts and back, forward and backward.

    Copies for experts of one node cross the network once.
    """
    e, t = layouts.expert, layouts.tensor
    if not shape.experts:
        return np.zeros(len(layouts))
    nodes = np.maximum(e * t / cluster.node_devices, 1)
    each = 2 * (practice.linear_bytes + 2) * shape.width / t * shape.sparse_layers / shape.layers
    far = np.minimum(np.minimum(shape.active_experts, ROUTED_NODES), nodes) * (1 - 1 / nodes)
    near = shape.active_experts * (1 - 1 / e)
    seconds = np.maximum(far * each / cluster.internode_bytes, near * each / cluster.intranode_bytes)
    return np.asarray(np.where(e > 1, seconds / BUS, 0.0))


def _context(shape: Shape, cluster: Cluster, layouts: Layouts) -> Floats:
    """(n,) seconds a token and layer: keys and values of the other parts of the context, three times."""
    c, t = layouts.context, layouts.tensor
    cached = 2.0 * shape.kv_cache / shape.layers / np.minimum(t, shape.kv_heads)
    return 3 * _collective(cluster, cached * c, c, _near(cluster, c, t))


def _stages(shape: Shape, cluster: Cluster, layouts: Layouts) -> Floats:
    """(n,) seconds a token: hidden states to the next stage and their gradients back, once a chunk."""
    p, v = layouts.pipeline, layouts.interleave
    inside = layouts.tensor * layouts.context * p <= cluster.node_devices
    link = np.where(inside, cluster.intranode_bytes, cluster.internode_bytes)
    return np.asarray(np.where(p > 1, 4.0 * v * shape.width / spread_over(layouts) / link, 0.0))


def _shown(traffic: Floats, hiding: Floats) -> Floats:
    """(n,) seconds that traffic adds to a step with `hiding` seconds of computation beside it."""
    return np.asarray(np.maximum(traffic - hiding, 0.0) + STOLEN * np.minimum(traffic, hiding))


def _data(shape: Shape, cluster: Cluster, layouts: Layouts, hiding: Floats) -> Floats:
    """(n,) seconds a step that gradients and sharded weights add; `hiding` is of a micro-batch.

    Gradients are reduced in float32, weights gathered in 16 bits, once a step. ZeRO-2 reduces a chunk's
    gradients whenever the chunk is done with its run of micro-batches, one without a pipeline; ZeRO-3 also
    gathers in each micro-batch, twice, layer by layer. The backward passes of a last run of interleaved
    chunks hide the traffic of those that are done. Routed experts have fewer copies.
    """
    gather, scatter = _copies(shape, cluster, layouts)
    hops, layers = _hops(cluster, layouts), stage_layers(shape, layouts)
    m, p, v = layouts.micro_batches, layouts.pipeline, layouts.interleave
    run = np.where(v > 1, p, 1)  # micro-batches that a chunk meets in a row
    behind = 2 / 3 * hiding * np.maximum(run * (v - 1) / v, 1)  # the backward pass is two thirds
    whole = _shown(2 * scatter, behind) + 2 * hops
    once = _shown(scatter + gather, behind) + 2 * hops
    rounds = np.ceil(m / run)
    gradients = rounds * (_shown(scatter, 2 / 3 * hiding * run) + layers * hops) + _shown(gather, behind)
    weights = m * (_shown(2 * gather + scatter, hiding) + 3 * layers * hops)
    return np.choose(layouts.zero, [whole, once, gradients, weights])


def _copies(shape: Shape, cluster: Cluster, layouts: Layouts) -> tuple[Floats, Floats]:
    """(n,) seconds to gather the weights of a device from their shards, and to scatter its gradients."""
    copies = layouts.data * layouts.context
    _, dense, routed = parameters(shape, layouts)
    each = _collective(cluster, dense, copies, _near(cluster, copies, layouts.tensor))
    group = copies // layouts.expert
    each = each + _collective(cluster, routed, group, _near(cluster, group, layouts.tensor * layouts.expert))
    return WEIGHT * each, GRADIENT * each


def _hops(cluster: Cluster, layouts: Layouts) -> Floats:
    """(n,) seconds of latency of one ring through all data-parallel copies."""
    group = layouts.data * layouts.context
    near = _near(cluster, group, layouts.tensor)
    return np.asarray((group / near - 1) * INTER_LATENCY + (near - 1) * INTRA_LATENCY)


def _optimizer(shape: Shape, cluster: Cluster, layouts: Layouts) -> Floats:
    """(n,) seconds: states read and written, the gradient read, the weight written."""
    held, dense, routed = parameters(shape, layouts)
    copies = layouts.data * layouts.context
    own = np.where(layouts.zero >= 1, dense / copies + routed * layouts.expert / copies, held)
    return np.asarray(own * (2 * STATES + GRADIENT + WEIGHT) / cluster.bandwidth_bytes)
