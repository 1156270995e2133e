"""transformers: a model folder as everybody opens it, with its own key/value cache; also in torch's int8.

What compressed-tensors has packed for GPUs becomes float32 here, so it is no faster than it was.

Shapes: t time, v vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isoflop.engines import COMPRESSED, TORCH, check_room, packed_by
from isoflop.errors import CorruptError, ProjectError
from isoflop.export.compressed import load_compressed
from isoflop.export.torch_int8 import load_torch
from isoflop.families import of_config
from isoflop.objectives import OBJECTIVES


class Transformers:
    """A causal model folder in `AutoModelForCausalLM`, in float32, or with int8 layers as it was exported.

    Raises ProjectError for a model that does not write text, CorruptError when transformers cannot open it.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._path, rounded = path, (path / TORCH).is_file()
        self.name = "torch int8" if rounded else "transformers"
        model, self._tokenizer = opened(path)
        self._model = model
        self.vocab_size = int(model.config.vocab_size)
        self.context = int(model.config.max_position_embeddings)
        table = model.get_input_embeddings().weight
        if rounded:
            weights, tied = (path / TORCH).stat().st_size, False
        else:
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            tied = table is model.get_output_embeddings().weight
        self.weight_bytes = weights - (0 if tied else table.numel() * table.element_size())
        self._cache: Any = None
        self._fed = 0

    def _unfit(self, why: str) -> ProjectError:
        return ProjectError(
            f"{self._path} {why}, and only a causal model with a cache writes token by token here",
            hint="leave out what writes: --speed, --completions, tasks that generate",
        )

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @torch.no_grad()
    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]:
        """Raises ProjectError for a second part when the model keeps nothing of the first."""
        if self._fed and self._cache is None:
            raise self._unfit("keeps no keys and values")
        check_room(self._fed + len(ids), self.context)
        out = self._model(
            torch.tensor([list(ids)]), past_key_values=self._cache, use_cache=True,
            logits_to_keep=0 if every else 1,
        )  # fmt: skip
        self._cache = getattr(out, "past_key_values", None)
        self._fed += len(ids)
        logits: NDArray[np.float32] = out.logits[0].numpy()
        return logits

    def written(self, ids: Sequence[int], tokens: int) -> list[int]:
        """So many new ids by the library's own loop, each the likeliest."""
        found = self._model.generate(
            torch.tensor([list(ids)]), attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
            do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0,
        )  # fmt: skip
        return [int(token) for token in found[0, len(ids) :]]

    def reset(self) -> None:
        self._cache, self._fed = None, 0

    def close(self) -> None:
        self._model = self._cache = None


def opened(path: Path) -> tuple[Any, Tokenizer]:
    """The model, in float32, and the tokenizer of a causal model folder.

    Raises ProjectError for a model that does not write text, or without the package that it is packed by;
    CorruptError when transformers cannot open it.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        objective = of_config(json.loads((path / "config.json").read_text())).objective
        if not OBJECTIVES[objective].compresses:
            raise ProjectError(
                f"{path} has learned the objective {objective!r}, and only a causal model with a cache "
                "writes token by token here",
                hint="leave --speed and all questions but the loss out, or name a causal model",
            )
        if (path / TORCH).is_file():
            model: Any = load_torch(path / TORCH)
        elif packed_by(path) == COMPRESSED:
            model = load_compressed(path)
        else:
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)
        return model.eval(), Tokenizer.from_file(str(path / "tokenizer.json"))
    except ProjectError:
        raise
    except Exception as error:  # it has no class of its own for what it cannot read
        raise CorruptError(
            f"transformers cannot open {path}: {str(error).splitlines()[0]}", hint="train it again"
        ) from None
