"""What can be asked of a table of dated facts: each metric's columns, unit and direction. No numpy here."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from isoflop.errors import TrendError

MODELS, HARDWARE, USER = "models", "hardware", "user"  # kinds of table
FEWEST_COSTS = 20
FEWEST_PRICES = 6  # with fewer, published series of prices at fixed quality gave 9x to 900x a year


@dataclass(frozen=True)
class Metric:
    """One number of a row: a column, or the ratio of two."""

    name: str
    about: str
    unit: str
    kind: str  # of the table that states it
    column: str
    per: str = ""  # column that divides it
    falls: bool = False  # progress makes it smaller
    language_only: bool = False  # other rows count something else in this column
    least: int = 0  # points below which an answer is refused
    why_least: str = ""
    caveat: str = ""  # a sentence that every answer repeats


_ALL = (
    Metric("parameters", "all parameters", "parameters", MODELS, "params_total"),
    Metric("active-parameters", "parameters that a token meets", "parameters", MODELS, "params_active"),
    Metric("compute", "training compute", "FLOP", MODELS, "flops"),
    Metric("tokens", "tokens seen in training, repeats counted", "tokens", MODELS, "tokens",
           language_only=True),
    Metric("unique-tokens", "tokens of the training text, each counted once", "tokens", MODELS,
           "unique_tokens", language_only=True),
    Metric("cost", "cost of the training compute", "USD", MODELS, "cost_usd", least=FEWEST_COSTS,
           why_least="few publish a cost, and mostly a low one"),
    Metric("flops-per-second", "peak rate in FP32, without tensor cores", "FLOP/s", HARDWARE, "fp32"),
    Metric("flops-per-second-fp16", "peak dense rate in FP16 or BF16", "FLOP/s", HARDWARE, "fp16"),
    Metric("memory", "memory of a device", "bytes", HARDWARE, "memory_bytes"),
    Metric("bandwidth", "memory bandwidth of a device", "bytes/s", HARDWARE, "bandwidth_bytes"),
    Metric("flops-per-dollar", "FP32 rate per dollar at launch", "FLOP/s per USD", HARDWARE, "fp32",
           per="launch_price_usd"),
    Metric("flops-per-dollar-fp16", "FP16 rate per dollar at launch", "FLOP/s per USD", HARDWARE, "fp16",
           per="launch_price_usd"),
    Metric("flops-per-watt", "FP32 rate per watt", "FLOP/s per W", HARDWARE, "fp32", per="tdp_w"),
    Metric("flops-per-watt-fp16", "FP16 rate per watt", "FLOP/s per W", HARDWARE, "fp16", per="tdp_w"),
    Metric("inference-price", "price of a million tokens at a fixed quality", "USD per million tokens", USER,
           "inference_price", falls=True, least=FEWEST_PRICES,
           why_least="on 4 to 9 points the published rates run from 9x to 900x a year"),
    Metric("capability-density", "parameters of a reference model of equal loss or score, per parameter",
           "ratio", USER, "capability_density",
           caveat="Density also grows by training a small model for longer: compare equal tokens per N."),
    Metric("algorithmic-progress", "compute that a fixed loss took before, over what it takes now", "ratio",
           USER, "algorithmic_progress"),
    Metric("time-horizon", "length of the tasks that are done half of the time", "minutes", USER,
           "time_horizon"),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def metric_named(name: str) -> Metric:
    """Raises TrendError with the nearest names."""
    if name in METRICS:
        return METRICS[name]
    near = difflib.get_close_matches(name, list(METRICS), n=3, cutoff=0.5) or list(METRICS)
    raise TrendError(f"There is no metric named {name!r}.", hint=f"Did you mean {' or '.join(near)}?")
