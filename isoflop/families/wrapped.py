"""A model of transformers as the training loop wants it.

Shapes: b batch, t time, k predicted positions of a row, d width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.model import IGNORE, LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.records import ModelConfig


def library() -> Any:
    """Transformers, without its warnings and bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def auto_class(objective: str) -> Any:
    """Transformers' class that builds and opens models of an objective."""
    names = {"causal": "AutoModelForCausalLM", "masked": "AutoModelForMaskedLM"}
    return getattr(library(), names[OBJECTIVES[objective].test])


class Wrapped(LanguageModel):
    """`net` is transformers' model. The head works on the predicted positions only."""

    def __init__(self, config: ModelConfig, net: Any) -> None:
        super().__init__()
        self.config = config
        self.net = net

    @property
    def transposed(self) -> tuple[Tensor, ...]:
        from transformers.pytorch_utils import Conv1D

        return tuple(m.weight for m in self.net.modules() if isinstance(m, Conv1D))

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
        lists = (m for m in self.net.base_model.modules() if isinstance(m, nn.ModuleList))
        return next((list(m) for m in lists if len(m) == self.config.n_layers), [])

    def forward(self, ids_bt: Tensor) -> Tensor:
        """Logits (b, t, v)."""
        out: Tensor = self.net(input_ids=ids_bt).logits
        return out

    def loss(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        where_bk = self._predicted(targets_bt)
        logits_bkv = self._logits(ids_bt, where_bk)
        return F.cross_entropy(logits_bkv.flatten(0, 1), targets_bt.gather(1, where_bk).flatten())

    @torch.no_grad()
    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        where_bk = self._predicted(targets_bt)
        logits_bvk = self._logits(ids_bt, where_bk).mT
        nats_bk = F.cross_entropy(logits_bvk, targets_bt.gather(1, where_bk), reduction="none")
        return nats_bk.new_zeros(targets_bt.shape).scatter(1, where_bk, nats_bk)

    def last_logits(self, ids_bt: Tensor) -> Tensor:
        return self.forward(ids_bt)[:, -1]

    def _predicted(self, targets_bt: Tensor) -> Tensor:
        """Positions (b, k) whose targets count; every row has as many."""
        k = OBJECTIVES[self.config.objective].predicted(targets_bt.shape[1])
        return (targets_bt == IGNORE).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]

    def _logits(self, ids_bt: Tensor, where_bk: Tensor) -> Tensor:
        """Logits (b, k, v): between body and head, whatever their names, the other positions are dropped."""
        if where_bk.shape == ids_bt.shape:
            return self.forward(ids_bt)
        hook = self.net.base_model.register_forward_hook(partial(_keep, where_bk))
        try:
            return self.forward(ids_bt)
        finally:
            hook.remove()


def _keep(where_bk: Tensor, body: nn.Module, inputs: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state.take_along_dim(where_bk[..., None], 1)
    return output
