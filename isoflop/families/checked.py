"""Whether an architecture that nobody has tried here really trains, and costs what is counted."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.families.foreign import Foreign, cannot
from isoflop.families.wrapped import Wrapped
from isoflop.model import IGNORE
from isoflop.objectives import OBJECTIVES, prefix_of

CLOSE = 0.01  # of the FLOPs that torch counts


def check(family: Foreign) -> None:
    """Train the smallest shape one step: every weight must learn, and torch must count the same FLOPs."""
    shape = family.shape(next(family.widths()), 300, context=32)
    try:
        model = family.build(shape, 0)
        ids, targets = _example(family.objective, 32)
        # As plain matmuls: the counter does not know the CPU's fused attention.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.loss(ids, targets).backward()  # type: ignore[no-untyped-call]
        ours, torchs = 32 * flops.flops_per_token(shape), flops.counted_by_torch(counter)
    except TrainError:
        raise
    except Exception as error:  # of an architecture that nobody has tried
        raise cannot(family.name, error) from None
    still = [name for name, p in model.named_parameters() if p.grad is None]
    if still:
        raise TrainError(
            f"weights of {family.name} do not learn: {still[0]}", hint="use another architecture"
        )
    if prefix_of(shape) and isinstance(model, Wrapped) and not _sees_prefix(model):
        raise TrainError(
            f"the family {family.name} cannot look at a prefix in both directions",
            hint="use gpt2, llama, t5 or our own decoder, or leave --objective out",
        )
    if abs(ours / torchs - 1) > CLOSE:
        raise TrainError(
            f"the FLOPs of {family.name} cannot be counted: {ours:,} by its modules, {torchs:,} by torch",
            hint="use an architecture without experts or layers that share weights",
        )


def _example(objective: str, context: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One row of inputs and targets of an objective, of no meaning."""
    read, written = OBJECTIVES[objective].lengths(context)
    ids, targets = torch.arange(read)[None], torch.arange(written)[None]
    pair = written > context  # the last column is no token
    targets[:, : written - OBJECTIVES[objective].predicted(context) - pair] = IGNORE
    if pair:
        targets[:, -1] = 0
    return ids, targets


@torch.no_grad()
def _sees_prefix(model: Wrapped) -> bool:
    """Whether the prefix's last token changes the first one's logits, and no later token does."""
    prefix, t = prefix_of(model.config), model.config.context
    ids = torch.arange(t)[None].repeat(3, 1)
    ids[1, prefix - 1], ids[2, prefix] = t, t
    plain, inside, outside = model.forward(ids)[:, 0]
    return bool((plain != inside).any() and torch.allclose(plain, outside, atol=1e-5))
