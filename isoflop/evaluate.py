"""What a model is worth on held-out text: loss and bits per byte with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isoflop.corpus import heldout_tokens, token_bytes
from isoflop.errors import CorpusError
from isoflop.gpt import GPT
from isoflop.records import Corpus

EVAL_BATCH_TOKENS = 4096


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores; standard errors are over windows, the unit that is sampled."""

    loss: float  # nats a token
    loss_se: float
    bpb: float  # bits per byte
    bpb_se: float
    tokens: int
    bytes: int


def heldout_windows(corpus: Corpus, context: int, eval_tokens: int) -> Tensor:
    """The fixed sample (windows, context + 1): windows evenly spread over the held-out file."""
    tokens = heldout_tokens(corpus)
    available = (len(tokens) - 1) // context
    if available < 1:
        raise CorpusError(
            f"the held-out part of corpus {corpus.id} has {len(tokens)} tokens, "
            f"less than one window of {context}",
            hint="add text, or raise the held-out share with --heldout",
        )
    count = max(1, min(available, eval_tokens // context))
    starts = np.linspace(0, available - 1, count).round().astype(np.int64) * context
    rows = np.stack([tokens[s : s + context + 1] for s in starts]).astype(np.int64)
    return torch.from_numpy(rows)


@torch.no_grad()
def heldout(model: GPT, corpus: Corpus, *, eval_tokens: int) -> HeldOut:
    """Score `model` on the fixed held-out sample, each token seeing only its own window.

    bpb = sum of nats / (ln 2 * sum of UTF-8 bytes of the predicted tokens); a ratio of window sums,
    its standard error by the linearised (delta) method.
    """
    device = model.lm_head.weight.device
    windows = heldout_windows(corpus, model.config.context, eval_tokens)
    rows = max(1, EVAL_BATCH_TOKENS // model.config.context)
    nats = torch.cat(
        [
            model.token_losses(w[:, :-1], w[:, 1:]).double().sum(1).cpu()
            for w in torch.split(windows.to(device), rows)
        ]
    ).numpy()
    size = token_bytes(corpus)[windows[:, 1:].numpy()].sum(1)
    n, per_window = len(nats), windows.shape[1] - 1
    bits_per_byte = nats.sum() / size.sum() / math.log(2)
    residual = nats / math.log(2) - bits_per_byte * size
    root = math.sqrt(n) if n > 1 else math.inf
    return HeldOut(
        loss=float(nats.mean() / per_window),
        loss_se=float(nats.std(ddof=1) / per_window / root) if n > 1 else math.nan,
        bpb=float(bits_per_byte),
        bpb_se=float(residual.std(ddof=1) / size.mean() / root) if n > 1 else math.nan,
        tokens=n * per_window,
        bytes=int(size.sum()),
    )
