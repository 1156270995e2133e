"""What an engine thinks of a text, and how it goes on with it: the same questions to every engine.

Shapes: t time, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from isoflop.engines import Engine


def log_probabilities(engine: Engine, ids: Sequence[int]) -> NDArray[np.float64]:
    """Log-probabilities (t, v) of what follows each of these tokens (t,), which are all that is seen."""
    engine.reset()
    logits = engine.feed(ids, every=True).astype(np.float64)
    found: NDArray[np.float64] = log_softmax(logits, axis=1)
    return found


def token_nats(engine: Engine, ids: Sequence[int]) -> NDArray[np.float64]:
    """Cross-entropy (t,) in nats of each token of a text (t + 1,) but its first, given those before it."""
    found = log_probabilities(engine, ids[:-1])
    nats: NDArray[np.float64] = -found[np.arange(len(found)), np.asarray(ids[1:])]
    return nats


def continued(
    engine: Engine, ids: Sequence[int], *, temperature: float = 0.0, rng: np.random.Generator | None = None,
    ends: Container[int] = (),
) -> Iterator[int]:  # fmt: skip
    """The ids with which an engine goes on after these, one by one, up to one of `ends`.

    Each is the likeliest, or with a temperature above 0 is drawn by `rng` from all. Raises ProjectError once
    they do not fit into the engine's context.
    """
    assert rng is not None or temperature == 0
    engine.reset()
    following: Sequence[int] = ids
    while True:
        logits = engine.feed(following, every=False)[0].astype(np.float64)
        if rng is not None and temperature > 0:
            logits = logits / temperature + rng.gumbel(size=len(logits))
        choice = int(logits.argmax())
        if choice in ends:
            return
        yield choice
        following = [choice]
