"""The next token of a text, drawn as OpenAI's options say: temperature, then top-p.

Shapes: v vocabulary, k candidates.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

Floats = NDArray[np.floating]


class Sampler:
    """Draws tokens; with a seed the same ones for the same logits."""

    def __init__(self, *, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature, self._top_p = temperature, top_p
        self._rng = np.random.default_rng(seed)

    def __call__(self, logits_v: Floats) -> int:
        if self._temperature == 0:
            return int(logits_v.argmax())
        scaled_v = (logits_v - logits_v.max()).astype(np.float64) / self._temperature
        weights_v = np.exp(scaled_v)
        if self._top_p >= 1:
            return self._drawn(weights_v)
        kept_k = nucleus(weights_v / weights_v.sum(), self._top_p)
        return int(kept_k[self._drawn(weights_v[kept_k])])

    def _drawn(self, weights_k: Floats) -> int:
        """A number, as likely as its weight says."""
        ends_k = weights_k.cumsum()
        return int(np.searchsorted(ends_k, self._rng.random() * ends_k[-1], side="right"))


def nucleus(shares_v: Floats, top_p: float) -> NDArray[np.intp]:
    """Ids of the fewest likeliest tokens that have the share `top_p` together, the likeliest first.

    Tokens below (1 - top_p) / v have less than 1 - top_p together: none of them is needed, so that few are
    sorted.
    """
    able_k = np.flatnonzero(shares_v >= (1 - top_p) / len(shares_v))
    ordered_k = able_k[np.argsort(-shares_v[able_k], kind="stable")]
    before_k = shares_v[ordered_k].cumsum() - shares_v[ordered_k]
    return ordered_k[: max(1, int((before_k < top_p).sum()))]


def likeliest(logits_v: Floats, chosen: int, count: int) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability in nats of the chosen token, and of the `count` likeliest with their ids."""
    logps_v = log_softmax(logits_v.astype(np.float64))
    count = min(count, len(logps_v))
    best = np.argpartition(-logps_v, count - 1)[:count] if count else np.arange(0)
    ordered = sorted(best.tolist(), key=lambda id: (-logps_v[id], id))
    return float(logps_v[chosen]), [(id, float(logps_v[id])) for id in ordered]
