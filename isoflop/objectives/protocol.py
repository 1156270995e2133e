"""What every objective is asked."""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor

from isoflop.records import Corpus

DECODER, ENCODER, BOTH = "decoder", "encoder", "encoder-decoder"  # architectures


class Objective(Protocol):
    """From windows to inputs and targets, IGNORE where nothing is predicted.

    Every window gives as many of each: `lengths` says how many. Where they are as many as the window has
    tokens, a target belongs to the input at its place.
    """

    test: ClassVar[str]  # the objective by which held-out text is scored
    learners: ClassVar[tuple[str, ...]]  # the architectures that can learn it
    special: ClassVar[tuple[str, ...]]  # names of the tokens that it needs besides the corpus's
    compresses: ClassVar[bool]  # whether losses add up to a text's length in nats: it has bits per byte

    def lengths(self, context: int) -> tuple[int, int]:
        """Widths of inputs and targets of one window of `context` tokens."""

    def predicted(self, context: int) -> int:
        """How many tokens of a window are predicted."""

    def examples(self, windows_bu: Tensor, corpus: Corpus, key: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Inputs and targets; what is random is a function of `key` alone."""
