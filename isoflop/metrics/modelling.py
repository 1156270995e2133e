"""Metrics of what a model expects: perplexity, and whether its probabilities are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from isoflop.metrics.protocol import Array

BINS = 15


class Perplexity:
    """e to the nats a token; a prediction is (nats, tokens) of an example, and references go unread."""

    name: ClassVar[str] = "perplexity"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "choices a token"
    says: ClassVar[str] = "e to the mean of nats a token, over all tokens"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        return np.asarray(predictions, np.float64)

    def value(self, sums: Array) -> Array:
        return np.asarray(np.exp(sums[:, 0] / sums[:, 1]))


class CalibrationError:
    """Mean over examples of the gap between confidence and accuracy in their bin of confidence.

    Fifteen bins of equal width over the probability of the likeliest label (Naeini, Cooper and Hauskrecht,
    2015, AAAI). Gaps of bins are taken without their sign, so that chance alone makes some: values of
    resamples, and with them the interval, lie somewhat high.
    """

    name: ClassVar[str] = "calibration_error"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "share"
    says: ClassVar[str] = "expected calibration error of 15 bins of equal width"

    def statistics(self, predictions: Sequence[Any], references: Sequence[Any]) -> Array:
        """(n, 15 + 1): confidence less rightness, in the example's bin; and 1."""
        probabilities = np.asarray(predictions, np.float64)
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == np.asarray(references)
        made = np.zeros((len(confidence), BINS + 1))
        made[np.arange(len(confidence)), bin_of(confidence)] = confidence - right
        made[:, -1] = 1
        return made

    def value(self, sums: Array) -> Array:
        return np.asarray(np.abs(sums[:, :-1]).sum(axis=1) / sums[:, -1])


def bin_of(confidence: Array) -> NDArray[np.int64]:
    """(n,) numbers of bins of probabilities (n,); the upper edge belongs to a bin."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
