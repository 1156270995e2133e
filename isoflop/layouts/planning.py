"""A cluster and a time, or a compute budget: the model, its layout, days, money, energy and CO2."""

from __future__ import annotations

import math

from isoflop.errors import LayoutError
from isoflop.laws.planning import plan_law
from isoflop.laws.result import Fit, Prediction
from isoflop.layouts.hardware import GRID_KG_PER_KWH, HOST_SHARE, PUE, Cluster
from isoflop.layouts.published import GOODPUT, efficiency
from isoflop.layouts.search import Found, Planned, search
from isoflop.layouts.serving import Serving, serving_table
from isoflop.layouts.shapes import Shape, shape_for
from isoflop.records import Record

DAY = 86_400  # seconds
FIRST_SHARE = 0.4  # of peak, until a layout says better
ROUNDS = 6  # of size, layout, share of peak and size again
BATCH_LAW = "deepseek-2024-batch"
MOST_BATCH_TOKENS = 15_360 * 4096  # of DeepSeek-V3, 2412.19437: the law of the batch is not followed beyond
CONTEXT = 8192
GPUS = ("NVIDIA", "AMD")
TRAINER = {  # what our own trainer can do: copies or FSDP2, blocks computed again or not
    "tensor": [1], "pipeline": [1], "context": [1], "expert": [1], "zero": [0, 3], "recompute": [1, 2],
}  # fmt: skip


class ClusterPlan(Record):
    """What a cluster would train, and what that would cost."""

    cluster: Cluster
    shape: Shape
    params_active: float  # N
    params_total: float
    tokens: float  # D
    flops: float  # of the model: exact count of a token times D
    steps: int
    days: float
    device_hours: float
    usd: float | None
    energy_mwh: float | None
    co2_tonnes: float | None
    loss: Prediction | None  # by the law; None where it is not one of N and D
    law: str
    efficiency: float  # share of peak that matrix products reach
    efficiency_from: str
    found: Found
    trainer: Planned | None  # the best layout that our own trainer can do
    serving: tuple[Serving, ...]
    notes: tuple[str, ...]


def plan_cluster(
    cluster: Cluster,
    law: Fit,
    *,
    law_name: str,
    days: float | None = None,
    flops: float | None = None,
    params: float | None = None,
    tokens: float | None = None,
    experts: int = 0,
    context: int = CONTEXT,
) -> ClusterPlan:
    """The plan of a run for `days`, or of `flops`, or of `params` and `tokens`.

    What is not given of parameters and tokens the law says, for the compute that is left over failures
    (`GOODPUT`). `params` are active ones.
    Raises LayoutError when too little or too much is given or the model fits nowhere, and what `plan_law`
    raises.
    """
    _check(days, flops, params, tokens)
    share, words = efficiency(cluster.accelerator.generation)
    seconds = None if days is None else days * DAY * GOODPUT
    rate = cluster.devices * cluster.peak_flops
    mfu, sized = FIRST_SHARE, None
    for _ in range(ROUNDS):
        budget = flops if seconds is None else rate * seconds * mfu
        before, sized = sized, _size(law, budget, params, tokens, experts, context)
        shape, seen = sized
        batch = batch_sequences(seen * shape.flops_per_token, shape.context)
        found = search(shape, cluster, sequences=batch, efficiency=share)
        mfu = found.best[0].mfu
        if before is not None and before[0] == shape:
            break
    best = found.best[0]
    if seconds is not None and tokens is None:
        seen = best.tokens_per_second * seconds
    hours = cluster.devices * seen / best.tokens_per_second / GOODPUT / 3600
    energy = None if cluster.watts is None else hours * cluster.watts / 1e6
    return ClusterPlan(
        cluster=cluster, shape=shape, params_active=shape.active_params, params_total=shape.params,
        tokens=seen, flops=seen * shape.flops_per_token, steps=math.ceil(seen / best.step_tokens),
        days=hours / cluster.devices / 24, device_hours=hours,
        usd=None if cluster.usd_per_hour is None else hours * cluster.usd_per_hour,
        energy_mwh=energy, co2_tonnes=None if energy is None else energy * GRID_KG_PER_KWH,
        loss=_loss(law, shape.active_params, seen), law=law_name, efficiency=share, efficiency_from=words,
        found=found, trainer=_trainer(shape, cluster, batch, share),
        serving=serving_table(shape, cluster, share),
        notes=(*cluster.notes, *_notes(law, shape, seen), *_cost_notes(cluster)),
    )  # fmt: skip


def _check(days: float | None, flops: float | None, params: float | None, tokens: float | None) -> None:
    """Raises LayoutError unless the amount of training is said exactly once."""
    said = {"--days": days, "--flops": flops, "--params": params, "--tokens": tokens}
    for name, value in said.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise LayoutError(f"{name} is {value:g}.", hint="Give a positive number.")
    whole = params is not None and tokens is not None
    if sum((days is not None, flops is not None, whole)) != 1:
        raise LayoutError(
            "How much to train is not said." if not (days or flops) else "How much to train is said twice.",
            hint="Give one of --days 30, --flops 1e25, or --params with --tokens.",
        )


def _size(
    law: Fit, flops: float | None, params: float | None, tokens: float | None, experts: int, context: int
) -> tuple[Shape, float]:
    """The shape and its tokens: as given, or as the law splits the FLOPs."""
    if params is not None and tokens is not None:
        return shape_for(params, context=context, experts=experts), tokens
    assert flops is not None
    if tokens is None:
        wanted = plan_law(law, flops).params.value if params is None else params
        shape = shape_for(wanted, context=context, experts=experts)
        return shape, flops / shape.flops_per_token
    wanted = flops / 6 / tokens
    shape = shape_for(wanted, context=context, experts=experts)
    more = shape.flops_per_token / (6 * shape.active_params)  # for attention
    return shape_for(wanted / more, context=context, experts=experts), tokens


def batch_sequences(flops: float, context: int) -> int:
    """Of a step: DeepSeek LLM's law of the batch (2401.02954, eq. 1), a power of two, 63M tokens at most."""
    tokens = float(Fit.of_published(BATCH_LAW).loss(x=[flops])[0])
    return int(2 ** max(round(math.log2(min(tokens, MOST_BATCH_TOKENS) / context)), 0))


def _loss(law: Fit, params: float, tokens: float) -> Prediction | None:
    return law.predict(params, tokens) if {"params", "tokens"} == set(law.columns) else None


def _trainer(shape: Shape, cluster: Cluster, sequences: int, share: float) -> Planned | None:
    """None for experts and other makes, which our trainer does not have."""
    if shape.experts or cluster.accelerator.manufacturer not in GPUS:
        return None
    try:
        return search(shape, cluster, sequences=sequences, efficiency=share, only=TRAINER).best[0]
    except LayoutError:
        return None


def _notes(law: Fit, shape: Shape, tokens: float) -> list[str]:
    out = []
    flops = shape.flops_per_token * tokens
    if law.max_flops is not None and flops > law.max_flops:
        out.append(
            f"The law is extrapolated: {flops / law.max_flops:.3g} times the compute of its largest run."
        )
    if shape.experts:
        out.append("The law is of dense models, asked for active parameters: experts do better.")
    return out


def _cost_notes(cluster: Cluster) -> list[str]:
    """What days, money and energy hold, and what is not known."""
    out = [f"Days hold {1 - GOODPUT:.0%} for failures."]
    if cluster.usd_per_hour is None:
        out.append("No price of a device-hour is known: give --price.")
    if cluster.watts is None:
        out.append("The power of a device is not published: no energy.")
    else:
        out.append(
            f"Power: the accelerators', {HOST_SHARE:.0%} of it for hosts, times {PUE:g} for the site. CO2:"
            f" {GRID_KG_PER_KWH:g} kg a kWh, the world's in 2024."
        )
    return out
