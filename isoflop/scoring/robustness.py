"""What a disturbed context costs the text after it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isoflop.corpus import end_token, token_bytes, tokenizer
from isoflop.engines import Engine
from isoflop.engines.reading import token_nats
from isoflop.errors import ProjectError
from isoflop.evaluate import heldout_windows, ratio
from isoflop.perturb import PERTURBATIONS
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record

RATES = (0.1, 0.5)
END = "\ufdd0"  # in a text, where a document ends: a code point that is no character
STAGE = "robustness"


class Shift(Record):
    """One perturbation of the contexts, and what follows from it."""

    perturbation: str  # of `perturb.PERTURBATIONS`
    rate: float
    context_tokens: float  # of a perturbed context, on average
    bpb: float  # of the text after it, which is as it was
    change: float  # in bits per byte, against the same text after its own context
    change_se: float  # over windows, which are paired


class Robustness(Record):
    """Held-out text after contexts that were disturbed."""

    windows: int
    context_tokens: int  # of an undisturbed context
    scored_tokens: int  # after it
    bpb: float  # of the text after undisturbed contexts
    bpb_se: float
    shifts: tuple[Shift, ...]


def robustness(
    engine: Engine, corpus: Corpus, *, eval_tokens: int, rates: Sequence[float] = RATES, seed: int = 0,
    progress: Progress | None = None,
) -> Robustness:  # fmt: skip
    """Perturb contexts of held-out text in each way at each rate, and score the text after them.

    A held-out window is two thirds of the engine's context long. Its first half is the context: it is
    decoded, perturbed, encoded again and read, but not scored. Its second half, whose tokens are never
    changed, is scored. The third that is left is room for what perturbing adds in tokens; a context that
    takes more loses its beginning. The unperturbed contexts are decoded and encoded as well.

    Raises ProjectError for rates outside (0, 1], CorpusError for less text than a window.
    """
    check_rates(rates)
    progress, third = progress or Silent(), max(1, engine.context // 3)
    windows = heldout_windows(corpus, 2 * third, eval_tokens)[:, : 2 * third].numpy()
    scorer = _Scorer(engine, corpus, third, windows)
    kinds = list(product(PERTURBATIONS, rates))
    progress.start(STAGE, (1 + len(kinds)) * len(windows), "windows")
    plain, _ = scorer.nats(lambda text, window: text)
    size = token_bytes(corpus)[windows[:, third:]].sum(1)
    bpb, bpb_se = ratio(plain / math.log(2), size)
    shifts = []
    for number, (name, rate) in enumerate(kinds, start=1):
        progress.update(STAGE, number * len(windows), f"{name} {rate:g}")
        nats, lengths = scorer.nats(_changer(name, rate, seed))
        change, change_se = ratio((nats - plain) / math.log(2), size)
        shifts.append(Shift(
            perturbation=name, rate=rate, context_tokens=float(lengths.mean()), bpb=bpb + change,
            change=change, change_se=change_se,
        ))  # fmt: skip
    progress.finish(STAGE, f"{len(windows):,} windows")
    return Robustness(
        windows=len(windows), context_tokens=third, scored_tokens=len(windows) * third, bpb=bpb,
        bpb_se=bpb_se, shifts=tuple(shifts),
    )  # fmt: skip


def check_rates(rates: Sequence[float]) -> None:
    """Raises ProjectError for one outside (0, 1]."""
    if not all(0 < rate <= 1 for rate in rates):
        raise ProjectError(
            f"a rate of {', '.join(f'{r:g}' for r in rates)} is no share of the words",
            hint="give numbers above 0, up to 1",
        )


def _changer(name: str, rate: float, seed: int) -> Callable[[str, int], str]:
    """A perturbation whose randomness depends on the seed, its name and the window's number alone."""
    number = list(PERTURBATIONS).index(name)
    return lambda text, window: PERTURBATIONS[name](text, rate, np.random.default_rng((seed, number, window)))


class _Scorer:
    """Scores the second halves of the windows (n, 2t) after changed first halves."""

    def __init__(self, engine: Engine, corpus: Corpus, half: int, windows: NDArray[np.int64]) -> None:
        self._engine, self._end, self._tokenizer = engine, end_token(corpus), tokenizer(corpus)
        self._texts = [self._text(row[:half].tolist()) for row in windows]
        self._rest = [row[half:].tolist() for row in windows]

    def nats(self, change: Callable[[str, int], str]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Sums of the rests' losses, and tokens of the changed contexts."""
        found = np.empty(len(self._texts))
        lengths = np.empty(len(self._texts), np.int64)
        for i, (text, rest) in enumerate(zip(self._texts, self._rest, strict=True)):
            context = _encode(self._tokenizer, change(text, i), self._end)
            lengths[i], room = len(context), self._engine.context + 1 - len(rest)
            found[i] = token_nats(self._engine, [*context[-room:], *rest])[-len(rest) :].sum()
        return found, lengths

    def _text(self, ids: Sequence[int]) -> str:
        """Decoded, with a mark where a document ends."""
        parts: list[list[int]] = [[]]
        for token in ids:
            if token == self._end:
                parts.append([])
            else:
                parts[-1].append(token)
        return END.join(self._tokenizer.decode(part, skip_special_tokens=False) for part in parts)


def _encode(tokenizer: Tokenizer, text: str, end: int) -> list[int]:
    """Ids of a text with such marks; the end token alone where nothing is left."""
    ids: list[int] = []
    for i, part in enumerate(text.split(END)):
        ids += [end] * (i > 0) + tokenizer.encode(part, add_special_tokens=False).ids
    return ids or [end]
