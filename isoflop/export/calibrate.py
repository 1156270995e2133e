"""What a model's layers are fed: the importance of each input of a matrix, for rounding its weights.

Rounding a row w of a matrix by e changes its output by e . x; with inputs that are nearly uncorrelated the
mean square of that is the sum over columns of e_c^2 E[x_c^2]. The second factor is llama.cpp's importance
matrix.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop.corpus import train_tokens
from isoflop.errors import CorpusError
from isoflop.gpt import GPT
from isoflop.records import Corpus

CALIBRATION_TOKENS = 65_536
BATCH_WINDOWS = 8


@torch.no_grad()
def importance(
    model: GPT, corpus: Corpus, tokens: int = CALIBRATION_TOKENS
) -> dict[str, NDArray[np.float32]]:
    """Mean square of each input of every linear layer, (columns,) by weight name, on training text.

    Windows are spread evenly over it. Raises CorpusError when it has less than one window.
    """
    text, context = train_tokens(corpus), model.config.context
    available = (len(text) - 1) // context
    if not available:
        raise CorpusError(
            f"corpus {corpus.id} has {len(text)} training tokens, less than one window of {context}",
            hint="add text, or leave calibration out (--calibrate 0)",
        )
    windows = (
        np.linspace(0, available - 1, max(1, min(available, tokens // context))).round().astype(np.int64)
    )
    sums: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(partial(_add, sums, f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        for some in np.array_split(windows, -(-len(windows) // BATCH_WINDOWS)):
            rows = np.stack([text[w * context : (w + 1) * context] for w in some]).astype(np.int64)
            model.forward(torch.from_numpy(rows))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (total / (len(windows) * context)).numpy() for name, total in sums.items()}


def _add(sums: dict[str, Tensor], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    square = inputs[0].square().flatten(0, -2).sum(0)
    sums[name] = sums[name] + square if name in sums else square
