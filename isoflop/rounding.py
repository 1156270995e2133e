"""Quantization-aware training: gradients at weights that are rounded as a GGUF file will hold them.

Before each step the matrices are replaced by what llama.cpp makes of them, and put back after it: the
optimizer moves the unrounded weights by the gradients at the rounded ones, as if rounding had the slope 1
(the straight-through estimator: Bengio et al., arXiv 1308.3432; Jacob et al., arXiv 1712.05877). What is
scored and kept has rounded weights, which its type holds exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from isoflop.errors import TrainError
from isoflop.model import LanguageModel

KINDS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # that are rounded fast, and whose own values stay


def check_kind(kind: str) -> None:
    """Raises TrainError for a type that no run can be trained for."""
    if kind not in KINDS:
        raise TrainError(
            f"no run is trained for weights of the type {kind!r}", hint=f"name one of {', '.join(KINDS)}"
        )


class Rounding:
    """Of all matrices of a model, embedding and head among them, to one type of `export.gguf.TYPES`."""

    def __init__(self, model: LanguageModel, kind: str) -> None:
        self.kind = kind
        self.weights = [p for p in model.parameters() if p.ndim == 2]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In this block the model has rounded weights, whose gradients remain when it ends."""
        before = [p.detach().clone() for p in self.weights]
        with torch.no_grad():
            for p in self.weights:
                p.copy_(rounded(p, self.kind))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([p.data for p in self.weights], before)


def rounded(weight_rc: Tensor, kind: str) -> Tensor:
    """The matrix that a file holds of this one, on the CPU. Raises ProjectError without llama.cpp."""
    from isoflop.export.gguf import restored, stored

    return torch.from_numpy(restored(*stored(weight_rc.detach().cpu().numpy(), kind)))
