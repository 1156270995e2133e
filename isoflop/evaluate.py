"""What a model is worth on held-out text: loss and bits per byte with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from isoflop.corpus import heldout_tokens, token_bytes
from isoflop.devices import rank, summed, world
from isoflop.engines import Engine
from isoflop.errors import CorpusError
from isoflop.families.wrapped import Wrapped
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES, Objective
from isoflop.objectives.masked import MaskedNext
from isoflop.records import Corpus

EVAL_BATCH_TOKENS = 4096
MASK_SEED = 0  # of the held-out tokens that masked models predict


@dataclass(frozen=True)
class HeldOut:
    """Held-out scores; standard errors are over windows, the unit that is sampled."""

    loss: float  # nats a predicted token
    loss_se: float
    bpb: float | None  # bits per byte; None where losses do not add up to a text's length
    bpb_se: float | None
    tokens: int  # read
    predicted: int  # of them
    bytes: int
    windows: tuple[float, ...] = field(repr=False)  # loss of each: models of one context pair by them
    next_accuracy: float | None = None  # share of pairs told apart, half is chance; of `masked-next` alone
    next_accuracy_se: float | None = None


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


def heldout(model: LanguageModel, corpus: Corpus, *, eval_tokens: int, shared: bool = False) -> HeldOut:
    """Score `model` on the fixed held-out sample, each token seeing only its own window, without dropout.

    With `shared`, for which all ranks of a run must come here, each scores its share of the batches.

    bpb = sum of nats / (ln 2 * sum of UTF-8 bytes of the predicted tokens). A masked model predicts the same
    masked tokens every time, and has no bits per byte: its predictions are not the factors of a text's
    probability. Nor are those of missing spans, or of the rest of a text given its prefix. A model that has
    learned whether one stretch follows another is asked it of a pair for each window.
    """
    context = model.config.context
    objective = OBJECTIVES[OBJECTIVES[model.config.objective].test]
    windows = heldout_windows(corpus, context, eval_tokens)
    scores = _scored(_window_nats(model, corpus, windows, shared=shared), windows, corpus, objective)
    told, told_se = _told_apart(model, corpus, windows, shared=shared) or (None, None)
    return replace(scores, next_accuracy=told, next_accuracy_se=told_se)


def heldout_of(engine: Engine, corpus: Corpus, *, eval_tokens: int) -> HeldOut:
    """The same of a causal model in the engine that serves it, from the logits that it gives."""
    windows = heldout_windows(corpus, engine.context, eval_tokens)
    nats = np.empty(len(windows))
    for i, row in enumerate(windows):
        engine.reset()
        logits = torch.from_numpy(engine.feed(row[:-1].tolist(), every=True)).double()
        nats[i] = F.cross_entropy(logits, row[1:], reduction="sum")
    return _scored(nats, windows, corpus, OBJECTIVES["causal"])


def _scored(nats: NDArray[np.float64], windows: Tensor, corpus: Corpus, objective: Objective) -> HeldOut:
    """Scores of windows (windows, context + 1) with these losses."""
    n, context = len(nats), windows.shape[1] - 1
    size, per_window = token_bytes(corpus)[windows[:, 1:].numpy()].sum(1), objective.predicted(context)
    bpb, bpb_se = _bits_per_byte(nats, size) if objective.compresses else (None, None)
    return HeldOut(
        loss=float(nats.mean() / per_window),
        loss_se=mean_se(nats / per_window),
        bpb=bpb,
        bpb_se=bpb_se,
        tokens=n * context,
        predicted=n * per_window,
        bytes=int(size.sum()),
        windows=tuple((nats / per_window).tolist()),
    )


def window_losses(model: LanguageModel, corpus: Corpus, *, eval_tokens: int) -> NDArray[np.float64]:
    """Held-out loss of each window of the fixed sample, in nats a predicted token."""
    context = model.config.context
    windows = heldout_windows(corpus, context, eval_tokens)
    return _window_nats(model, corpus, windows) / OBJECTIVES[model.config.objective].predicted(context)


def _window_nats(
    model: LanguageModel, corpus: Corpus, windows: Tensor, *, shared: bool = False
) -> NDArray[np.float64]:
    """Sum of the losses of each window, without dropout."""
    objective = OBJECTIVES[OBJECTIVES[model.config.objective].test]

    def nats(inputs: Tensor, targets: Tensor) -> Tensor:
        return model.token_losses(inputs, targets).double().sum(1)

    return _measured(model, objective.examples(windows, corpus, (MASK_SEED,)), nats, shared=shared)


def _told_apart(
    model: LanguageModel, corpus: Corpus, windows: Tensor, *, shared: bool
) -> tuple[float, float] | None:
    """Share of pairs of held-out stretches whose relation the model tells, and its standard error.

    Masked as in training; the stretches from elsewhere are held-out text as well, for of a text that the
    model was trained on it could know the words. None for a model that has not learned it.
    """
    objective = OBJECTIVES[model.config.objective]
    if not (isinstance(objective, MaskedNext) and isinstance(model, Wrapped)):
        return None

    def right(inputs: Tensor, targets: Tensor) -> Tensor:
        return (model.relation_logits(inputs).argmax(1) == targets[:, -1]).double()

    pairs = objective.pairs(windows, corpus, (MASK_SEED,), heldout_tokens(corpus))
    right_n = _measured(model, pairs, right, shared=shared)
    return float(right_n.mean()), mean_se(right_n)


@torch.no_grad()
def _measured(
    model: LanguageModel, examples: tuple[Tensor, Tensor], measure: Callable[[Tensor, Tensor], Tensor], *,
    shared: bool,
) -> NDArray[np.float64]:  # fmt: skip
    """What `measure` says of the inputs and targets of each window, without dropout."""
    device, windows = next(model.parameters()).device, len(examples[0])
    rows = max(1, EVAL_BATCH_TOKENS // model.config.context)
    batches = list(zip(*(torch.split(part, rows) for part in examples), strict=True))
    first, step = (rank(), world()) if shared else (0, 1)
    found_n = torch.zeros(windows, dtype=torch.float64)
    trains = model.training
    model.eval()
    for turn in range(0, len(batches), step):  # sharded ranks compute at the same times or not at all
        i = min(turn + first, len(batches) - 1)
        inputs, targets = batches[i]
        found = measure(inputs.to(device), targets.to(device)).cpu()
        if turn + first == i:
            found_n[i * rows :][: len(found)] = found
    model.train(trains)
    return (summed(found_n) if shared else found_n).numpy()


def mean_se(values: NDArray[np.float64]) -> float:
    """Standard error of the mean; nan of a single value."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def _bits_per_byte(nats: NDArray[np.float64], size: NDArray[np.int64]) -> tuple[float, float]:
    """A ratio of window sums, and its standard error by the linearised (delta) method."""
    value = nats.sum() / size.sum() / math.log(2)
    residual = nats / math.log(2) - value * size
    n = len(nats)
    return float(value), float(residual.std(ddof=1) / size.mean() / math.sqrt(n)) if n > 1 else math.nan
