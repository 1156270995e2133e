"""What serving a model would cost, from bytes and FLOPs: a lower bound that engines come near to.

Writing a token reads the weights once for the whole batch and every sequence's keys and values; reading a
prompt is bounded by FLOPs.
"""

from __future__ import annotations

import math

from isoflop.errors import LayoutError
from isoflop.flops import weight_bytes
from isoflop.layouts.hardware import Cluster
from isoflop.layouts.shapes import Shape
from isoflop.records import Record

BANDWIDTH_SHARE = 0.7  # of the memory's bandwidth that decoding reaches (assumed)
USED = 0.9  # of the memory that weights and keys and values may take (assumed)
ALL_REDUCE_SECONDS = 10e-6  # of a token's hidden state among a node's devices, twice a layer (assumed)
BATCHES = (1, 16, 64, 256)
LARGEST_NODE = 64  # devices that share one model, where more have fast links


class Serving(Record):
    """One batch on `devices` that share the weights."""

    devices: int
    batch: int
    context: int  # tokens of each sequence in the cache
    tokens_per_second: float  # written, of the whole batch
    token_seconds: float  # between two tokens of one sequence
    prompt_tokens_per_second: float
    memory_bytes: float  # of all devices
    usd_per_million: float | None  # written
    usd_per_million_prompt: float | None
    bound: str  # "bandwidth" or "FLOPs"


def serve(
    shape: Shape, cluster: Cluster, *, devices: int, batch: int, efficiency: float, bits: float = 16
) -> Serving:
    """Speeds and costs of a batch at the shape's whole context; `efficiency` of matrix products, in prompts.

    The cache is kept in 16 bits. Of experts, those are read that any sequence of the batch has chosen, if all
    are chosen alike: 1 - (1 - active / experts) ** batch of them.
    Raises LayoutError when it does not fit on the devices.
    """
    cache = 2.0 * shape.kv_cache * shape.context * batch
    held = weight_bytes(shape.params, bits) + cache
    if held > USED * devices * cluster.memory_bytes:
        raise LayoutError(
            f"{held / 1e9:.0f} GB of weights, keys and values do not fit on {devices} x"
            f" {cluster.accelerator.name}.",
            hint="Take more devices, a smaller batch, a shorter context or fewer bits.",
        )
    chosen = 1 - (1 - shape.active_experts / shape.experts) ** batch if shape.experts else 0.0
    read = weight_bytes(shape.dense_params + chosen * shape.expert_params, bits) + cache
    forward = 2.0 * shape.active_params + shape.score_flops_per_token
    rate = devices * cluster.peak_flops * efficiency
    reading, computing = read / (devices * cluster.bandwidth_bytes * BANDWIDTH_SHARE), batch * forward / rate
    together = 2 * shape.layers * ALL_REDUCE_SECONDS if devices > 1 else 0.0
    seconds = max(reading, computing) + together
    prompts = rate / (forward - shape.score_flops_per_token / 2)  # a prompt's tokens meet half of it
    price = None if cluster.usd_per_hour is None else devices * cluster.usd_per_hour / 3600
    return Serving(
        devices=devices, batch=batch, context=shape.context, tokens_per_second=batch / seconds,
        token_seconds=seconds, prompt_tokens_per_second=prompts, memory_bytes=held,
        usd_per_million=None if price is None else 1e6 * price * seconds / batch,
        usd_per_million_prompt=None if price is None else 1e6 * price / prompts,
        bound="bandwidth" if reading >= computing else "FLOPs",
    )  # fmt: skip


def serving_table(shape: Shape, cluster: Cluster, efficiency: float) -> tuple[Serving, ...]:
    """Batches that fit, on the fewest devices that hold a sequence and on a node; none beyond a node.

    The fewest are a power of two.
    """
    node = min(cluster.accelerator.node_devices or 8, LARGEST_NODE)
    held = weight_bytes(shape.params, 16) + 2.0 * shape.kv_cache * shape.context
    fewest = 2 ** math.ceil(math.log2(max(held / (USED * cluster.memory_bytes), 1)))
    out = []
    for devices in sorted({fewest, max(node, fewest)}) if fewest <= node else ():
        for batch in BATCHES:
            try:
                out.append(serve(shape, cluster, devices=devices, batch=batch, efficiency=efficiency))
            except LayoutError:
                break
    return tuple(out)
