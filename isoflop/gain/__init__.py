"""Doublings: how much compute of the baseline a result was worth, and how much of its bytes and seconds."""

from isoflop.gain.compute import UNBOUNDED_FLOPS, gain, is_defined
from isoflop.gain.recipes import Pair, RecipeGain, ScaleGain, compare, paired
from isoflop.gain.serving import (
    BYTES,
    PRODUCT,
    SECONDS,
    DenseCost,
    InferenceGain,
    ServingCost,
    inference,
    inference_over,
    params_for,
)

__all__ = [
    "BYTES",
    "PRODUCT",
    "SECONDS",
    "UNBOUNDED_FLOPS",
    "DenseCost",
    "InferenceGain",
    "Pair",
    "RecipeGain",
    "ScaleGain",
    "ServingCost",
    "compare",
    "gain",
    "inference",
    "inference_over",
    "is_defined",
    "paired",
    "params_for",
]
