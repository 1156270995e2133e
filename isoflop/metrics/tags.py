"""Metrics of a tag a token: lists of strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from isoflop.errors import AdaptError
from isoflop.metrics.protocol import Array
from isoflop.metrics.sums import f1, ratio

Span = tuple[str, int, int]  # type, first and last token


class EntityF1:
    """F1 of entities: an entity is right where its type, its first and its last token are (seqeval)."""

    name: ClassVar[str] = "entity_f1"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "seqeval's micro F1 of exact entities, tags in IOB2"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """(n, 2): twice the entities that are right, and those of both sides."""
        made = []
        for prediction, reference in zip(predictions, references, strict=True):
            found, true = _entities(prediction), _entities(reference)
            made.append((2.0 * len(found & true), len(found) + len(true)))
        return np.asarray(made, np.float64)

    def value(self, sums: Array) -> Array:
        return np.nan_to_num(f1(sums[:, 0], sums[:, 1]))


class TokenAccuracy:
    """Share of tokens whose tag is right; one that was not tagged is wrong."""

    name: ClassVar[str] = "token_accuracy"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "share of tokens whose tag is right"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        made = [
            (sum(p == r for p, r in zip(prediction, reference, strict=False)), len(reference))
            for prediction, reference in zip(predictions, references, strict=True)
        ]
        return np.asarray(made, np.float64)

    def value(self, sums: Array) -> Array:
        return ratio(sums)


def _entities(tags: Sequence[str]) -> set[Span]:
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError:
        raise AdaptError("seqeval is not installed", hint="pip install 'isoflop[adapt]'") from None
    return set(get_entities(list(tags)))
