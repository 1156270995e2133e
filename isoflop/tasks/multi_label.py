"""Any number of labels for a text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from isoflop.errors import AdaptError
from isoflop.tasks.classification import TEXT
from isoflop.tasks.labels import UNSEEN, counted, numbers_of
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, Base, LossOptions, Role, Spec
from isoflop.tasks.text import encode_texts, head_logits, headed, labelled

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

LABELS = Role("labels", ("labels", "tags", "categories", "topics", "classes", "genres", "label"), "labels")


class MultiLabel:
    """Each label is a yes or no of its own, by a sigmoid of its output; labels are numbered in sorted order.

    Targets are (C,) of 0 and 1. Labels that training had not are one more column of references, where there
    are any: nobody finds them.
    """

    name: ClassVar[str] = "multi-label"
    roles: ClassVar[tuple[Role, ...]] = (TEXT, LABELS)
    metrics: ClassVar[tuple[str, ...]] = ("micro_f1", "macro_f1_labels")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER, BOTH)
    soft: ClassVar[bool] = False

    def spec(self, rows: Dataset, base: Base) -> Spec:
        counts = Counter(label for labels in rows["labels"] for label in {str(label) for label in labels})
        if all(count == len(rows) for count in counts.values()):
            raise AdaptError(
                f"all training examples have the same labels, {', '.join(sorted(counts)) or 'none'}",
                hint="give examples that differ, or name another column: --map labels=COLUMN",
            )
        return counted(self.name, counts, base)

    def build(self, base: Base, spec: Spec) -> nn.Module:
        model: Any = headed("AutoModelForSequenceClassification", self, base, spec)
        model.config.problem_type = "multi_label_classification"  # so that transformers takes sigmoids too
        return model  # type: ignore[no-any-return]

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        features = encode_texts(base, spec, rows["text"])
        if "labels" in rows:
            features["labels"] = [_marks(spec, labels).tolist() for labels in rows["labels"]]
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return labelled(base, features, torch.float32)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return head_logits(model, batch)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        """The mean over labels of the binary cross-entropy; smoothing moves its share of a target to 1/2."""
        smoothing = options.label_smoothing
        targets = batch["labels"] * (1 - smoothing) + smoothing / 2
        nats = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, targets, weight=options.label_weights, reduction="none"
        )
        return nats.mean(1)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Probabilities (C,) of each example's labels."""
        return list(self.logits(model, batch).float().sigmoid().cpu().numpy())

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        """(C,) of 0 and 1 of each row; (C + 1,) where some row has a label that training had not."""
        marks = np.array([_marks(spec, labels) for labels in rows["labels"]])
        unseen = np.array([[UNSEEN in numbers_of(spec, labels)] for labels in rows["labels"]], int)
        return list(np.hstack([marks, unseen]) if unseen.any() else marks)


def _marks(spec: Spec, labels: Iterable[Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """1 for the labels that there are, 0 for the others."""
    found = numbers_of(spec, labels)
    return np.isin(np.arange(len(spec.labels)), found).astype(np.int64)
