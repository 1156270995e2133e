"""What a model's layers are fed: the importance of each input of a matrix, for rounding its weights.

Rounding a row w of a matrix by e changes its output by e . x; with inputs that are nearly uncorrelated the
mean square of that is the sum over columns of e_c^2 E[x_c^2]. The second factor is llama.cpp's importance
matrix, the diagonal of the second moments E[x x'], of which GPTQ takes all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def windows(corpus: Corpus, context: int, tokens: int = CALIBRATION_TOKENS) -> Iterator[Tensor]:
    """Batches (b, context + 1) of token ids: windows that lie evenly over the training text, read as they go.

    About `tokens` tokens in all, one window at least. Raises CorpusError when that is none, or more than the
    text has.
    """
    text, chosen = train_tokens(corpus), _chosen(corpus, context, tokens)
    for some in np.array_split(chosen, -(-len(chosen) // BATCH_WINDOWS)):
        rows = np.stack([text[w * context : (w + 1) * context + 1] for w in some]).astype(np.int64)
        yield torch.from_numpy(rows)


def tokens_read(corpus: Corpus, context: int, tokens: int) -> int:
    """Those that `windows` really gives."""
    return len(_chosen(corpus, context, tokens)) * context


def _chosen(corpus: Corpus, context: int, tokens: int) -> NDArray[np.int64]:
    """Numbers of windows."""
    if tokens < 1:
        raise CorpusError(f"{tokens} tokens are no text to calibrate on", hint="give e.g. --calibrate 65536")
    available = (corpus.train_tokens - 1) // context
    if available < 1:
        raise CorpusError(
            f"corpus {corpus.id} has {corpus.train_tokens} training tokens, "
            f"less than one window of {context}",
            hint="add text; an export does without calibration (--calibrate 0)",
        )
    count = max(1, min(available, tokens // context))
    return np.linspace(0, available - 1, count).round().astype(np.int64)


def importance(
    model: GPT, corpus: Corpus, tokens: int = CALIBRATION_TOKENS
) -> dict[str, NDArray[np.float32]]:
    """Mean square of each input of every linear layer, (columns,) by weight name, on training text.

    Raises CorpusError as `windows` does.
    """
    return _means(model, corpus, tokens, lambda x_nc: x_nc.square().sum(0))


def second_moments(
    model: GPT, corpus: Corpus, tokens: int = CALIBRATION_TOKENS
) -> dict[str, NDArray[np.float32]]:
    """E[x x'] of the inputs of every linear layer, (columns, columns) by weight name, on training text.

    Raises CorpusError as `windows` does.
    """
    return _means(model, corpus, tokens, lambda x_nc: x_nc.T @ x_nc)


@torch.no_grad()
def _means(
    model: GPT, corpus: Corpus, tokens: int, total: Callable[[Tensor], Tensor]
) -> dict[str, NDArray[np.float32]]:
    """Over tokens, of what `total` adds up of the inputs (tokens, columns) of each linear layer."""
    sums: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        more = total(inputs[0].flatten(0, -2))
        sums[name] = sums[name] + more if name in sums else more

    hooks = [
        module.register_forward_pre_hook(partial(add, f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    seen = 0
    try:
        for rows in windows(corpus, model.config.context, tokens):
            seen += rows[:, 1:].numel()
            model.forward(rows[:, :-1])
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (found / seen).numpy() for name, found in sums.items()}
