"""What a student is to learn: how far it is from its teacher, beside the text's own tokens.

    lambda T^2 D(p, q) + (1 - lambda) cross-entropy

p are the teacher's probabilities and q the student's, both at temperature T, and D is a divergence; T^2 keeps
the gradients' size whatever T (Hinton et al., arXiv 1503.02531, section 2).

Shapes: n positions, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# Of log p and log q (n, v): the sum of D over n, and its gradient (n, v) by q's logits.
Divergence = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]


def forward_kl(logp_nv: Tensor, logq_nv: Tensor) -> tuple[Tensor, Tensor]:
    """sum p log(p / q): the student covers all that the teacher thinks possible."""
    p = logp_nv.exp()
    return (p * (logp_nv - logq_nv)).sum(), logq_nv.exp().sub_(p)


def reverse_kl(logp_nv: Tensor, logq_nv: Tensor) -> tuple[Tensor, Tensor]:
    """sum q log(q / p): it keeps to what the teacher thinks likely (Gu et al., arXiv 2306.08543)."""
    q, ratio = logq_nv.exp(), logq_nv - logp_nv
    nats = (q * ratio).sum(1, keepdim=True)
    return nats.sum(), q * (ratio - nats)


def jensen_shannon(logp_nv: Tensor, logq_nv: Tensor) -> tuple[Tensor, Tensor]:
    """(KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2: symmetric, at most log 2."""
    logm = logp_nv.logaddexp(logq_nv).sub_(math.log(2))
    q, ratio = logq_nv.exp(), logq_nv - logm
    nats = (q * ratio).sum(1, keepdim=True)
    return ((logp_nv.exp() * (logp_nv - logm)).sum() + nats.sum()) / 2, q * (ratio - nats) / 2


DIVERGENCES: Mapping[str, Divergence] = {
    "forward-kl": forward_kl, "reverse-kl": reverse_kl, "jensen-shannon": jensen_shannon,
}  # fmt: skip


class Lesson(NamedTuple):
    """How the teachers count."""

    weight: float = 0.9  # lambda
    temperature: float = 1.0
    divergence: str = "forward-kl"  # of DIVERGENCES
    topk: int = 0  # of the teachers' likeliest tokens so many are told apart; 0: all
    features: float = 0.0  # weight of their hidden states (`features.Matching`)
    noise: float = 0.0  # share of the input tokens replaced, for student and teachers alike

    def __call__(self, z_nv: Tensor, logp_nv: Tensor, y_n: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the loss over n, and its gradient (n, v) by the logits z; log p is at the temperature."""
        log1 = z_nv.log_softmax(1)
        logq = log1 if self.temperature == 1 else (z_nv / self.temperature).log_softmax(1)
        nats, grad = DIVERGENCES[self.divergence](logp_nv, logq)
        y, plain = y_n[:, None], 1 - self.weight
        total = self.weight * self.temperature**2 * nats - plain * log1.gather(1, y).sum()
        grad.mul_(self.weight * self.temperature)  # T^2, and 1/T of z / T
        if plain:
            grad.add_(log1.exp_(), alpha=plain)
            grad.scatter_add_(1, y, grad.new_full((1, 1), -plain).expand_as(y))
        return total, grad
