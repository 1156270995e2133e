"""The loss of a batch under an `AdaptConfig`: the task's own, mixed, doubled, taught or attacked.

    L = (1 - w) task + w T^2 KL(teacher, model) + alpha (KL(p, q) + KL(q, p)) / 2

The last term is R-Drop's (Liang et al., arXiv 2106.14448, equation 3) between two passes with their own
dropout; the other terms are then the means of both passes.

Shapes: b examples, C labels, t positions, V vocabulary, d width, n positions that have a target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.adapting.adversarial import ADVERSARIES, embeddings_changed, greatest_norm
from isoflop.adapting.records import AdaptConfig
from isoflop.errors import AdaptError
from isoflop.precision import Precision
from isoflop.tasks.protocol import LossOptions, Spec, Task
from isoflop.teaching.divergences import forward_kl

IGNORED = -100  # a target that does not count

Batch = dict[str, Tensor]
Teacher = Callable[[Batch], Tensor]  # logits of a batch, in the shape of the model's own
Change = Callable[[Tensor], Tensor]  # of embeddings (b, t, d)


class Mixed(NamedTuple):
    """A batch of which each example is a mixture of itself and another."""

    inputs: Batch
    targets: tuple[tuple[float, Batch], ...]  # shares, and the batch with the targets that have them
    change: Change | None  # how the embeddings are mixed; None: the inputs are already


class Objective:
    """What a step's gradients are of."""

    def __init__(
        self, task: Task, model: nn.Module, spec: Spec, config: AdaptConfig, device: torch.device,
        teacher: Teacher | None,
    ) -> None:  # fmt: skip
        _check(task, config, teacher)
        weights = label_weights(spec).to(device) if config.balanced else None
        self.task, self.model, self.config, self.teacher = task, model, config, teacher
        self.options = LossOptions(config.label_smoothing, weights)

    def gradients(self, batch: Batch, rng: np.random.Generator, precision: Precision) -> Tensor:
        """Add those of a batch; returns its loss, in nats an example."""
        mixed = (
            mix(batch, self.config.mixup, rng) if self.config.mixup else Mixed(batch, ((1.0, batch),), None)
        )

        def loss(delta: Tensor | None = None) -> Tensor:
            with precision.autocast():
                return self._loss(mixed, delta)

        if not self.config.adversarial:
            return precision.backward(loss())
        norm = greatest_norm(self.model, self.config.adversarial_size)
        return ADVERSARIES[self.config.adversarial](loss, self._where(batch), norm, precision.backward)

    def _loss(self, mixed: Mixed, delta: Tensor | None) -> Tensor:
        passes = [self._pass(mixed, delta) for _ in range(2 if self.config.r_drop else 1)]
        total = torch.stack([self._of_targets(logits, mixed) for logits in passes]).mean()
        if self.teacher is not None:
            w, temperature = self.config.teacher_weight, self.config.temperature
            with torch.no_grad():
                told = self.teacher(mixed.inputs)
            nats = [divergence(told, logits, mixed.inputs, temperature) for logits in passes]
            total = (1 - w) * total + w * temperature**2 * torch.stack(nats).mean()
        if self.config.r_drop:
            p, q = passes
            both = divergence(p, q, mixed.inputs) + divergence(q, p, mixed.inputs)
            total = total + self.config.r_drop * both / 2
        return total

    def _pass(self, mixed: Mixed, delta: Tensor | None) -> Tensor:
        if delta is None and mixed.change is None:
            return self.task.logits(self.model, mixed.inputs)

        def change(x_btd: Tensor) -> Tensor:
            moved = x_btd if delta is None else x_btd + delta
            return moved if mixed.change is None else mixed.change(moved)

        with embeddings_changed(self.model, change):
            return self.task.logits(self.model, mixed.inputs)

    def _of_targets(self, logits: Tensor, mixed: Mixed) -> Tensor:
        losses = [s * self.task.loss(logits, batch, self.options).mean() for s, batch in mixed.targets]
        return torch.stack(losses).sum()

    def _where(self, batch: Batch) -> Tensor:
        """Ones (b, t, d) where tokens are. Raises AdaptError for inputs that are none."""
        if "input_ids" not in batch:
            raise AdaptError(
                f"{self.config.adversarial} changes embeddings of tokens, and {self.task.name} reads none",
                hint="leave adversarial training out",
            )
        table: Tensor = self.model.get_input_embeddings().weight  # type: ignore[operator]
        ids = batch["input_ids"]
        mask = batch.get("attention_mask", torch.ones_like(ids))
        return mask[..., None].expand(*ids.shape, table.shape[1]).to(table.dtype)


def mix(batch: Batch, alpha: float, rng: np.random.Generator) -> Mixed:
    """Mixup: lambda of each example and 1 - lambda of another, lambda of Beta(alpha, alpha) for the batch.

    Of images the pixels are mixed (Zhang et al., arXiv 1710.09412, section 2), of texts the embeddings (Guo
    et al., arXiv 1905.08941, wordMixup). Raises AdaptError where an example has not one target.
    """
    labels = batch["labels"]
    if labels.dim() != 1 and not labels.is_floating_point():
        raise AdaptError(
            "mixup mixes targets of whole examples, and these are sequences", hint="leave it out"
        )
    if any(len(batch[name]) != len(labels) for name in ("input_ids", "pixel_values") if name in batch):
        raise AdaptError(
            "mixup mixes single inputs, and these examples are of several each: pairs or windows",
            hint="leave it out",
        )
    share = float(rng.beta(alpha, alpha))
    other = torch.from_numpy(rng.permutation(len(labels))).to(labels.device)

    def mixed(x: Tensor) -> Tensor:
        return share * x + (1 - share) * x[other]

    targets = ((share, batch), (1 - share, {**batch, "labels": labels[other]}))
    inputs = dict(batch)
    if "pixel_values" in batch:
        inputs["pixel_values"] = mixed(batch["pixel_values"])
    if "input_ids" in batch:
        inputs["attention_mask"] = batch["attention_mask"] | batch["attention_mask"][other]
    elif "pixel_values" not in batch:
        raise AdaptError("mixup mixes pixels or embeddings of tokens, and these inputs are neither",
                         hint="leave it out")  # fmt: skip
    return Mixed(inputs, targets, mixed if "input_ids" in batch else None)


def divergence(first: Tensor, second: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """KL of the second's probabilities from the first's, in nats, the mean over positions that have a target.

    Logits are (b, C) or (b, t, V).
    """
    logp, logq = ((z.float() / temperature).log_softmax(-1) for z in (first, second))
    labels = batch.get("labels")
    if labels is not None and labels.shape == logp.shape[:-1] and logp.dim() > 2:
        counted = labels != IGNORED
        logp, logq = logp[counted], logq[counted]
    nats, _ = forward_kl(logp.flatten(0, -2), logq.flatten(0, -2))
    return nats / max(1, logp.numel() // logp.shape[-1])


def label_weights(spec: Spec) -> Tensor:
    """(C,) n / (C n_c): the inverse of a label's frequency, of mean 1 over the training examples."""
    if not spec.counts:
        raise AdaptError(f"{spec.task} has no labels to balance", hint="leave balancing out")
    counts = torch.tensor(spec.counts, dtype=torch.float32).clamp(min=1)
    return counts.sum() / (len(counts) * counts)


def _check(task: Task, config: AdaptConfig, teacher: Teacher | None) -> None:
    """Raises AdaptError for what the task does not have, or what cannot be together."""
    if config.adversarial and config.adversarial not in ADVERSARIES:
        raise AdaptError(f"{config.adversarial!r} is no adversary", hint=f"one of: {', '.join(ADVERSARIES)}")
    if (config.r_drop or teacher is not None) and not task.soft:
        raise AdaptError(
            f"{task.name} predicts no categories, whose probabilities a teacher or R-Drop compares",
            hint="leave them out",
        )
    if config.mixup and teacher is not None:
        raise AdaptError("a teacher knows no mixture of embeddings", hint="leave mixup or the teacher out")
