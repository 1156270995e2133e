"""Activations that are computed again in the backward pass instead of being kept.

Of each block only the input stays in memory (Chen et al., Training Deep Nets with Sublinear Memory Cost,
arXiv 1604.06174), for about a third more work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from isoflop.errors import TrainError
from isoflop.model import LanguageModel


def recompute_blocks(model: LanguageModel, *, random: bool) -> None:
    """From now on every block of `model` keeps its input only; `random`: it has dropout, drawn alike again.

    Gradients are the same to the bit. Raises TrainError when the layers of an architecture are not found.
    """
    if not model.blocks:
        raise TrainError(
            f"the layers of {model.config.family} are not found, so their activations must be kept",
            hint="leave checkpoint_activations off",
        )
    for block in model.blocks:
        block.forward = partial(_forward, block.forward, random)


def _forward(forward: Callable[..., Any], random: bool, *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=random, **named)
