"""The values of a recipe that a tuning may search, and how far around the recipe's own.

The recipe's rules carry a value from one width to the next; what they cannot know is the constant in front,
which depends on the data. By default the three rates are searched, whose constants were measured on source
code. The others are worth naming (`--values`) where there is a reason to:

- weight_decay and cooldown where little text is seen many times;
- warmup_tokens and lr_vector where runs diverge or are very short;
- batch_tokens where equal tokens matter more than equal seconds: a smaller batch computes more steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from isoflop.errors import TrainError
from isoflop.records import RunConfig

if TYPE_CHECKING:
    import optuna

DIGITS = 3  # significant, of a value that is trained: what is printed is what was tried


@dataclass(frozen=True)
class Value:
    """Where a value is searched: between the recipe's over and times `factor`, or from `low` to `high`."""

    factor: float = 0.0
    low: float = 0.0
    high: float = 0.0
    scales: bool = False  # the recipe's rule changes it with the width: what is found is a factor of it


VALUES = {
    "lr_matrix": Value(factor=8.0),
    "lr_embed": Value(factor=8.0, scales=True),
    "lr_head": Value(factor=8.0, scales=True),
    "lr_vector": Value(factor=8.0),
    "batch_tokens": Value(factor=4.0, scales=True),
    "warmup_tokens": Value(factor=8.0, scales=True),
    "weight_decay": Value(low=0.0, high=0.3),  # an e-folding in 80 steps at the recipe's rate, or none
    "cooldown": Value(low=0.1, high=0.6),
}
DEFAULT = ("lr_matrix", "lr_embed", "lr_head")


def chosen(names: Sequence[str], changes: Sequence[str] = ()) -> tuple[str, ...]:
    """The names, once each, in the order of `VALUES`.

    Raises TrainError when one is not there, or is among the `changes` that the user has made to the recipe.
    """
    said = {change.partition("=")[0] for change in changes}
    for name in names:
        if name in said:
            raise TrainError(
                f"{name} cannot be both searched and set",
                hint=f"leave --set {name}=... out, or name what to search with --values",
            )
        if name not in VALUES:
            raise TrainError(
                f"{name!r} is not a value that is tuned", hint=f"name any of {', '.join(VALUES)}"
            )
    if not names:
        raise TrainError("there is no value to tune", hint=f"name any of {', '.join(VALUES)}")
    return tuple(name for name in VALUES if name in names)


def suggest(trial: optuna.Trial, name: str, config: RunConfig) -> None:
    """Let the trial choose `name` around the recipe's `config`."""
    value, middle = VALUES[name], getattr(config, name)
    low, high = (middle / value.factor, middle * value.factor) if value.factor else (value.low, value.high)
    if name == "batch_tokens":
        trial.suggest_categorical(name, batches(config))
    elif isinstance(middle, int):
        trial.suggest_int(name, max(1, round(low)), round(high), log=True)
    else:
        trial.suggest_float(name, low, high, log=value.factor > 0)


def batches(config: RunConfig) -> tuple[int, ...]:
    """Batches that are tried, in tokens: the recipe's times powers of two, of whole windows."""
    most = round(math.log2(VALUES["batch_tokens"].factor))
    tried = (round(config.batch_tokens * 2.0**k) for k in range(-most, most + 1))
    return tuple(b for b in tried if b >= config.model.context and b % config.model.context == 0)


def with_values(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    """`config` with these values, as they are trained; a warm-up that is not among them follows the batch."""
    update = {name: rounded(value) for name, value in values.items()}
    batches = update.get("batch_tokens", config.batch_tokens) / config.batch_tokens
    warmup = {"warmup_tokens": round(config.warmup_tokens * batches)}
    return config.model_copy(update=warmup | update)


def setting(name: str, values: dict[str, float], config: RunConfig) -> str:
    """What `--set` needs for a value found beside the recipe's `config`: itself, or x and a factor."""
    value, own = values[name], getattr(config, name)
    if not VALUES[name].scales:
        return number(value)
    if name == "warmup_tokens":  # follows the batch
        own *= values.get("batch_tokens", config.batch_tokens) / config.batch_tokens
    return f"x{value / own:.3g}"


def number(value: float) -> str:
    """As it was trained."""
    return str(int(value)) if value == int(value) and abs(value) >= 1 else f"{value:.{DIGITS}g}"


def rounded(value: float) -> float:
    """To three significant digits; whole numbers stay."""
    return value if isinstance(value, int) else float(f"{value:.{DIGITS}g}")
