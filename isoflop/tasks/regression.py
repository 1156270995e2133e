"""A number for a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from isoflop.errors import AdaptError
from isoflop.tasks.classification import TEXT
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER, MIDDLE, Base, LossOptions, Role, Spec
from isoflop.tasks.text import encode_texts, head_logits, headed, labelled

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

NUMBER = Role("number", ("number", "score", "rating", "stars", "value", "target", "label", "y"), "number")


class Regression:
    """The head's one output is in standard units: numbers less their training mean, over their deviation.

    Both are in `Spec.extra`; predictions are in the units of the data.
    """

    name: ClassVar[str] = "regression"
    roles: ClassVar[tuple[Role, ...]] = (TEXT, NUMBER)
    metrics: ClassVar[tuple[str, ...]] = ("pearson", "rmse", "spearman")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER, BOTH)
    soft: ClassVar[bool] = False

    def spec(self, rows: Dataset, base: Base) -> Spec:
        numbers = finite(rows["number"])
        if numbers.min() == numbers.max():
            raise AdaptError(
                f"the number of every training example is {numbers[0]:g}",
                hint="give examples that differ, or name another column: --map number=COLUMN",
            )
        extra = {"mean": float(numbers.mean()), "deviation": float(numbers.std())}
        return Spec(
            task=self.name, labels=(NUMBER.name,), max_length=base.max_length, cut=MIDDLE, extra=extra
        )

    def build(self, base: Base, spec: Spec) -> nn.Module:
        return headed("AutoModelForSequenceClassification", self, base, spec)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        features = encode_texts(base, spec, rows["text"])
        if "number" in rows:
            standard = (finite(rows["number"]) - spec.extra["mean"]) / spec.extra["deviation"]
            features["labels"] = standard.tolist()
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return labelled(base, features, torch.float32)

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, 1)."""
        return head_logits(model, batch)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        """Half the squared error: the nats of a normal density of deviation 1, but for a constant."""
        return (logits[:, 0].float() - batch["labels"]).square() / 2

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """A number of each example."""
        standard = self.logits(model, batch)[:, 0].double()
        found: list[float] = (standard * spec.extra["deviation"] + spec.extra["mean"]).tolist()
        return found

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        found: list[float] = finite(rows["number"]).tolist()
        return found


def finite(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers (n,). Raises AdaptError for an infinite one."""
    numbers = np.asarray(values, np.float64)
    if not np.isfinite(numbers).all():
        raise AdaptError(
            f"{numbers[~np.isfinite(numbers)][0]} is no number to learn",
            hint="leave such rows out, or name another column: --map number=COLUMN",
        )
    return numbers
