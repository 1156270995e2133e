"""One label for an image with a text: two encoders, joined after both (late fusion).

The base folder is the text model's; the image model's folder is `Spec.extra["image_base"]`. An adapted
model is one folder: the text model as it was, the image model in `image/`, and what joins them in FUSION,
so that it is a base in its turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from isoflop.errors import AdaptError
from isoflop.examples.media import undecoded
from isoflop.tasks.base import load_base, opened
from isoflop.tasks.classification import LABEL, TEXT, Classification
from isoflop.tasks.image_classification import IMAGE, channels
from isoflop.tasks.media import encode_images, image_of, pixel_values, surveyed
from isoflop.tasks.protocol import DECODER, ENCODER, VISION, Base, LossOptions, Role, Spec

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

PART = "image"  # folder of the image model within an adapted one
FUSION = "fusion.safetensors"
DROPOUT = 0.1
COLOURS = 3
LABELS = Classification()


class Fusion(nn.Module):
    """Mean-pooled vectors of both models side by side, and a network of one hidden layer on them.

    The hidden layer is there because labels may depend on how image and text go together: a linear layer
    could only add what each says alone.
    """

    def __init__(self, text: Any, image: Any, image_processor: Any, labels: int) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.config, self.image_processor = text.config, image_processor
        width = int(text.config.hidden_size)
        joined = width + _width(image.config)
        self.head = nn.Sequential(
            nn.LayerNorm(joined), nn.Linear(joined, width), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(width, labels),
        )  # fmt: skip

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, **more: Tensor
    ) -> Tensor:
        """Logits (b, C)."""
        # (b, t, d) of text; (b, t, d) or (b, d, h, w) of an image
        read = self.text(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state
        seen = self.image(pixel_values=pixel_values).last_hidden_state
        mask = attention_mask[..., None].to(read.dtype)
        text = (read * mask).sum(1) / mask.sum(1)
        image = seen.flatten(2).mean(2) if seen.ndim == 4 else seen.mean(1)
        found: Tensor = self.head(torch.cat([text, image], dim=1))
        return found

    def get_input_embeddings(self) -> Any:
        """Of tokens."""
        return self.text.get_input_embeddings()

    def save_pretrained(self, folder: str | Path) -> None:
        """All but the tokenizer."""
        from safetensors.torch import save_file

        folder = Path(folder)
        self.text.save_pretrained(folder)
        self.image.save_pretrained(folder / PART)
        self.image_processor.save_pretrained(folder / PART)
        save_file(self.head.state_dict(), folder / FUSION)


class ImageText:
    """Labels are numbered in sorted order."""

    name: ClassVar[str] = "image-text"
    roles: ClassVar[tuple[Role, ...]] = (IMAGE, TEXT, LABEL)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER)
    soft: ClassVar[bool] = True

    def spec(self, rows: Dataset, base: Base) -> Spec:
        """`with_image_base` adds the image model."""
        labels = LABELS.spec(rows, base)
        _, unreadable = surveyed(undecoded(rows)["image"], lambda v: image_of(v, COLOURS))
        return labels.model_copy(update={"task": self.name, "extra": {"unreadable": unreadable}})

    def build(self, base: Base, spec: Spec) -> nn.Module:
        if base.kind not in self.kinds:
            raise AdaptError(
                f"{base.folder} is of the kind {base.kind}, and {self.name} takes {', '.join(self.kinds)}",
                hint="name a text model; the image model is a second one",
            )
        image = _image_base(base, spec)
        parts = opened("AutoModel", base.folder), opened("AutoModel", image.folder)
        model = Fusion(*parts, image.processor, len(spec.labels))
        if (base.folder / FUSION).exists():
            from safetensors.torch import load_file

            stored = load_file(base.folder / FUSION)
            if all(stored[name].shape == own.shape for name, own in model.head.state_dict().items()):
                model.head.load_state_dict(stored)
        return model

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        image = _image_base(base, spec)
        seen = encode_images(image.processor, rows["image"], channels(image.config))
        return LABELS.encode(base, spec, rows) | seen

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        pixels = pixel_values(_image_base(base, spec).processor, features)
        return LABELS.collate(base, spec, features) | {"pixel_values": pixels}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = model(**{name: value for name, value in batch.items() if name != "labels"})
        return found

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        return LABELS.loss(logits, batch, options)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Probabilities (C,) of each example."""
        return list(self.logits(model, batch).float().softmax(-1).cpu().numpy())

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return LABELS.references(spec, rows)


def with_image_base(spec: Spec, folder: Path) -> Spec:
    """The spec with the folder of its image model."""
    return spec.model_copy(update={"extra": {**spec.extra, "image_base": str(folder)}})


def _image_base(base: Base, spec: Spec) -> Base:
    """The part of an adapted folder, else what the spec names. Raises AdaptError for no image model."""
    if (base.folder / FUSION).exists():
        return _loaded(base.folder / PART)
    if "image_base" not in spec.extra:
        raise AdaptError(
            f"{spec.task} reads images too, and {base.folder} is the text model alone",
            hint="name an image model",
        )
    found = _loaded(Path(spec.extra["image_base"]))
    if found.kind != VISION:
        raise AdaptError(
            f"{found.folder} is of the kind {found.kind}, not {VISION}", hint="name an image model"
        )
    return found


@lru_cache(maxsize=4)
def _loaded(folder: Path) -> Base:
    return load_base(folder)


def _width(config: Any) -> int:
    """Of what an image model ends with: transformers, or stages of convolutions."""
    return int(config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size)
