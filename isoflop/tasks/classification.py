"""One label for a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from isoflop.errors import AdaptError
from isoflop.tasks.labels import UNSEEN, counted, numbers_of
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, Base, LossOptions, Role, Spec
from isoflop.tasks.text import encode_texts, head_logits, headed, labelled

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

TEXT = Role(
    "text", ("text", "sentence", "content", "review", "document", "body", "message", "comment"), "text"
)
LABEL = Role("label", ("label", "class", "category", "target", "sentiment", "stars", "y"), "label")


class Classification:
    """Labels are numbered in sorted order; the head is the base's own for sequences.

    A label that training had not is UNSEEN: no prediction of its example is right.
    """

    name: ClassVar[str] = "classification"
    roles: ClassVar[tuple[Role, ...]] = (TEXT, LABEL)
    metrics: ClassVar[tuple[str, ...]] = ("macro_f1", "accuracy")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER, BOTH)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        counts = Counter(str(label) for label in rows["label"])
        if len(counts) < 2:
            raise AdaptError(
                f"the training examples have one label only, {next(iter(counts), 'none')!r}",
                hint="give examples of two labels or more, or name another column: --map label=COLUMN",
            )
        return counted(self.name, counts, base)

    def build(self, base: Base, spec: Spec) -> nn.Module:
        return headed("AutoModelForSequenceClassification", self, base, spec)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        features = encode_texts(base, spec, rows["text"])
        if "label" in rows:
            features["labels"] = numbers_of(spec, rows["label"])
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return labelled(base, features)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return head_logits(model, batch)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        return torch.nn.functional.cross_entropy(
            logits, batch["labels"], weight=options.label_weights, reduction="none",
            label_smoothing=options.label_smoothing, ignore_index=UNSEEN,
        )  # fmt: skip

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Probabilities (C,) of each example."""
        return list(self.logits(model, batch).float().softmax(-1).cpu().numpy())

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return numbers_of(spec, rows["label"])
