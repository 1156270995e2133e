"""What a document says, in few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from isoflop.tasks.protocol import BOTH, DECODER, Base, Role, Spec
from isoflop.tasks.sequences import FromTextToText, Pair, filled, written

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

DOCUMENT = Role("document", ("document", "article", "text", "source", "content", "body", "dialogue"), "text")
SUMMARY = Role("summary", ("summary", "highlights", "abstract", "target", "headline", "title"), "text")


class Summarisation(FromTextToText):
    """Of a document that is longer than the model its beginning is read."""

    name: ClassVar[str] = "summarisation"
    roles: ClassVar[tuple[Role, ...]] = (DOCUMENT, SUMMARY)
    metrics: ClassVar[tuple[str, ...]] = ("rouge_l", "rouge_1", "rouge_2")
    kinds: ClassVar[tuple[str, ...]] = (BOTH, DECODER)
    keeps_end: ClassVar[bool] = False

    def template(self, base: Base) -> str:
        return "{}" if base.kind == BOTH else "{}\n\nSummary:\n"

    def pairs(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> list[Pair]:
        return filled(spec.source, rows["document"], rows.get("summary"))

    def answered(self, rows: Dataset, texts: Sequence[str]) -> Dataset:
        return rows.select_columns("document").add_column("summary", list(texts))

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        return written(model, base, spec, batch)

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        return [str(text) for text in rows["summary"]]
