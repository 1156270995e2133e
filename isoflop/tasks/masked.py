"""Masked tokens from all the others: an encoder goes on learning its language on the texts of a task."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from isoflop.errors import AdaptError
from isoflop.model import IGNORE
from isoflop.objectives.masked import MASKED_SHARE, hide
from isoflop.tasks.classification import TEXT
from isoflop.tasks.protocol import ENCODER, Base, LossOptions, Role, Spec
from isoflop.tasks.text import check_kind, encode_texts, head_logits, padded

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

WHOLE, SPECIAL, NOT_INPUTS = "whole", "special", ("labels", "whole", "special")


class Masked:
    """15% of a text's tokens, one at least, are hidden as BERT hides them (`objectives.masked`).

    Which they are is drawn anew for each batch, from torch's generator; for predictions it is a function of
    the text's ids alone, so that two models are asked for the same tokens.
    """

    name: ClassVar[str] = "masked"
    roles: ClassVar[tuple[Role, ...]] = (TEXT,)
    metrics: ClassVar[tuple[str, ...]] = ("perplexity",)
    kinds: ClassVar[tuple[str, ...]] = (ENCODER,)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        if base.processor.mask_token_id is None:
            raise AdaptError(
                f"the tokenizer of {base.folder} has no mask token",
                hint="name a model that was trained with masks, such as BERT",
            )
        return Spec(task=self.name, max_length=base.max_length)

    def build(self, base: Base, spec: Spec) -> nn.Module:
        from transformers import AutoModelForMaskedLM

        check_kind(self, base)
        model: nn.Module = AutoModelForMaskedLM.from_pretrained(base.folder)
        return model

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        return encode_texts(base, spec, rows["text"])

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = padded(base, features)
        batch[WHOLE] = batch["input_ids"]
        known = torch.tensor(base.processor.all_special_ids)
        batch[SPECIAL] = torch.isin(batch[WHOLE], known) | (batch["attention_mask"] == 0)
        seeds = torch.randint(2**62, (len(features),)).tolist()
        return {**batch, **_hidden(base, batch, seeds)}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, t, V)."""
        return head_logits(model, batch, NOT_INPUTS)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        nats, tokens = _nats(logits, batch["labels"], options.label_smoothing)
        return nats / tokens.clamp(min=1)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Nats of each example's hidden tokens, and how many they are."""
        ids, seen = batch[WHOLE].cpu().numpy(), batch["attention_mask"].bool().cpu().numpy()
        seeds = [zlib.crc32(row[there].tobytes()) for row, there in zip(ids, seen, strict=True)]
        asked = {**batch, **_hidden(base, batch, seeds)}
        nats, tokens = _nats(self.logits(model, asked), asked["labels"], 0.0)
        return list(zip(nats.tolist(), tokens.tolist(), strict=True))

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        """Nothing: a prediction has all that the metric takes."""
        return [None] * len(rows)


def _hidden(base: Base, batch: Mapping[str, Tensor], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Inputs and labels (b, t), where the tokens to hide in each row are a function of its seed."""
    inputs = batch[WHOLE].clone()
    labels = torch.full_like(inputs, IGNORE)
    for row, seed in enumerate(seeds):
        there = batch["attention_mask"][row].bool()
        ids, special = inputs[row, there].cpu(), batch[SPECIAL][row, there].cpu()
        order, kind, other = np.random.default_rng(seed).random((3, 1, len(ids)))
        order[0, special.numpy()] = np.inf  # these come last
        words = int((~special).sum())
        count = min(words, max(1, round(MASKED_SHARE * words)))
        hidden, targets = hide(
            ids[None].numpy(), order, kind, other, count, base.processor.mask_token_id, base.config.vocab_size
        )
        inputs[row, there], labels[row, there] = hidden[0].to(inputs.device), targets[0].to(inputs.device)
    return {"input_ids": inputs, "labels": labels}


def _nats(logits: Tensor, labels: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """Of each row (b,): the sum over its targets, and how many they are."""
    there = labels != IGNORE
    nats = torch.nn.functional.cross_entropy(
        logits[there].float(), labels[there], reduction="none", label_smoothing=smoothing
    )
    row = there.nonzero()[:, 0]
    return torch.zeros(len(labels), device=nats.device).index_add(0, row, nats), there.sum(1)
