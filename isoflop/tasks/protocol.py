"""What every task is asked, and what it works with: a base model, rows of data, and a spec of both.

Rows are `datasets.Dataset`s whose columns have been renamed to the task's roles. A task keeps no state: what
it learns of its training data is in the `Spec`, which is saved beside the adapted model.

Shapes: b examples of a batch, t tokens, C labels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from isoflop.records import Record

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

END, MIDDLE = "end", "middle"  # parts of an input that is longer than a model reads
ENCODER, DECODER, BOTH = "encoder", "decoder", "encoder-decoder"  # kinds of text models
VISION, SPEECH = "vision", "speech"


@dataclass(frozen=True)
class Role:
    """A column that a task reads."""

    name: str
    guesses: tuple[str, ...]  # names of columns that are taken for it, the likeliest first; lower case
    holds: str  # "text", "label", "labels", "number", "tokens", "tags", "image", "audio" ...: see `examples`
    optional: bool = False


class Spec(Record):
    """What a task has to know of its training data to build a head, encode rows and name its predictions."""

    task: str
    labels: tuple[str, ...] = ()  # in the order of the head's outputs
    counts: tuple[int, ...] = ()  # training examples of each label
    max_length: int = 0  # tokens of an input at most; 0: the base's own
    cut: str = END  # what an input that is longer loses: its END or its MIDDLE
    source: str = ""  # of tasks from text to text: what comes before an input
    extra: Mapping[str, Any] = {}  # plain JSON values of one task alone
    notes: tuple[str, ...] = ()  # sentences on how the training rows were read, which users should see


@dataclass(frozen=True)
class Base:
    """A model folder before it is adapted; weights are read by the task's `build`."""

    folder: Path
    config: Any  # transformers' config
    kind: str  # ENCODER, DECODER, BOTH, VISION or SPEECH
    processor: Any  # tokenizer, image processor, or processor of audio
    max_length: int  # tokens that an input may have


@dataclass(frozen=True)
class LossOptions:
    """How logits and targets become a loss."""

    label_smoothing: float = 0.0
    label_weights: Tensor | None = None  # (C,), of mean 1 over the training examples


class Task(Protocol):
    """One kind of job: its data, head, batches, loss, predictions and metrics."""

    name: ClassVar[str]
    roles: ClassVar[tuple[Role, ...]]
    metrics: ClassVar[tuple[str, ...]]  # of `isoflop.metrics.METRICS`, the chief one first
    kinds: ClassVar[tuple[str, ...]]  # of base models, the best suited first
    soft: ClassVar[bool]  # logits are of categories: softmax of the last dimension can be compared or taught

    def spec(self, rows: Dataset, base: Base) -> Spec:
        """What the training rows say. Raises AdaptError where nothing can be learned of them."""

    def build(self, base: Base, spec: Spec) -> nn.Module:
        """The base's weights under this task's head. Raises AdaptError for a base of another kind."""

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Features of a batch of rows, for `Dataset.map`; "cut" says whether an input was shortened,
        "unreadable" whether its file could not be read and a blank one is in its place.

        One a row. Where a row is read as several windows, they are lists in its features, which `collate`
        lays side by side and `predict` joins again (`tasks.windows`).
        """

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A padded batch; its "labels" are the targets. Of windows, "example" (w,) says whose they are."""

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(b, C), (b, t, C) or (b, t, V); of windows, w in the place of b. Tasks that are not `soft` say what
        theirs are."""

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        """(b,) nats of each example, the mean over its own targets."""

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """One prediction an example, in the form that the task's metrics take; called without gradients, with
        the model in evaluation mode."""

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        """What the predictions of the rows are compared with, in the form that the task's metrics take."""
