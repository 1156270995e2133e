"""How near two texts are: cosines of embeddings, which are mean hidden states of a model without a head.

A row's two texts are read as windows of it. Models are saved as plain folders; an embedding is the mean over
a text's tokens of the last hidden states, made of length 1.

Shapes: b rows of a batch, w = 2 b texts, d width.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from isoflop.errors import AdaptError
from isoflop.tasks.protocol import DECODER, ENCODER, Base, LossOptions, Role, Spec
from isoflop.tasks.regression import NUMBER, finite
from isoflop.tasks.text import NAMES, check_kind, encode_texts
from isoflop.tasks.windows import side_by_side

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor, nn

    from isoflop.tasks.protocol import Task

FIRST = Role(
    "first", ("first", "sentence1", "text1", "query", "question", "anchor", "premise", "text_a", "a"), "text"
)
SECOND = Role(
    "second",
    ("second", "sentence2", "text2", "passage", "answer", "positive", "hypothesis", "text_b", "b"), "text",
)  # fmt: skip
NEARNESS = Role(NUMBER.name, ("similarity", *NUMBER.guesses), NUMBER.holds)
TEMPERATURE = 0.05  # assumption: as Gao et al., SimCSE, arXiv 2104.08821, section 3, with the same loss


class Similarity:
    """Pairs with a number: the cosine of two embeddings learns it (Reimers and Gurevych, arXiv 1908.10084,
    section 3, regression objective).

    Numbers outside [0, 1] are mapped to it by the least and greatest of training, which `Spec.extra` keeps.
    """

    name: ClassVar[str] = "similarity"
    roles: ClassVar[tuple[Role, ...]] = (FIRST, SECOND, NEARNESS)
    metrics: ClassVar[tuple[str, ...]] = ("spearman", "pearson")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER)
    soft: ClassVar[bool] = False

    def spec(self, rows: Dataset, base: Base) -> Spec:
        numbers = finite(rows["number"])
        low, high = min(0.0, float(numbers.min())), max(1.0, float(numbers.max()))
        if numbers.min() == numbers.max():
            raise AdaptError(
                f"the number of every training example is {numbers[0]:g}",
                hint="give pairs of different similarity, or, where all are alike, take --task embedding",
            )
        note = f"similarities from {numbers.min():g} to {numbers.max():g} are mapped to 0 to 1"
        return Spec(
            task=self.name, max_length=base.max_length, extra={"low": low, "high": high},
            notes=() if (low, high) == (0, 1) else (note,),
        )  # fmt: skip

    def build(self, base: Base, spec: Spec) -> nn.Module:
        return _headless(self, base)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        features = _encode_pairs(base, spec, rows)
        if "number" in rows:
            low, high = spec.extra["low"], spec.extra["high"]
            features["labels"] = ((finite(rows["number"]) - low) / (high - low)).tolist()
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        batch = side_by_side(base, features, {})
        if "labels" in features[0]:
            batch["labels"] = torch.tensor([f["labels"] for f in features], dtype=torch.float32)
        return batch

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings (b, 2, d)."""
        return _embeddings(model, batch)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        """The squared error of the cosine."""
        return (_cosines(logits) - batch["labels"]).square()

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """A number of each pair, in the units of the data."""
        low, high = spec.extra["low"], spec.extra["high"]
        found: list[float] = (_cosines(self.logits(model, batch)) * (high - low) + low).tolist()
        return found

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        found: list[float] = finite(rows["number"]).tolist()
        return found


class Embedding:
    """Pairs that belong together: each first text is told its second among all of the batch, by a softmax of
    cosines over TEMPERATURE (van den Oord et al., arXiv 1807.03748, equation 4).

    A second text that stands in the batch more than once is right each time. Predictions are embeddings, and
    metrics rank a row's second among those of all rows that are evaluated together: the more rows, the
    harder.
    """

    name: ClassVar[str] = "embedding"
    roles: ClassVar[tuple[Role, ...]] = (FIRST, SECOND)
    metrics: ClassVar[tuple[str, ...]] = ("mrr", "recall_at_1")
    kinds: ClassVar[tuple[str, ...]] = (ENCODER, DECODER)
    soft: ClassVar[bool] = False

    def spec(self, rows: Dataset, base: Base) -> Spec:
        if len({str(text) for text in rows["second"]}) < 2:
            raise AdaptError(
                "the second text of every training example is the same",
                hint="give different ones, or name another column: --map second=COLUMN",
            )
        return Spec(task=self.name, max_length=base.max_length)

    def build(self, base: Base, spec: Spec) -> nn.Module:
        return _headless(self, base)

    def encode(self, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        features = _encode_pairs(base, spec, rows)
        features["labels"] = _names(rows["second"])
        return features

    def collate(self, base: Base, spec: Spec, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return {**side_by_side(base, features, {}), "labels": torch.tensor([f["labels"] for f in features])}

    def logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """Embeddings (b, 2, d)."""
        return _embeddings(model, batch)

    def loss(self, logits: Tensor, batch: Mapping[str, Tensor], options: LossOptions) -> Tensor:
        first_bd, second_bd = logits.float().unbind(1)
        names = batch["labels"]
        logp_bb = (first_bd @ second_bd.T / TEMPERATURE).log_softmax(1)
        right_bb = names[:, None] == names
        return -logp_bb.masked_fill(~right_bb, -torch.inf).logsumexp(1)

    def predict(self, model: nn.Module, base: Base, spec: Spec, batch: Mapping[str, Tensor]) -> list[Any]:
        """Embeddings (2, d) of each pair."""
        return list(self.logits(model, batch).float().cpu().numpy())

    def references(self, spec: Spec, rows: Dataset) -> list[Any]:
        """A number of each second text; equal texts have equal ones."""
        return _names(rows["second"])


def _headless(task: Task, base: Base) -> nn.Module:
    from transformers import AutoModel

    check_kind(task, base)
    model: nn.Module = AutoModel.from_pretrained(base.folder)
    return model


def _encode_pairs(base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Each feature is the pair of those of both texts; `cut` says whether either was shortened."""
    sides = [encode_texts(base, spec, rows[name]) for name in ("first", "second")]
    features = {
        name: [list(pair) for pair in zip(*(side[name] for side in sides), strict=True)]
        for name in NAMES if name in sides[0]
    }  # fmt: skip
    return {**features, "cut": [any(pair) for pair in zip(*(side["cut"] for side in sides), strict=True)]}


def _embeddings(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    hidden_wtd: Tensor = model(**{name: batch[name] for name in NAMES if name in batch}).last_hidden_state
    made_wd = pooled(hidden_wtd, batch["attention_mask"])
    return made_wd.view(-1, 2, made_wd.shape[-1])


def pooled(hidden_wtd: Tensor, mask_wt: Tensor) -> Tensor:
    """Embeddings (w, d) of hidden states: the mean over the tokens of a mask, of length 1."""
    seen_wt1 = mask_wt[..., None].to(hidden_wtd.dtype)
    return torch.nn.functional.normalize((hidden_wtd * seen_wt1).sum(1) / seen_wt1.sum(1), dim=-1)


def _cosines(embeddings: Tensor) -> Tensor:
    """(b,) of (b, 2, d)."""
    return embeddings.float().prod(1).sum(1)


def _names(texts: Sequence[Any]) -> list[int]:
    """A number of each text, which is the same wherever it stands."""
    return [zlib.crc32(str(text).encode()) for text in texts]
