"""How firmly examples hold each weight of an adapted model: the diagonal of its Fisher information.

The information is of labels as the model gives them, and not as the data have them (the empirical one): of a
model that has learned its examples with probability p, p (1 - p) and not (1 - p)^2 is the curvature of the
loss, and the latter is next to nothing (Kunstner, Hennig and Balles, arXiv 1905.12558, section 3).

Shapes: b examples, C categories, t positions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from isoflop.adapting.batches import Batch, Rows
from isoflop.adapting.inputs import some
from isoflop.devices import device_for
from isoflop.errors import AdaptError
from isoflop.tasks.protocol import Base, LossOptions, Spec, Task

if TYPE_CHECKING:
    from datasets import Dataset

EXAMPLES = 256  # of a task, from which its information is measured


def fisher_information(
    task: Task, base: Base, spec: Spec, model: nn.Module, rows: Dataset, *,
    examples: int = EXAMPLES, seed: int = 0,
) -> dict[str, Tensor]:  # fmt: skip
    """Of one example, by name of what is trained: the mean over examples of diag(J^T H J).

    J are the derivatives of the logits, H the second ones of the example's loss in nats by them. The diagonal
    is the mean of (J^T v)^2 over normal v of covariance H, of which one is drawn an example: right on
    average, and never as rare as a wrong label is.

    Raises AdaptError for a task whose loss compares examples or vectors.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p) for name, p in trained.items()}
    model.eval()
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        torch.manual_seed(seed)
        encoded = Rows(task, base, spec, some(rows, examples, seed), Path(folder), "fisher")
        for number in range(len(encoded)):
            batch = encoded.collated(encoded.features_of([number]))
            batch = {name: value.to(device_for()) for name, value in batch.items()}
            logits = task.logits(model, batch)
            grads = torch.autograd.grad(
                logits, list(trained.values()), drawn(task, logits, batch), allow_unused=True
            )
            for total, grad in zip(sums.values(), grads, strict=True):
                if grad is not None:
                    total += grad.square()
    return {name: total / len(encoded) for name, total in sums.items()}


def drawn(task: Task, logits: Tensor, batch: Batch) -> Tensor:
    """Normal, in the shape of one example's logits, with the second derivatives of its loss as covariance.

    Of categories they are (diag(p) - p p^T) / targets at each target, of numbers and of labels that do not
    exclude one another a diagonal. Raises AdaptError for other losses.
    """
    if task.soft:
        counted = batch["labels"] >= 0
        p = logits.detach().float().softmax(-1)
        noise = p.sqrt() * torch.randn_like(p)
        v = (noise - p * noise.sum(-1, keepdim=True)) * counted[..., None]
        return (v / counted.sum().clamp(min=1).sqrt()).to(logits.dtype)
    if logits.dim() > 2:
        raise AdaptError(
            f"{task.name} compares texts, and elastic weight consolidation knows labels and numbers",
            hint="give --replay instead of --ewc",
        )
    z = logits.detach().requires_grad_()
    (slope,) = torch.autograd.grad(task.loss(z, batch, LossOptions()).sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    return curvature.clamp(min=0).sqrt() * torch.randn_like(z)
