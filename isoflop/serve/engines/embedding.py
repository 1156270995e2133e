"""Vectors of texts, of length 1: of models that were adapted to similarity, and of plain encoders.

Shapes: w texts, t tokens, d width.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isoflop.adapting.quiet import quiet
from isoflop.adapting.saved import is_adapted, load_adapted
from isoflop.errors import ProjectError
from isoflop.serve.engines.adapted import PADDED, TEXTS, check_read
from isoflop.serve.engines.batched import Batched
from isoflop.serve.protocol import RequestError
from isoflop.tasks import load_base
from isoflop.tasks.base import opened
from isoflop.tasks.similarity import pooled
from isoflop.tasks.text import NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

POOLING, LENGTH = "1_Pooling/config.json", "sentence_bert_config.json"  # of sentence-transformers' folders

Features = Mapping[str, Any]


class Embedder(Batched[Features, "NDArray[Any]"]):
    """The mean over a text's tokens of the last hidden states, or the first token's where the folder says
    so. Raises ProjectError for a folder that says something else."""

    def __init__(self, path: Path, *, threads: int) -> None:
        super().__init__(path, threads=threads, items=TEXTS, padded=PADDED)

    def _load(self) -> None:
        self._pool = _pooling(self._path)
        with quiet():
            if is_adapted(self._path):
                _, base, spec, self._model = load_adapted(self._path)
                self.context = spec.max_length or base.max_length
            else:
                base = load_base(self._path)
                self._model = opened("AutoModel", self._path).eval()
                self.context = min(
                    base.max_length, _says(self._path / LENGTH, "max_seq_length", base.max_length)
                )
        self._processor = base.processor

    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        features = await self._read(self._encoded, texts)
        sizes = [len(f["input_ids"]) for f in features]
        check_read(sizes)
        if (longest := max(sizes, default=0)) > self.context:
            raise RequestError(
                f"text {sizes.index(longest) + 1} has {longest} tokens, and the model reads {self.context}",
                code="context_length_exceeded", param="input",
            )  # fmt: skip
        return [vector.tolist() for vector in await self._computed(features, sizes)], sum(sizes)

    def _encoded(self, texts: Sequence[str]) -> list[Features]:
        if not texts:
            return []
        found = self._processor(list(texts), verbose=False)
        columns = {name: found[name] for name in NAMES if name in found}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    @torch.inference_mode()
    def _compute(self, items: Sequence[Features]) -> Sequence[NDArray[Any]]:
        batch = self._processor.pad(list(items), return_tensors="pt", padding_side="right")
        hidden_wtd: Tensor = self._model(**batch).last_hidden_state
        return list(self._pool(hidden_wtd.float(), batch["attention_mask"]).numpy())


def _first(hidden_wtd: Tensor, mask_wt: Tensor) -> Tensor:
    return torch.nn.functional.normalize(hidden_wtd[:, 0], dim=-1)


POOLINGS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"mean": pooled, "cls": _first}


def _pooling(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """What makes one vector of a text's, as a folder of sentence-transformers says; else the mean."""
    path = folder / POOLING
    if not path.is_file():
        return pooled
    says = json.loads(path.read_text())
    prefix = "pooling_mode_"
    named = [name.removeprefix(prefix).split("_")[0] for name, on in says.items()
             if name.startswith(prefix) and on is True]  # fmt: skip
    modes = [says["pooling_mode"]] if "pooling_mode" in says else named
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ProjectError(
            f"{path} pools by {' and '.join(map(str, modes)) or 'nothing'}",
            hint=f"name a model that pools by {' or '.join(POOLINGS)}",
        )
    return POOLINGS[modes[0]]


def _says(path: Path, name: str, default: int) -> int:
    """A number of a folder's file, where it is there."""
    found = json.loads(path.read_text()).get(name) if path.is_file() else None
    return default if found is None else int(found)
