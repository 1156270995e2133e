"""A causal model of transformers in torch, in float32: what other engines are compared with.

Keys and values are written into memory that is there already, and what requests begin with alike stays in it.

Shapes: b 1, h heads, t time, d head's width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from isoflop.engines import check_room
from isoflop.engines.folder import opened
from isoflop.errors import ProjectError

LEAST = 256  # positions that a layer has room for; each time that they are too few, twice as many


class InPlace(DynamicLayer):  # type: ignore[misc]
    """A layer's keys and values (b, h, t, d): the first part of a larger tensor, not a new one each time."""

    keys: Tensor
    values: Tensor
    is_initialized: bool

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.room = [_roomy(x[:, :, :0], LEAST) for x in (key_states, value_states)]
            self.keys, self.values = (x[:, :, :0] for x in self.room)
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self.room[0].shape[2]:
            size = max(end, 2 * self.room[0].shape[2])
            self.room = [_roomy(x, size) for x in (self.keys, self.values)]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        self.keys, self.values = (x[:, :, :end] for x in self.room)
        return self.keys, self.values


def _roomy(filled: Tensor, size: int) -> Tensor:
    """More positions, of which the first are these."""
    b, h, t, d = filled.shape
    made = filled.new_empty(b, h, size, d)
    made[:, :, :t] = filled
    return made


class TorchLM:
    """A model folder, opened as `isoflop.engines.folder` does.

    Raises ProjectError for a model that does not write text token by token, CorruptError when transformers
    cannot open it.
    """

    def __init__(self, path: Path, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model, _ = opened(path)
        config = self._model.config
        self.vocab_size = int(config.vocab_size)
        self.context = int(config.max_position_embeddings)
        self._cache: Any = None
        self.reset()
        try:
            self.feed([0], every=False)
        except (AttributeError, TypeError, ValueError, NotImplementedError):  # as a model has another cache
            self._cache = None
        if self._cache is None or self._cache.get_seq_length() != 1:
            raise ProjectError(
                f"{path} keeps no keys and values, and only a causal model that does is served here",
                hint="name another model, or serve this one elsewhere and give its URL",
            )
        self.reset()

    @torch.inference_mode()
    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        """Logits (t, v), or (1, v) after the last of them. Raises ProjectError when the context is full."""
        check_room(self._cache.get_seq_length() + len(ids), self.context)
        out = self._model(
            torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True,
            logits_to_keep=0 if every else 1,
        )  # fmt: skip
        logits: NDArray[np.float32] = out.logits[0].float().numpy()
        return logits

    def rewind(self, tokens: int) -> None:
        """Forget all but so many of the first tokens."""
        self._cache.crop(tokens - self._cache.get_seq_length())

    def reset(self) -> None:
        self._cache = Cache(layer_class_to_replicate=InPlace)

    def close(self) -> None:
        self._model = self._cache = None
