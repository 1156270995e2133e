"""Adversarial training on input embeddings: the loss where a small change of them makes it worst.

A change is (b, t, d), and its norm that of a whole example (t, d). Padding is never changed. The gradients of
the examples as they are count too, but for FreeLB's.

Shapes: b examples, t tokens, d width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ASCENTS = 3  # of PGD and FreeLB; assumption, theirs are 2 to 40
STRIDE = 0.5  # length of an ascent over the greatest norm; assumption
TINY = 1e-12

Loss = Callable[[Tensor], Tensor]  # of a change
Backward = Callable[[Tensor], Tensor]  # of a loss: adds its gradients, and gives it without them
Adversary = Callable[[Loss, Tensor, float, Backward], Tensor]


@contextmanager
def embeddings_changed(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """In this block, for one forward pass, the embeddings of the input are changed.

    Of an encoder with a decoder these are the encoder's, which come first.
    """
    waiting = [change]

    def apply(module: nn.Module, given: object, found: Tensor) -> Tensor:
        return waiting.pop()(found) if waiting else found

    embedding: Any = model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_hook(apply)
    try:
        yield
    finally:
        handle.remove()


def fgm(loss: Loss, where_btd: Tensor, norm: float, backward: Backward) -> Tensor:
    """One step along the gradient to the border (Miyato et al., arXiv 1605.07725, equation 6).

    As each adversary it adds gradients by `backward` and returns the loss of the examples as they are; a
    change is only where `where` is one.
    """
    change = torch.zeros_like(where_btd).requires_grad_()
    plain = backward(loss(change))
    assert change.grad is not None
    backward(loss(_of_norm(change.grad * where_btd, norm)))
    return plain


def pgd(loss: Loss, where_btd: Tensor, norm: float, backward: Backward) -> Tensor:
    """Several steps within the ball, and the gradients where they end (Madry et al., arXiv 1706.06083, 2.1)."""
    change = torch.zeros_like(where_btd).requires_grad_()
    plain = backward(loss(change))
    grad = change.grad
    for ascent in range(ASCENTS):
        if ascent:
            (grad,) = torch.autograd.grad(loss(change), change)
        assert grad is not None
        change = _climbed(change, grad * where_btd, norm)
    backward(loss(change.detach()))
    return plain


def freelb(loss: Loss, where_btd: Tensor, norm: float, backward: Backward) -> Tensor:
    """The mean of the gradients on a way up from a random start (Zhu et al., arXiv 1909.11764, algorithm 1).

    The loss that it returns is that at the start.
    """
    elements = where_btd.sum((1, 2), keepdim=True)
    start = (2 * torch.rand_like(where_btd) - 1) * where_btd * norm / elements.sqrt()
    change, first = start.requires_grad_(), None
    for _ in range(ASCENTS):
        found = backward(loss(change) / ASCENTS)
        first = found * ASCENTS if first is None else first
        assert change.grad is not None
        change = _climbed(change, change.grad * where_btd, norm)
    assert first is not None
    return first


ADVERSARIES: Mapping[str, Adversary] = {"fgm": fgm, "pgd": pgd, "freelb": freelb}


def greatest_norm(model: nn.Module, size: float) -> float:
    """`size` times the mean norm of a row of the embedding table."""
    table: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return size * float(table.detach().norm(dim=1).mean())


def _of_norm(x_btd: Tensor, norm: float) -> Tensor:
    """Of each example; one without a direction stays zero."""
    length_b: Tensor = x_btd.flatten(1).norm(dim=1)
    return x_btd * (norm / (length_b + TINY))[:, None, None]


def _climbed(change_btd: Tensor, grad_btd: Tensor, norm: float) -> Tensor:
    """One stride up, and back into the ball."""
    moved = change_btd.detach() + _of_norm(grad_btd, STRIDE * norm)
    length_b: Tensor = moved.flatten(1).norm(dim=1)
    return (moved * (norm / (length_b + TINY)).clamp(max=1.0)[:, None, None]).requires_grad_()
