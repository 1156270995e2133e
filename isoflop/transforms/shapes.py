"""Which smaller shape a model is pruned to: as told, or found for a share of its parameters."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import product

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.recipe import WIDTH_STEP
from isoflop.records import ModelConfig

SIZES = ("n_layers", "n_heads", "d_ff", "d_model")  # what pruning makes smaller; head_dim stays
OPTIONS = {
    "n_layers": "--keep-layers",
    "n_heads": "--keep-heads",
    "d_ff": "--keep-ff",
    "d_model": "--keep-width",
}
WORDS = {"n_layers": "layers", "n_heads": "heads", "d_ff": "feed-forward width", "d_model": "width"}
CLOSE = 0.05  # a candidate has at most this share of the parameters less than the largest
CANDIDATES = 24


def sizes_of(shape: ModelConfig) -> dict[str, int]:
    """Its SIZES."""
    return {name: getattr(shape, name) for name in SIZES}


def smaller(model: ModelConfig, **keep: int) -> ModelConfig:
    """The shape of `model` with these of its SIZES; key/value heads follow the heads.

    Raises TrainError for a size that is larger than the model's, splits a key/value head's group, or whose
    weights do not fill GGUF's blocks of 32.
    """
    share = model.n_heads // model.n_kv_heads
    for name, wanted in keep.items():
        have, option = getattr(model, name), OPTIONS[name]
        if wanted > have:
            raise TrainError(
                f"{option} is {wanted}, and the model has {WORDS[name]} {have}",
                hint="pruning only makes smaller: give that or less",
            )
        unit = _unit(model, name)
        if wanted < 1 or (wanted % unit and wanted != have):
            why = f"each key/value head serves {share} of the model's {have}" if name == "n_heads" else ""
            raise TrainError(
                f"{option} is {wanted}, not a multiple of {unit} above zero" + (f": {why}" if why else ""),
                hint=f"give e.g. {max(unit, wanted // unit * unit)}",
            )
    heads = keep.get("n_heads", model.n_heads)
    return model.model_copy(update={**keep, "n_kv_heads": heads // share})


def candidates(model: ModelConfig, share: float, keep: Mapping[str, int]) -> list[ModelConfig]:
    """Shapes of at most `share` of the stored parameters, with the sizes in `keep`, the most even first.

    For each depth, number of heads and width, the largest feed-forward width that fits; what then has CLOSE
    fewer parameters than the largest of them falls out. A shape is as even as the smallest share that it
    keeps of any size: what is cut everywhere a little comes before what is cut deeply in one place. At most
    CANDIDATES. Raises TrainError when the share is none, or nothing fits.
    """
    whole = flops.params_total(model)
    if not 0 < share < 1:
        raise TrainError(
            f"a share of {share:g} of the parameters is not between 0 and 1", hint="give e.g. 0.5"
        )
    smaller(model, **keep)  # complains of what cannot be
    found = {shape: flops.params_total(shape) for shape in _fitting(model, share * whole, keep)}
    if not found:
        kept = "".join(f" with {OPTIONS[name]} {size}" for name, size in keep.items())
        raise TrainError(
            f"no smaller shape{kept} has {share:g} of the model's {whole:,} parameters or less",
            hint="give a larger share, or keep less",
        )
    least = (1 - CLOSE) * max(found.values())
    close = [shape for shape, size in found.items() if size >= least]
    return sorted(close, key=lambda shape: (-_evenness(model, shape), -found[shape]))[:CANDIDATES]


def path(model: ModelConfig, target: ModelConfig, steps: int) -> list[ModelConfig]:
    """Shapes on the way to `target`, its own the last: every size shrinks by like factors, as far as it can.

    Raises TrainError for less than one step.
    """
    if steps < 1:
        raise TrainError(f"{steps} steps prune nothing", hint="give 1 or more")
    shapes: list[ModelConfig] = []
    for i in range(1, steps):
        shape = smaller(model, **{name: _between(model, target, name, i / steps) for name in SIZES})
        if shape not in (model, target, *shapes):
            shapes.append(shape)
    return [*shapes, target]


def _unit(model: ModelConfig, name: str) -> int:
    """What a size is a multiple of; heads so that the output projection's rows are whole blocks too."""
    if name == "n_layers":
        return 1
    if name != "n_heads":
        return WIDTH_STEP
    share = model.n_heads // model.n_kv_heads
    return math.lcm(share * model.head_dim, WIDTH_STEP) // model.head_dim


def _sizes(model: ModelConfig, name: str, keep: Mapping[str, int]) -> list[int]:
    """Those that a shape may have, smallest first."""
    if name in keep:
        return [keep[name]]
    have, unit = getattr(model, name), _unit(model, name)
    return sorted({*range(unit, have, unit), have})


def _fitting(model: ModelConfig, most: float, keep: Mapping[str, int]) -> Iterator[ModelConfig]:
    """Of each depth, number of heads and width, the widest feed-forward with at most so many parameters."""
    widths, others = _sizes(model, "d_ff", keep), [name for name in SIZES if name != "d_ff"]
    for sizes in product(*(_sizes(model, name, keep) for name in others)):
        rest = smaller(model, **dict(zip(others, sizes, strict=True)))
        fit = bisect_right(widths, most, key=lambda ff: flops.params_total(smaller(rest, d_ff=ff)))
        if fit:
            yield smaller(rest, d_ff=widths[fit - 1])


def _evenness(model: ModelConfig, shape: ModelConfig) -> float:
    return min(float(getattr(shape, name) / getattr(model, name)) for name in SIZES)


def _between(model: ModelConfig, target: ModelConfig, name: str, part: float) -> int:
    """A size on a geometric way, rounded up to what it may be."""
    have, goal = int(getattr(model, name)), int(getattr(target, name))
    exact = have ** (1 - part) * goal**part
    allowed = sorted({goal, *_sizes(model, name, {})})
    return next(size for size in allowed if size >= max(goal, exact - 1e-9))
