"""In how many bits a training step computes: float32, or autocast to 16 bits with float32 weights.

Weights, gradients, optimizers and what is summed up stay float32, and so do held-out scores. fp16 reaches
down to 6e-8 only, so the loss is scaled up before the backward pass and the gradients down after it; a step
whose gradients are not finite is skipped, and the scale halved (Micikevicius et al., arXiv 1710.03740).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from isoflop.errors import TrainError
from isoflop.progress import Progress

PRECISIONS: Mapping[str, torch.dtype | None] = {
    "float32": None, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
CPU_UNITS = (
    "amx_bf16",
    "avx512_bf16",
    "sve_bf16",
    "bf16",
)  # instructions of x86 and ARM, as torch names them


def check_precision(name: str, device: torch.device, progress: Progress) -> None:
    """Raises TrainError for a precision that this device has not; says so of one that will be slow."""
    if name == "fp16" and device.type == "cpu":
        raise TrainError("fp16 is for a GPU, and this run has a CPU", hint="use bf16 or float32")
    if name == "bf16" and not has_bf16_units(device):
        progress.log(f"this {device.type} has no units for bf16: likely slower than float32")


def cpu_capabilities() -> Mapping[str, Any]:
    """Of this CPU, as torch names them; none where torch is too old to say."""
    found: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return found


def has_bf16_units(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16, as far as torch knows."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return any(cpu_capabilities().get(name) for name in CPU_UNITS)
    return True


class _Together:
    """Several optimizers as GradScaler takes one: either all step or none does."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


class Precision:
    """Autocast and the scale of the loss, for one trainer. `scaler` does nothing unless `name` is fp16."""

    def __init__(self, name: str, device: torch.device, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.device, self.dtype = device, PRECISIONS[name]
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        self.together: Any = _Together(optimizers)
        self.skipped = False  # whether the last step was

    def autocast(self) -> AbstractContextManager[Any]:
        """What the forward pass runs in."""
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradients of `loss`, scaled; returns it without them."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def unscale(self) -> None:
        """Once the gradients are those of the whole batch: before they are clipped."""
        self.scaler.unscale_(self.together)

    def step(self) -> None:
        """Step every optimizer, or none."""
        before = self.scaler.get_scale()
        self.scaler.step(self.together)
        self.scaler.update()
        self.skipped = self.scaler.get_scale() < before

    def failed(self, loss: float) -> bool:
        """Whether the last step, of this loss, went wrong. One that the scale explains was only skipped."""
        return self.scaler.get_scale() < 1.0 if self.skipped else not math.isfinite(loss)
