"""An encoder that reads and a decoder that writes: transformers' T5 and its kin.

Shapes: b batch, i read, o written, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES, prefix_of
from isoflop.records import ModelConfig

KINDS = ("t5", "mt5", "umt5")  # model types whose modules have these names
START = 0  # the id before the first one written, as T5's: in tokenizers trained here the end of text
CROSS_KEYS = (".EncDecAttention.k", ".EncDecAttention.v")  # modules of the decoder that meet what was read


class EncoderDecoder(LanguageModel):
    """`net` is transformers' model."""

    transposed: tuple[Tensor, ...] = ()

    def __init__(self, config: ModelConfig, net: Any) -> None:
        super().__init__()
        self.config = config
        self.net = net

    @property
    def table(self) -> Tensor:
        out: Tensor = self.net.get_input_embeddings().weight
        return out

    @property
    def head(self) -> Tensor:
        out: Tensor = self.net.get_output_embeddings().weight
        return out

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return [*self.net.encoder.block, *self.net.decoder.block]

    def positions(self, name: str) -> int:
        """How many positions of a window the module of that name in `net` meets."""
        read, written = lengths(self.config)
        return read if name.startswith("encoder.") or name.endswith(CROSS_KEYS) else written

    def forward(self, read_bi: Tensor, targets_bo: Tensor) -> Tensor:
        """Logits (b, o, v) of each target, from what was read and the targets before it."""
        start = targets_bo.new_full((len(targets_bo), 1), START)
        written = torch.cat([start, targets_bo[:, :-1]], dim=1)
        out: Tensor = self.net(input_ids=read_bi, decoder_input_ids=written).logits
        return out

    def features(self, ids_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        raise TrainError(
            f"a model of the family {self.config.family} does not predict the next token of all text",
            hint="distil a causal model",
        )

    def loss(self, ids_bt: Tensor, targets_bt: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        read, targets = self._split(ids_bt, targets_bt)
        logits = self.forward(read, targets).flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), label_smoothing=label_smoothing)

    @torch.no_grad()
    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        read, targets = self._split(ids_bt, targets_bt)
        nats = F.cross_entropy(self.forward(read, targets).mT, targets, reduction="none")
        return F.pad(nats, (targets_bt.shape[1] - nats.shape[1], 0))

    def last_logits(self, ids_bt: Tensor) -> Tensor:
        """Logits (b, v) of what is written first when `ids_bt` was read."""
        return self.forward(ids_bt, ids_bt[:, :1])[:, -1]

    def _split(self, ids_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """What is read, and what is written: of a prefix and its rest, each once."""
        prefix = prefix_of(self.config)
        return (ids_bt[:, :prefix], targets_bt[:, prefix - 1 :]) if prefix else (ids_bt, targets_bt)


def lengths(model: ModelConfig) -> tuple[int, int]:
    """Tokens of a window that are read, and that are written."""
    objective = OBJECTIVES[model.objective]
    return prefix_of(model) or objective.lengths(model.context)[0], objective.predicted(model.context)


def mixing_flops(model: ModelConfig, config: Any) -> int:
    """Of attention in encoder and decoder, and of the decoder to the encoder."""
    return flops.crossed_attention_flops(model, config.num_decoder_layers, *lengths(model))
