"""Several models on the same held-out text, and the mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from isoflop.corpus import token_bytes
from isoflop.engines.reading import token_nats
from isoflop.errors import CorruptError, ProjectError
from isoflop.evaluate import heldout_windows, mean_se, ratio
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record
from isoflop.using import reading

STAGE = "compare"


class Member(Record):
    """A model, or the ensemble of all, beside the best single model."""

    name: str  # its path
    loss: float  # nats a token
    loss_se: float
    bpb: float
    bpb_se: float
    change: float  # its loss less that of the best, nats a token
    change_se: float  # over windows, which are paired; 0 of the best itself


class Comparison(Record):
    """Models of one tokenizer on the same windows."""

    windows: int
    context: int  # tokens a window: the shortest of the models' contexts
    members: tuple[Member, ...]  # in the order that was given
    best: int  # of them, with the lowest loss
    ensemble: Member | None = None


def compare(
    paths: Sequence[Path], corpus: Corpus, *, eval_tokens: int, ensemble: bool = False, threads: int = 1,
    progress: Progress | None = None,
) -> Comparison:  # fmt: skip
    """Score models, exported or not, on the same held-out windows, one model in memory at a time.

    The ensemble gives each token the mean of the models' probabilities, p(x) = sum_i p_i(x) / m. Windows are
    as long as the shortest of the contexts. Raises ProjectError for fewer than two models, and what opening
    them raises; CorruptError for one of another tokenizer, or without finite losses.
    """
    if len(paths) < 2:
        raise ProjectError("a comparison needs two models or more", hint="name their paths")
    progress = progress or Silent()
    contexts = []
    for path in paths:
        with reading(path, corpus) as engine:
            contexts.append(engine.context)
    windows = heldout_windows(corpus, min(contexts), eval_tokens).numpy()
    progress.start(STAGE, len(paths) * len(windows), "windows")
    nats_mnt = np.empty((len(paths), len(windows), min(contexts)))  # model, window, token
    for m, path in enumerate(paths):
        with reading(path, corpus, threads=threads) as engine:
            for i, row in enumerate(windows):
                nats_mnt[m, i] = token_nats(engine, row.tolist())
                if not np.isfinite(nats_mnt[m, i]).all():
                    raise CorruptError(
                        f"losses of {path} are not finite", hint="its weights are damaged: leave it out"
                    )
                progress.update(STAGE, m * len(windows) + i + 1, path.name)
    progress.finish(STAGE, f"{len(windows):,} windows")
    sums = nats_mnt.sum(2)
    size, best = token_bytes(corpus)[windows[:, 1:]].sum(1), int(sums.sum(1).argmin())
    names, context = [str(path) for path in paths], min(contexts)
    members = tuple(_member(n, s, sums[best], size, context) for n, s in zip(names, sums, strict=True))
    mixed = math.log(len(paths)) - logsumexp(-nats_mnt, axis=0) if ensemble else None
    return Comparison(
        windows=len(windows), context=context, members=members, best=best,
        ensemble=None if mixed is None else _member("ensemble", mixed.sum(1), sums[best], size, context),
    )  # fmt: skip


def _member(
    name: str, nats: NDArray[np.float64], best: NDArray[np.float64], size: NDArray[np.int64], context: int
) -> Member:
    """`nats`, `best`: sums over each window; `size`: its bytes."""
    bpb, bpb_se = ratio(nats / math.log(2), size)
    more = (nats - best) / context
    return Member(
        name=name, loss=float(nats.mean()) / context, loss_se=mean_se(nats / context), bpb=bpb, bpb_se=bpb_se,
        change=float(more.mean()), change_se=mean_se(more),
    )  # fmt: skip
