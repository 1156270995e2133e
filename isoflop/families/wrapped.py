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
from isoflop.objectives import OBJECTIVES, prefix_mask, prefix_of
from isoflop.records import ModelConfig

ONCE = ("pooler", "seq_relationship")  # modules that meet one position of a window


def library() -> Any:
    """Transformers, without its warnings and bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


class Wrapped(LanguageModel):
    """`net` is transformers' decoder or encoder. The head works on the predicted positions only."""

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

    def positions(self, name: str) -> int:
        """How many positions of a window the module of that name in `net` meets."""
        if any(part in ONCE for part in name.split(".")):
            return 1
        body = name.startswith(f"{self.net.base_model_prefix}.")
        t = self.config.context
        return t if body else OBJECTIVES[self.config.objective].predicted(t)

    def forward(self, ids_bt: Tensor) -> Tensor:
        """Logits (b, t, v)."""
        return _logits(self._output(ids_bt))

    def features(self, ids_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        where_bk = self._predicted(ids_bt, targets_bt)
        hidden_btd: Tensor = self.net.base_model(input_ids=ids_bt).last_hidden_state
        return (
            hidden_btd.take_along_dim(where_bk[..., None], 1).flatten(0, 1),
            targets_bt.gather(1, where_bk).flatten(),
        )

    def loss(self, ids_bt: Tensor, targets_bt: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean over predicted positions; of pairs also the relation's, both added up as BERT's are."""
        where_bk = self._predicted(ids_bt, targets_bt)
        pairs = targets_bt.shape[1] > ids_bt.shape[1]
        output = self._output(ids_bt, where_bk, pairs=pairs)
        logits, targets = _logits(output).flatten(0, 1), targets_bt.gather(1, where_bk).flatten()
        nats = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        return nats + F.cross_entropy(output.seq_relationship_logits, targets_bt[:, -1]) if pairs else nats

    @torch.no_grad()
    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        where_bk = self._predicted(ids_bt, targets_bt)
        logits_bvk = _logits(self._output(ids_bt, where_bk)).mT
        nats_bk = F.cross_entropy(logits_bvk, targets_bt.gather(1, where_bk), reduction="none")
        return nats_bk.new_zeros(targets_bt.shape).scatter(1, where_bk, nats_bk)

    @torch.no_grad()
    def relation_logits(self, ids_bt: Tensor) -> Tensor:
        """Logits (b, 2) of what the second stretch of each pair is: NEXT or RANDOM."""
        first = ids_bt.new_zeros(len(ids_bt), 1)  # all that the other head then works on
        out: Tensor = self._output(ids_bt, first, pairs=True).seq_relationship_logits
        return out

    def last_logits(self, ids_bt: Tensor) -> Tensor:
        return self.forward(ids_bt)[:, -1]

    def _predicted(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Positions (b, k) whose targets count; every row has as many."""
        t = ids_bt.shape[1]
        k = OBJECTIVES[self.config.objective].predicted(t)
        return (targets_bt[:, :t] == IGNORE).to(torch.uint8).argsort(dim=1, stable=True)[:, :k]

    def _output(self, ids_bt: Tensor, where_bk: Tensor | None = None, *, pairs: bool = False) -> Any:
        """Of `net`: between body and head, whatever their names, positions not in `where_bk` are dropped."""
        extras: dict[str, Tensor] = {}
        if pairs:  # both stretches of each row end with the same token
            ends = ids_bt == ids_bt[:, -1:]
            extras["token_type_ids"] = (ends.cumsum(1) > ends.long()).long()
        if prefix := prefix_of(self.config):
            seen_tt = prefix_mask(ids_bt.shape[1], prefix, ids_bt.device)
            hidden = torch.zeros(1, 1, *seen_tt.shape, dtype=self.head.dtype, device=ids_bt.device)
            extras["attention_mask"] = hidden.masked_fill(~seen_tt, torch.finfo(hidden.dtype).min)
        if where_bk is None or where_bk.shape == ids_bt.shape:
            return self.net(input_ids=ids_bt, **extras)
        hook = self.net.base_model.register_forward_hook(partial(_keep, where_bk))
        try:
            return self.net(input_ids=ids_bt, **extras)
        finally:
            hook.remove()


def _logits(output: Any) -> Tensor:
    """Of tokens; models with a second head call them otherwise."""
    logits: Tensor = output["prediction_logits" if "prediction_logits" in output else "logits"]
    return logits


def _keep(where_bk: Tensor, body: nn.Module, inputs: Any, output: Any) -> Any:
    output.last_hidden_state = output.last_hidden_state.take_along_dim(where_bk[..., None], 1)
    return output
