"""One label for an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from isoflop.examples.media import undecoded
from isoflop.tasks.classification import LABEL, Classification
from isoflop.tasks.labels import numbers_of
from isoflop.tasks.media import encode_images, image_of, pixel_values, surveyed
from isoflop.tasks.protocol import VISION, Base, LossOptions, Role, Spec
from isoflop.tasks.text import headed

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

IMAGE = Role("image", ("image", "img", "picture", "photo", "file_name", "path"), "image")
LABELS = Classification()  # what is learned of labels does not depend on what bears them


class ImageClassification:
    """Labels are numbered in sorted order; the head is the base's own for images.

    A base folder without weights is a model from scratch, see `tasks.scratch`.
    """

    name: ClassVar[str] = "image-classification"
    roles: ClassVar[tuple[Role, ...]] = (IMAGE, LABEL)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    kinds: ClassVar[tuple[str, ...]] = (VISION,)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        labels = LABELS.spec(rows, base)
        _, unreadable = surveyed(undecoded(rows)["image"], lambda v: image_of(v, channels(base.config)))
        return labels.model_copy(update={"task": self.name, "extra": {"unreadable": unreadable}})

    def build(self, base: Base, spec: Spec) -> nn.Module:
        return headed("AutoModelForImageClassification", self, base, spec)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        features = encode_images(base.processor, rows["image"], channels(base.config))
        if "label" in rows:
            features["labels"] = numbers_of(spec, rows["label"])
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        import torch

        batch = {"pixel_values": pixel_values(base.processor, features)}
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([f["labels"] for f in features])
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return LABELS.logits(model, batch)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        return LABELS.loss(logits, batch, options)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Probabilities (C,) of each example."""
        return LABELS.predict(model, base, spec, batch)

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return LABELS.references(spec, rows)


def channels(config: Any) -> int:
    """That the model takes; those of a text-like config that does not say take colours."""
    return int(getattr(config, "num_channels", 3))
