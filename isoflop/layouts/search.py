"""All layouts of a model on a cluster, the best of them, and why the others are worse.

Candidates are arrays from beginning to end: hundreds of thousands are judged in a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.errors import LayoutError
from isoflop.layouts.hardware import Cluster
from isoflop.layouts.layouts import FULL, MODERN, RECOMPUTE, Floats, Ints, Layout, Layouts, Practice
from isoflop.layouts.memory import Memory, memory, stage_layers
from isoflop.layouts.shapes import Shape, shape_for
from isoflop.layouts.time import PARTS, Step, step
from isoflop.records import Record

BEST = 3
UNEVEN = 1.05  # longest pipeline stage over the mean one, at most
BATCH_SLACK = 0.1  # a step's sequences may differ by this share from those asked for
MICRO = (1, 2, 4, 8, 16)
MOST_TENSOR, MOST_CONTEXT, LEAST_CONTEXT = 64, 32, 8192  # devices, devices, tokens a device
MOST_CHUNKS = 16  # a pipeline stage
WORDS = {
    "compute": "matrix products", "recompute": "what is computed again", "elementwise": "memory traffic",
    "tensor": "tensor-parallel all-reduces", "experts": "traffic to experts", "context": "key-value exchange",
    "stages": "traffic between stages", "bubble": "the pipeline's bubble", "data": "gradients and weights",
    "optimizer": "the optimizer",
}  # fmt: skip


class Planned(Record):
    """A layout with what it costs."""

    layout: Layout
    step_seconds: float
    step_tokens: float
    mfu: float  # model FLOPs over peak
    hfu: float  # what is computed again counted too
    seconds: dict[str, float]  # of a step, by part
    memory: dict[str, float]  # bytes of the fullest device, by part
    memory_bytes: float
    why: str

    @property
    def tokens_per_second(self) -> float:
        return self.step_tokens / self.step_seconds


class Failing(Record):
    """A kind of layout that is not the best, and the reason."""

    kind: str
    reason: str


class Found(Record):
    """What a search found: the best layouts, the fastest first, and a reason a kind for the others."""

    best: tuple[Planned, ...]
    failing: tuple[Failing, ...]
    considered: int
    fitting: int


@dataclass(frozen=True)
class Judged:
    """(n,) candidates with their memory and time."""

    layouts: Layouts
    memory: Memory
    step: Step
    fits: np.ndarray
    speed: Floats  # tokens a second


def candidates(
    shape: Shape, cluster: Cluster, sequences: int, only: Mapping[str, Sequence[int]] | None = None
) -> Layouts:
    """Every layout whose degrees divide the devices, heads, layers, experts and the batch of `sequences`.

    Tensor-parallel groups stay in a node, and stages may be uneven by a twentieth.

    `only` replaces the values that a field of `Layouts` may have (`data` and `micro_batches` follow from the
    others). A batch may differ by a tenth from `sequences`.
    """
    allowed = _values(shape, cluster) | {name: np.asarray(v) for name, v in (only or {}).items()}
    t, p, c, e = _product(allowed, ("tensor", "pipeline", "context", "expert"))
    data = cluster.devices // (t * p * c)
    keep = (data * t * p * c == cluster.devices) & (p <= shape.layers)
    keep &= (shape.heads % t == 0) & ((shape.kv_heads % t == 0) | (t % shape.kv_heads == 0))
    keep &= cluster.node_devices % t == 0  # whole groups in a node
    keep &= ((data * c) % e == 0) & (max(shape.experts, 1) % e == 0) & (data <= sequences * (1 + BATCH_SLACK))
    degrees = np.stack([data, t, p, c, e])[:, keep]
    rest = np.stack(_product(allowed, ("micro", "interleave", "zero", "recompute", "sequence")))
    n, k = degrees.shape[1], rest.shape[1]
    data, t, p, c, e = np.repeat(degrees, k, axis=1)
    micro, v, zero, recompute, sequence = np.tile(rest, n)
    batches = np.maximum(np.rint(sequences / (data * micro)).astype(np.int64), 1)
    found = Layouts(data, t, p, c, e, micro, batches, v, zero, recompute, sequence.astype(bool))
    return found.take(_sensible(shape, found, sequences))


def _values(shape: Shape, cluster: Cluster) -> dict[str, Ints]:
    """What each field may be."""
    divisors = _divisors(cluster.devices)
    powers = 2 ** np.arange(MOST_CONTEXT.bit_length())
    return {
        "tensor": divisors[divisors <= min(cluster.node_devices, MOST_TENSOR)],
        "pipeline": divisors[divisors <= shape.layers],
        "context": powers[powers * LEAST_CONTEXT <= max(shape.context, LEAST_CONTEXT)],
        "expert": _divisors(shape.experts) if shape.experts else np.array([1]),
        "micro": np.array(MICRO),
        "interleave": np.arange(1, MOST_CHUNKS + 1),
        "zero": np.array([0, 1, 2, 3]),
        "recompute": np.arange(len(RECOMPUTE)),
        "sequence": np.array([1]),
    }


def _divisors(n: int) -> Ints:
    low = np.arange(1, int(n**0.5) + 1)
    low = low[n % low == 0]
    return np.unique(np.concatenate([low, n // low]))


def _product(allowed: Mapping[str, Ints], names: Sequence[str]) -> list[Ints]:
    """The named values in all combinations, each (k,)."""
    grids = np.meshgrid(*(allowed[name] for name in names), indexing="ij")
    return [grid.ravel().astype(np.int64) for grid in grids]


def _sensible(shape: Shape, all_: Layouts, sequences: int) -> np.ndarray:
    """(n,) those whose batch, stages and chunks divide, and whose ZeRO has copies to shard over."""
    p, v, m = all_.pipeline, all_.interleave, all_.micro_batches
    batch = np.abs(all_.sequences / sequences - 1) <= BATCH_SLACK
    chunks = (v == 1) | ((p > 1) & (p * v <= UNEVEN * shape.layers) & (m >= p))
    even = stage_layers(shape, all_) * p <= UNEVEN * shape.layers
    needless = (all_.data * all_.context == 1) & (all_.zero > 0)
    return np.asarray(batch & chunks & even & ~needless)


def judge(
    shape: Shape, cluster: Cluster, layouts: Layouts, efficiency: float, practice: Practice = MODERN
) -> Judged:
    """Memory and time of all of them."""
    held = memory(shape, layouts, practice)
    timed = step(shape, cluster, layouts, efficiency, practice)
    return Judged(layouts, held, timed, held.total <= cluster.memory_bytes, timed.tokens / timed.total)


def search(
    shape: Shape,
    cluster: Cluster,
    *,
    sequences: int,
    efficiency: float,
    practice: Practice = MODERN,
    only: Mapping[str, Sequence[int]] | None = None,
) -> Found:
    """The best three layouts for a step of about `sequences` sequences, and why other kinds are worse.

    `only`: see `candidates`. Raises LayoutError, saying what would fit, where no layout does.
    """
    layouts = candidates(shape, cluster, sequences, only)
    if not len(layouts):
        raise LayoutError(
            f"No layout divides {cluster.name} and a batch of {sequences} sequences.",
            hint="Take a number of devices with small divisors, such as a power of two, or fewer of them.",
        )
    all_ = judge(shape, cluster, layouts, efficiency, practice)
    if not all_.fits.any():
        raise _nothing_fits(shape, cluster, all_, sequences)
    order = _different(all_, np.argsort(np.where(all_.fits, -all_.speed, 0.0), kind="stable"))
    best = tuple(_planned(cluster, all_, i, order[0]) for i in order)
    return Found(
        best=best, failing=_failing(cluster, all_, order[0]),
        considered=len(layouts), fitting=int(all_.fits.sum()),
    )  # fmt: skip


def _different(all_: Judged, order: np.ndarray) -> list[int]:
    """The first `BEST` of the order whose degrees differ; others differ in details only."""
    out: list[int] = []
    seen = set()
    for i in order:
        if not all_.fits[i]:
            break
        a = all_.layouts
        key = (a.tensor[i], a.pipeline[i], a.context[i], a.expert[i], a.zero[i] == 3)
        if key not in seen:
            seen.add(key)
            out.append(int(i))
        if len(out) == BEST:
            break
    return out


def _planned(cluster: Cluster, all_: Judged, i: int, best: int) -> Planned:
    seconds = {name: float(getattr(all_.step, name)[i]) for name in PARTS}
    held = {name: float(getattr(all_.memory, name)[i]) for name in all_.memory.__dataclass_fields__}
    total = float(all_.step.total[i])
    return Planned(
        layout=all_.layouts.one(i), step_seconds=total, step_tokens=float(all_.step.tokens[i]),
        mfu=float(all_.step.mfu[i]), hfu=float(all_.step.hfu[i]), seconds=seconds, memory=held,
        memory_bytes=float(all_.memory.total[i]), why=_why(cluster, all_, i, best),
    )  # fmt: skip


def _why(cluster: Cluster, all_: Judged, i: int, best: int) -> str:
    """Where the time of a layout goes, and for the others what they lose to the best."""
    if i != best:
        return _slower(all_, i, best)
    total = float(all_.step.total[i])
    losses = sorted(((float(getattr(all_.step, n)[i]), n) for n in PARTS[1:]), reverse=True)
    parts = ", ".join(f"{WORDS[n]} {s / total:.0%}" for s, n in losses[:3] if s / total >= 0.005)
    used = float(all_.memory.total[i]) / cluster.memory_bytes
    share = float(all_.step.compute[i]) / total
    words = f"{used:.0%} of the memory; matrix products take {share:.0%} of the step"
    return f"{words}, {parts}" if parts else words


def _slower(all_: Judged, i: int, best: int) -> str:
    """How much slower a token is than in the best layout, and what takes most of the difference."""
    ratio = float(all_.speed[best] / all_.speed[i])
    if ratio < 1.005:
        return "as fast, within half a percent"
    tokens = all_.step.tokens
    more = {n: float(getattr(all_.step, n)[i] / tokens[i] - getattr(all_.step, n)[best] / tokens[best])
            for n in PARTS}  # fmt: skip
    return f"{ratio:.2f}x slower, most of it for {WORDS[max(more, key=more.__getitem__)]}"


def _kind(layouts: Layouts) -> tuple[Ints, list[str]]:
    """(n,) index of each layout's kind, and the kinds' names."""
    flags = [layouts.tensor > 1, layouts.pipeline > 1, layouts.context > 1, layouts.expert > 1]
    data = np.where(layouts.data > 1, np.where(layouts.zero == 3, 2, 1), 0)
    code = sum(flag.astype(np.int64) << i for i, flag in enumerate(flags)) + 16 * data
    names = []
    for number in np.arange(48):
        parts = [w for i, w in enumerate(("tensor", "pipeline", "context", "expert")) if number >> i & 1]
        parts += [(), ("data",), ("FSDP",)][number // 16]
        names.append(" + ".join(parts) or "one device")
    return np.asarray(code), names


def _failing(cluster: Cluster, all_: Judged, best: int) -> tuple[Failing, ...]:
    """A reason for every kind but the best one's: the nearest to fitting first."""
    kinds, names = _kind(all_.layouts)
    out = []
    for kind in np.unique(kinds):
        if kind == kinds[best]:
            continue
        rows = np.flatnonzero(kinds == kind)
        fitting = rows[all_.fits[rows]]
        if len(fitting):
            i = int(fitting[all_.speed[fitting].argmax()])
            out.append((float(all_.speed[best] / all_.speed[i]), names[kind], _slower(all_, i, best)))
        else:
            least = float(all_.memory.total[rows].min())
            reason = f"needs {least / 1e9:.0f} GB a device at least, of {cluster.memory_bytes / 1e9:.0f}"
            out.append((1e9 * least, names[kind], reason))
    absent = [_absent(names[n]) for n in (1 + 16, 2 + 16, 3 + 16, 32) if n not in kinds]
    return (*(Failing(kind=kind, reason=reason) for _, kind, reason in sorted(out)), *absent)


def _absent(kind: str) -> Failing:
    return Failing(
        kind=kind, reason="does not divide: no degrees divide devices, heads, layers and the batch"
    )


def _nothing_fits(shape: Shape, cluster: Cluster, all_: Judged, sequences: int) -> LayoutError:
    """Says the least that a layout needs, the devices that would do, and the model that would fit."""
    i = int(all_.memory.total.argmin())
    least = float(all_.memory.total[i])
    ways = []
    enough = _enough_devices(shape, cluster, sequences)
    if enough is not None:
        ways.append(f"{enough:,} of these devices hold it")
    largest = _largest_model(shape, cluster, sequences)
    if largest is not None:
        ways.append(f"a model of {largest / 1e9:.2g}B parameters fits here")
    return LayoutError(
        f"{shape.params:.3g} parameters do not fit on {cluster.name}: the leanest layout"
        f" ({all_.layouts.one(i).words}) needs {least / 1e9:,.0f} GB a device, of"
        f" {cluster.memory_bytes / 1e9:.0f}.",
        hint=("; ".join(ways) or "Take devices with more memory, or a shorter context") + ".",
    )


def _lean(shape: Shape, cluster: Cluster, sequences: int) -> bool:
    """Whether any layout with the least of everything fits."""
    layouts = candidates(shape, cluster, sequences, {"micro": [1], "zero": [0, 3], "recompute": [FULL]})
    return bool((memory(shape, layouts).total <= cluster.memory_bytes).any()) if len(layouts) else False


def _enough_devices(shape: Shape, cluster: Cluster, sequences: int) -> int | None:
    for doubled in range(1, 21):
        devices: int = cluster.devices * 2**doubled
        node = max(cluster.node_devices, min(cluster.accelerator.node_devices or 8, devices))
        larger = cluster.model_copy(update={"devices": devices, "node_devices": node})
        if _lean(shape, larger, max(sequences, devices)):
            return devices
    return None


def _largest_model(shape: Shape, cluster: Cluster, sequences: int) -> float | None:
    for halved in range(1, 25):
        params = shape.active_params / 2 ** (halved / 2)
        if params < 1e6:
            return None
        smaller = shape_for(params, context=shape.context, experts=shape.experts)
        if _lean(smaller, cluster, sequences):
            return float(smaller.params)
    return None
