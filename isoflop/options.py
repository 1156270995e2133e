"""Which values the options of a run may have."""

from __future__ import annotations

import math

from isoflop.errors import TrainError
from isoflop.records import RunConfig

RANGES = {  # fields of RunConfig: from, and below
    "accumulate": (1, math.inf),
    "dropout": (0, 1),
    "label_smoothing": (0, 1),
    "patience": (0, math.inf),
    "evaluate_every": (0, math.inf),
}


def check_options(config: RunConfig) -> None:
    """Raises TrainError for an option outside its range, or without the one that it serves."""
    for name, (low, high) in RANGES.items():
        value, default = getattr(config, name), RunConfig.model_fields[name].default
        if not low <= value < high:
            ends = f"at least {low}" + ("" if high == math.inf else f" and below {high}")
            raise TrainError(f"{name} is {value}, and must be {ends}", hint=f"leave it at {default}")
    if config.initial and config.dropout:
        raise TrainError(
            f"dropout is {config.dropout}, and a model that goes on from a folder has none",
            hint="leave it at 0",
        )
    if config.shard and config.old:
        raise TrainError(
            "what a run forgets of its old text is measured on whole weights, and this run's are sharded",
            hint="leave out --shard, or the old text",
        )
    if config.trunk_context and config.model.objective != "causal":
        raise TrainError(
            f"trunk_context is {config.trunk_context}, and the objective {config.model.objective} "
            "needs whole windows",
            hint="leave it at 0",
        )
    if config.evaluate_every and not config.patience:
        raise TrainError(
            f"evaluate_every is {config.evaluate_every}, but without patience nothing waits for these scores",
            hint="give a patience as well",
        )
