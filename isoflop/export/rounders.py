"""How weights are rounded to a type of GGUF: to their nearest, or by what training text feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.export.calibrate import importance, second_moments
from isoflop.export.gguf import FLOATS, Rounder, stored, to_nearest
from isoflop.export.gptq import compensated
from isoflop.gpt import GPT
from isoflop.records import Corpus

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

NEAREST, CALIBRATED, GPTQ = ROUNDINGS = ("nearest", "calibrated", "gptq")


def rounder_of(model: GPT, corpus: Corpus, rounding: str, tokens: int) -> Rounder:
    """One of ROUNDINGS for a model's matrices; 0 `tokens` of text: to the nearest.

    `calibrated` weighs the errors of a row by the importance of its columns, as llama.cpp does. A matrix that
    is looked up and not multiplied, the embedding, is rounded to the nearest by all. Raises CorpusError as
    `calibrate.windows` does.
    """
    if rounding == NEAREST or not tokens:
        return to_nearest
    if rounding == CALIBRATED:
        weights = importance(model, corpus, tokens)
        return lambda name, weight, kind: stored(weight, kind, weights.get(name))
    moments = second_moments(model, corpus, tokens)

    def by_gptq(
        name: str, weight: NDArray[np.float32], kind: str
    ) -> tuple[NDArray[Any], GGMLQuantizationType]:
        if kind in FLOATS or name not in moments:
            return stored(weight, kind)
        return compensated(weight, kind, moments[name])

    return by_gptq
