"""A student's hidden states against its teachers': after learned projections, layer by layer.

    mean over layers and teachers of |P h - g / rms(g)|^2 / width

h is what a layer of the student gives, g that of the teacher's layer at the same share of the depth, P a
matrix learned beside the student's weights and thrown away at the end (after Romero et al., arXiv 1412.6550,
and Jiao et al., arXiv 1909.10351). Dividing by the root mean square gives all layers one scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.model import LanguageModel

NAME = "projections"  # of the student's module that holds them


class Matching:
    """Listens to the layers of a student and its teachers; the projections become a part of the student."""

    def __init__(self, student: LanguageModel, teachers: Sequence[LanguageModel], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        layers, wide = len(student.blocks), student.config.d_model
        self.heard: list[list[Tensor]] = []  # of each model listened to, the student first
        self.pairs = [
            (number, layer, matched(layer, layers, len(teacher.blocks)))
            for number, teacher in enumerate(teachers, 1)
            for layer in range(layers)
        ]
        matrices = [nn.Linear(wide, teachers[n - 1].config.d_model, bias=False) for n, _, _ in self.pairs]
        for matrix in matrices:
            nn.init.uniform_(matrix.weight, -math.sqrt(3 / wide), math.sqrt(3 / wide), generator=generator)
        student.add_module(NAME, nn.ModuleList(matrices).to(student.head.device))
        self.matrices = matrices
        for number, model in enumerate([student, *teachers]):
            for block in model.blocks:
                block.register_forward_hook(partial(self._hear, number))

    def _hear(self, number: int, block: nn.Module, inputs: Any, output: Any) -> None:
        if self.heard:
            self.heard[number].append(output[0] if isinstance(output, tuple) else output)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """In this block what the layers give is kept: of each model one forward pass."""
        self.heard = [[] for _ in range(1 + max(number for number, _, _ in self.pairs))]
        try:
            yield
        finally:
            self.heard = []

    def loss(self) -> Tensor:
        """Of what was heard."""
        parts = []
        for (number, layer, theirs), matrix in zip(self.pairs, self.matrices, strict=True):
            wanted = self.heard[number][theirs].float()
            wanted = wanted * torch.rsqrt(wanted.square().mean(-1, keepdim=True))
            parts.append((matrix(self.heard[0][layer]).float() - wanted).square().mean())
        return torch.stack(parts).mean()


def matched(layer: int, layers: int, theirs: int) -> int:
    """The teacher's layer of `theirs` that is as deep as the student's `layer` of `layers`, from 0."""
    return max(0, (layer + 1) * theirs // layers - 1)


@contextmanager
def bare(model: LanguageModel) -> Iterator[LanguageModel]:
    """In this block a model is what will be kept of it, without projections."""
    projections = model._modules.pop(NAME, None)
    try:
        yield model
    finally:
        if projections is not None:
            model.add_module(NAME, projections)
