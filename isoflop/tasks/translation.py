"""A text in another language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from isoflop.tasks.protocol import BOTH, DECODER, Base, Role, Spec
from isoflop.tasks.sequences import FromTextToText, Pair, filled, written

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

SOURCE = Role("source", ("source", "src", "en", "english", "input", "original"), "text")
TARGET = Role(
    "target", ("target", "tgt", "translation", "de", "fr", "es", "zh", "zh_cn", "it", "ja", "ru", "output"),
    "text",
)  # fmt: skip


class Translation(FromTextToText):
    """One pair of languages in one direction, which the examples alone name."""

    name: ClassVar[str] = "translation"
    roles: ClassVar[tuple[Role, ...]] = (SOURCE, TARGET)
    metrics: ClassVar[tuple[str, ...]] = ("chrf", "bleu")
    kinds: ClassVar[tuple[str, ...]] = (BOTH, DECODER)
    keeps_end: ClassVar[bool] = False

    def template(self, base: Base) -> str:
        return "{}" if base.kind == BOTH else "{}\n\nTranslation:\n"

    def pairs(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[Pair]:
        return filled(spec.source, rows["source"], rows.get("target"))

    def answered(self, rows: Dataset, texts: Sequence[str]) -> Dataset:
        return rows.select_columns("source").add_column("target", list(texts))

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        return written(model, base, spec, batch)

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return [str(text) for text in rows["target"]]
