"""Whether attributions name what a model goes by: outputs without the named words, and with them alone.

Comprehensiveness and sufficiency (DeYoung et al., arXiv 1911.03429, section 4.1), each against as many words
drawn at random: a model that goes by no word in particular has small values of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from isoflop.errors import AdaptError
from isoflop.explaining.attributions import Tokens, is_number, tokens_of
from isoflop.explaining.records import Attribution, Faithfulness
from isoflop.metrics.mean import mean_score
from isoflop.metrics.protocol import Array
from isoflop.records import Interval
from isoflop.tasks.protocol import Base, Spec, Task

if TYPE_CHECKING:
    from torch import nn

SHARE = 0.2  # of the words
DRAWS = 5  # of random words, a text
BATCH = 32


def faithfulness(
    task: Task, base: Base, spec: Spec, model: nn.Module, found: Sequence[Attribution], *, seed: int = 0
) -> Faithfulness:
    """Of the attributions of texts of two words or more. Raises AdaptError where there are none.

    The words with the largest attributions are named; of a regression the largest in absolute value, and
    changes count whatever their sign.
    """
    rng, number = np.random.default_rng(seed), is_number(task)
    texts = [(a, tokens_of(task, base, spec, a.text)) for a in found if len(a.words) > 1]
    if not texts:
        raise AdaptError("no text has two words", hint="give longer texts to explain")
    features: list[dict[str, Any]] = []
    for attribution, tokens in texts:
        features += _variants(attribution, tokens, not number, rng)
    outputs = np.array(_outputs(task, base, spec, model, features)).reshape(len(texts), 3 + 2 * DRAWS, -1)
    numbers = [0 if number else spec.labels.index(a.output) for a, _ in texts]
    chosen = outputs[np.arange(len(texts)), :, numbers]  # (n, 3 + 2 DRAWS)
    change = chosen[:, :1] - chosen[:, 1:]
    if number:
        change = np.abs(change)
    without, alone = change[:, 0], change[:, 1]
    random_without, random_alone = change[:, 2 : 2 + DRAWS].mean(1), change[:, 2 + DRAWS :].mean(1)
    return Faithfulness(
        share=SHARE, texts=len(texts),
        output="the number" if number else "probability of the label",
        comprehensiveness=_mean(without, seed), random_comprehensiveness=_mean(random_without, seed),
        comprehensiveness_gain=_mean(without - random_without, seed),
        sufficiency=_mean(alone, seed), random_sufficiency=_mean(random_alone, seed),
        sufficiency_gain=_mean(random_alone - alone, seed),
    )  # fmt: skip


def _variants(a: Attribution, tokens: Tokens, signed: bool, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Features of the text, of it without the named words, of them alone, and of random ones likewise."""
    shares = np.array([word.attribution for word in a.words])
    k = math.ceil(SHARE * len(shares))
    named = set(np.argsort(-(shares if signed else np.abs(shares)), kind="stable")[:k].tolist())
    drawn = [set(rng.permutation(len(shares))[:k].tolist()) for _ in range(DRAWS)]
    return [
        tokens.features, _without(tokens, named), _alone(tokens, named),
        *(_without(tokens, words) for words in drawn), *(_alone(tokens, words) for words in drawn),
    ]  # fmt: skip


def _without(tokens: Tokens, words: set[int]) -> dict[str, Any]:
    return _kept(tokens, lambda number: number not in words)


def _alone(tokens: Tokens, words: set[int]) -> dict[str, Any]:
    return _kept(tokens, lambda number: number in words)


def _kept(tokens: Tokens, wanted: Callable[[int], bool]) -> dict[str, Any]:
    """Special tokens, and those of the words that are wanted."""
    keep = [s or wanted(n) for s, n in zip(tokens.special, tokens.numbers, strict=True)]
    if not any(keep):
        keep[0] = True  # a decoder without special tokens has to read something
    return {
        name: [v for v, k in zip(value, keep, strict=True) if k] if isinstance(value, list) else value
        for name, value in tokens.features.items()
    }


def _outputs(
    task: Task, base: Base, spec: Spec, model: nn.Module, features: Sequence[dict[str, Any]]
) -> list[Any]:
    """(C,) probabilities, or a value, of each."""
    found: list[Any] = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(features), BATCH):
            batch = task.collate(base, spec, features[start : start + BATCH])
            found += task.predict(model, base, spec, batch)
    return found


def _mean(values: Array, seed: int) -> Interval:
    score = mean_score(values, seed=seed)
    return Interval(value=score.value, low=score.low, high=score.high, level=score.level, of="mean")
