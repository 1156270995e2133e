"""What a model learns to predict: windows of text become inputs and targets.

Shapes: b windows, u = t + 1 tokens each, t time.
"""

from __future__ import annotations

from collections.abc import Mapping

from isoflop.objectives.forward import Causal, Prefix, prefix_mask
from isoflop.objectives.masked import Masked, MaskedNext
from isoflop.objectives.protocol import BOTH, DECODER, ENCODER, Objective
from isoflop.objectives.spans import Spans
from isoflop.records import ModelConfig

__all__ = [
    "BOTH", "DECODER", "ENCODER", "OBJECTIVES", "Objective", "prefix_mask", "prefix_of",
]  # fmt: skip

OBJECTIVES: Mapping[str, Objective] = {
    "causal": Causal(),
    "prefix": Prefix(),
    "masked": Masked(words=False),
    "masked-words": Masked(words=True),
    "masked-next": MaskedNext(),
    "spans": Spans(),
}


def prefix_of(model: ModelConfig) -> int:
    """Tokens of a window that this model sees in both directions before it writes; 0 for most."""
    objective = OBJECTIVES[model.objective]
    return objective.prefix(model.context) if isinstance(objective, Prefix) else 0
