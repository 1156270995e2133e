"""Training that starts from a model folder: its weights, old text against forgetting, and what was forgotten.

The optimizer starts anew, and the rate is warmed up and cooled down again (Ibrahim et al., arXiv 2403.08763).
Against forgetting there are old text in each batch, replay, and elastic weight consolidation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from isoflop import checkpoint
from isoflop.corpus import load_corpus
from isoflop.devices import agreed, device_for, rank
from isoflop.errors import CorruptError, TrainError
from isoflop.evaluate import mean_se, window_losses
from isoflop.export import load_pretrained
from isoflop.model import LanguageModel
from isoflop.progress import Progress
from isoflop.records import Corpus, Forgetting, RunConfig
from isoflop.store import HASH_DIGITS, content_hash

if TYPE_CHECKING:
    from isoflop.trainer import Batches

FINEST_SHARE = 1000  # shares of old text are fractions with this denominator at most

Examples = Callable[[Tensor, Corpus, tuple[int, ...]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Past:
    """Where a run finds what its configuration names by hash; crosses into its processes."""

    model: Path | None = None  # the folder of `RunConfig.initial`
    old: Path | None = None  # the folder of the corpus `RunConfig.old`
    fisher: Path | None = None  # where the run keeps its Fisher information
    teachers: tuple[Path, ...] = ()  # the folders of `RunConfig.teachers`, then of those of its tasks
    tasks: tuple[Path, ...] = ()  # the folders of the corpora of `RunConfig.tasks`
    answers: Path | None = None  # where their likeliest tokens are kept (`teaching.topk.Memory`)
    answers_bytes: float = 0.0  # of each of their files, at most


def old_corpus(config: RunConfig, past: Past | None) -> Corpus:
    """What the model has learned before.

    Raises TrainError when nobody says where it is, CorruptError when it is another one.
    """
    if past is None or past.old is None:
        raise TrainError(
            "replay and elastic weight consolidation need a model that goes on, and its old text",
            hint="train it with: isoflop train --from FOLDER --old PROJECT",
        )
    return _verified(config.old, past.old)


def task_corpora(config: RunConfig, past: Past | None) -> list[Corpus]:
    """The texts of `RunConfig.tasks`.

    Raises TrainError when nobody says where they are, CorruptError when one is another.
    """
    folders = () if past is None else past.tasks
    if len(folders) != len(config.tasks):
        raise TrainError(
            f"this run learns {len(config.tasks)} further tasks, and the text of {len(folders)} is given",
            hint="train it with: isoflop distill TEACHER --task PROJECT=TEACHER:SHARE",
        )
    return [_verified(task.corpus, folder) for task, folder in zip(config.tasks, folders, strict=True)]


def _verified(id: str, folder: Path) -> Corpus:
    corpus = load_corpus(folder, verify=True)
    if corpus.id != id:
        raise CorruptError(
            f"the corpus in {folder} is {corpus.id}, and the run began with {id}",
            hint="give the corpus that it began with",
        )
    return corpus


def initial_model(config: RunConfig, past: Past | None) -> LanguageModel:
    """The model whose training goes on, in evaluation mode: without dropout, whatever its folder says.

    Raises TrainError when nobody says where it is, CorruptError when it is another one.
    """
    if past is None or past.model is None:
        raise TrainError(
            f"this run goes on from the model folder with hash {config.initial}, which is not given",
            hint="train it with: isoflop train --from FOLDER",
        )
    found = content_hash(past.model)[:HASH_DIGITS]
    if found != config.initial:
        raise CorruptError(
            f"the content of {past.model} has the hash {found}, and the run began with {config.initial}",
            hint="restore the folder, or start another run from it",
        )
    model = load_pretrained(past.model)
    model.config = config.model
    return model


class Mixed:
    """Batches of new text with an exact share of old: of all rows ever, row g is old when g's share is full.

    Of the first g rows floor(share * g) are old, whatever the batch; either text is read in its own order.
    The old text may be a mixture itself.
    """

    def __init__(self, new: Batches, old: Batches | Mixed, share: float) -> None:
        self.new, self.old = new, old
        self.share = Fraction(share).limit_denominator(FINEST_SHARE)
        self.mine, self.rows = new.mine, new.rows

    def __call__(self, step: int) -> Tensor:
        """Token ids (rows, context + 1) of batch `step`."""
        return torch.from_numpy(np.stack([self.row(step * self.rows + r) for r in range(self.rows)]))

    def row(self, position: int) -> NDArray[np.int64]:
        """Token ids (context + 1) of a row, counted from the first batch on."""
        old = math.floor(position * self.share)
        if math.floor((position + 1) * self.share) > old:
            return self.old.row(old)
        return self.new.row(position - old)

    def source(self, position: int) -> int:
        """Number of the text that a row is of: the new one is 0, and those of the old follow."""
        old = math.floor(position * self.share)
        return 1 + self.old.source(old) if math.floor((position + 1) * self.share) > old else 0

    def unique_tokens(self, tokens: int) -> int:
        """How many different tokens a run of `tokens` sees."""
        old = math.floor(tokens * self.share)
        return self.old.unique_tokens(old) + self.new.unique_tokens(tokens - old)


def mixture(first: Batches, others: Sequence[tuple[Batches, float]]) -> Batches | Mixed:
    """Batches with these shares of other texts, by `source` from 1 on."""
    if not others:
        return first
    (_, share), rest = others[0], others[1:]
    whole = share + sum(s for _, s in rest)
    return Mixed(first, mixture(others[0][0], [(text, s / whole) for text, s in rest]), whole)


class Consolidation:
    """Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796, equation 3).

    The penalty, in nats a token (or an example), is strength / 2 * sum of F_i (theta_i - theta*_i)^2, where
    theta* are the weights at the start and F the diagonal of the Fisher information of one old token (or
    example), of the weights that it names. A strength of n weighs the new text's tokens as if there were n
    times as many old ones.
    """

    def __init__(self, model: nn.Module, fisher: dict[str, Tensor], strength: float) -> None:
        self.strength = strength
        named = [(name, p) for name, p in model.named_parameters() if name in fisher]
        self.weights = [p for _, p in named]
        self.fisher = [fisher[name].to(p) for name, p in named]
        self.start = [p.detach().clone() for p in self.weights]

    @torch.no_grad()
    def add_gradients(self, weight: float = 1.0) -> None:
        """Add the penalty's gradients, weight * strength * F_i (theta_i - theta*_i), to those of the loss."""
        for f, p, q in zip(self.fisher, self.weights, self.start, strict=True):
            if p.grad is not None:
                p.grad.addcmul_(f, p - q, value=weight * self.strength)


def consolidation(
    model: LanguageModel, config: RunConfig, past: Past | None, text: Batches, corpus: Corpus,
    examples: Examples, progress: Progress,
) -> Consolidation:  # fmt: skip
    """The penalty of a run; the first of its processes measures the Fisher information, once, for all."""
    assert past is not None
    assert past.fisher is not None
    saved = checkpoint.load(past.fisher, progress)
    if saved is None and rank() == 0:
        past.fisher.mkdir(parents=True, exist_ok=True)
        progress.log(f"measuring the Fisher information on {config.ewc_tokens:,} tokens of old text")
        found = fisher_information(model, config, text, corpus, examples)
        checkpoint.save(past.fisher, found, 0)
    agreed(0)  # the others wait
    saved = checkpoint.load(past.fisher, progress)
    assert saved is not None
    return Consolidation(model, saved, config.ewc)


def fisher_information(
    model: LanguageModel, config: RunConfig, text: Batches, corpus: Corpus, examples: Examples
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information a predicted token, by name, on `ewc_tokens` of old text.

    That of the text itself (the empirical one): the mean over windows of the squared gradient of a window's
    summed loss, divided by its tokens, whose gradients are uncorrelated under the model.
    """
    windows = max(1, config.ewc_tokens // config.model.context)
    sums = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    predicted = 0
    for i in range(windows):
        window = torch.from_numpy(text.row(i))[None]
        inputs, targets = examples(window, corpus, (config.seed, i))
        count = int((targets >= 0).sum())
        model.zero_grad()
        loss = model.loss(inputs.to(device_for()), targets.to(device_for()))
        (loss * count).backward()  # type: ignore[no-untyped-call]
        for name, p in model.named_parameters():
            if p.grad is not None:
                sums[name] += p.grad.square()
        predicted += count
    model.zero_grad()
    return {name: total / predicted for name, total in sums.items()}


def forgetting(model: LanguageModel, config: RunConfig, past: Past) -> Forgetting:
    """Held-out loss on the old corpus before and after, window by window."""
    corpus = old_corpus(config, past)
    first = initial_model(config, past).to(next(model.parameters()).device)
    before, after = (window_losses(m, corpus, eval_tokens=config.eval_tokens) for m in (first, model))
    more = after - before
    return Forgetting(
        corpus_id=corpus.id,
        before=float(before.mean()),
        after=float(after.mean()),
        nats=float(more.mean()),
        nats_se=mean_se(more),
        windows=len(more),
    )
