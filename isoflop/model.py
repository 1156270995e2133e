"""What the one training loop asks of a language model, whatever its architecture.

Shapes: b batch, t time, n predicted positions, d width, v vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from isoflop.records import ModelConfig

IGNORE = -100  # the target of a position that is not predicted; all rows have as many of them


class LanguageModel(nn.Module, ABC):
    """Token ids in, cross-entropies of the targets out."""

    config: ModelConfig

    @property
    def transposed(self) -> tuple[Tensor, ...]:
        """Matrices kept as (in, out), not (out, in)."""
        return ()

    @property
    @abstractmethod
    def table(self) -> Tensor:
        """The input embedding (v, d)."""

    @property
    @abstractmethod
    def head(self) -> Tensor:
        """The output head (v, d); the same parameter as the table where they are tied."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers, which are compiled and sharded one by one."""

    @abstractmethod
    def features(self, ids_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Last hidden states (n, d) of the predicted positions, row by row, and their targets (n,).

        Times the head they are the logits, in architectures that do nothing else to them. Raises TrainError
        for those that read one text and write another.
        """

    @abstractmethod
    def loss(self, ids_bt: Tensor, targets_bt: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy of the predicted positions, in nats a token.

        With `label_smoothing` s, against targets of which a share s is spread evenly over the vocabulary
        (Szegedy et al., arXiv 1512.00567, section 7).
        """

    @abstractmethod
    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Cross-entropy (b, t) of each target in nats, without gradients; 0 where nothing is predicted."""

    @abstractmethod
    def last_logits(self, ids_bt: Tensor) -> Tensor:
        """Logits (b, v) at the last position."""
