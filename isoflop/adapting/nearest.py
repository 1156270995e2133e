"""Labels by the nearest embedding of a frozen base, for one that has no head for words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.adapting.shots import Vectors, chosen, drawn, encoder_of, in_turn, state_means, words
from isoflop.tasks.protocol import Base, Spec

if TYPE_CHECKING:
    from datasets import Dataset

SHARPNESS = 20.0  # of probabilities from cosines: that of sentence encoders' training, 1 / 0.05


def by_nearest(
    base: Base, spec: Spec, train: Dataset, rows: Dataset, *, shots: int, choose: str, seed: int
) -> tuple[list[Any], str]:
    """Probabilities (C,) of each row, and in words what they are.

    A label lies at the mean of its examples among those drawn at random, or without any at its own words. Of
    examples that resemble the text, each votes for its label.
    """
    body = encoder_of(base)
    texts = state_means(body, base, [str(text) for text in rows["text"]])
    pool = train.select(drawn(len(train), seed))
    owners = np.array([spec.labels.index(str(label)) for label in pool["label"]])
    if choose == "similar" and shots:
        shown = state_means(body, base, [str(text) for text in pool["text"]])
        near = np.array(chosen(choose, shots, shown, texts, [], seed))  # (n, shots)
        votes = np.exp(SHARPNESS * np.einsum("nsd,nd->ns", shown[near], texts))
        of_label = owners[near][..., None] == np.arange(len(spec.labels))
        found = (votes[..., None] * of_label).sum(1)
        return list(found / found.sum(1, keepdims=True)), "votes of frozen mean embeddings, by cosine"
    numbers = in_turn([str(label) for label in pool["label"]], seed)[:shots]
    shown = state_means(body, base, [str(pool[number]["text"]) for number in numbers])
    names = state_means(body, base, [words(label) for label in spec.labels])
    places = np.stack([_place(shown[owners[numbers] == c], names[c]) for c in range(len(spec.labels))])
    found = np.exp(SHARPNESS * (texts @ places.T))
    return list(found / found.sum(1, keepdims=True)), "nearest label by cosine of frozen mean embeddings"


def _place(examples: Vectors, name: Vectors) -> Vectors:
    """Of length 1."""
    if not len(examples):
        return name
    mean = examples.mean(0)
    return np.asarray(mean / np.linalg.norm(mean))
