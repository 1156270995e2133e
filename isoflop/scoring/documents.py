"""Perplexity of each held-out document."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from isoflop.corpus import end_token, heldout_spans, heldout_tokens, token_bytes, tokenizer
from isoflop.engines import Engine
from isoflop.engines.reading import token_nats
from isoflop.evaluate import ratio
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Record
from isoflop.store import HASH_DIGITS

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LINE_CHARS = 48
STAGE = "documents"


class Document(Record):
    """One held-out document."""

    hash: str  # first 16 hex digits of the SHA-256 of its text
    line: str  # its first one with a letter or digit, cut
    tokens: int  # predicted: its own and its end
    bytes: int
    loss: float  # nats a token
    perplexity: float  # e to the loss
    bpb: float  # bits per byte


class Documents(Record):
    """Held-out documents, each scored alone."""

    scored: tuple[Document, ...]  # the most surprising first
    documents: int  # in the held-out text
    tokens: int  # predicted
    bytes: int
    loss: float  # nats a token, of all tokens
    loss_se: float  # over documents, the unit that is sampled
    bpb: float
    bpb_se: float
    quantiles_perplexity: dict[str, float]  # over documents
    quantiles_bpb: dict[str, float]


def by_document(
    engine: Engine, corpus: Corpus, *, eval_tokens: int, seed: int = 0, progress: Progress | None = None
) -> Documents:
    """Score held-out documents one by one, of all as many as have `eval_tokens` tokens, drawn with `seed`.

    A document is read from the end token before it, in windows of the engine's context that do not overlap,
    and each of its tokens and the end token after it is predicted once. A document is read when it is scored.
    """
    progress = progress or Silent()
    spans, tokens, end = heldout_spans(corpus), heldout_tokens(corpus), end_token(corpus)
    decoder, sizes = tokenizer(corpus), token_bytes(corpus)
    chosen = _drawn(spans, eval_tokens, seed)
    progress.start(STAGE, float((spans[chosen, 1] - spans[chosen, 0] + 1).sum()), "tokens")
    found: list[Document] = []
    done = 0
    for begin, stop in spans[chosen].tolist():
        ids = tokens[begin:stop].astype(int).tolist()
        nats = _nats(engine, [end, *ids, end])
        text = decoder.decode(ids, skip_special_tokens=False)
        found.append(_document(text, int(sizes[ids].sum()), len(ids) + 1, nats))
        done += len(ids) + 1
        progress.update(STAGE, done)
    progress.finish(STAGE, f"{len(found):,} documents")
    return _together(found, len(spans))


def _drawn(spans: NDArray[np.int64], eval_tokens: int, seed: int) -> NDArray[np.int64]:
    """Documents in a random order while they have `eval_tokens` tokens at most together, one at least."""
    order = np.random.default_rng(seed).permutation(len(spans))
    sums = np.cumsum(spans[order, 1] - spans[order, 0] + 1)
    return np.sort(order[: max(1, int(np.searchsorted(sums, eval_tokens, side="right")))])


def _nats(engine: Engine, ids: list[int]) -> float:
    """Of all of these tokens but the first, each seeing those before it in its window."""
    starts = range(0, len(ids) - 1, engine.context)
    return math.fsum(float(token_nats(engine, ids[s : s + engine.context + 1]).sum()) for s in starts)


def _document(text: str, size: int, tokens: int, nats: float) -> Document:
    line = next((line for line in map(str.strip, text.splitlines()) if any(map(str.isalnum, line))), "")
    return Document(
        hash=hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS], line=line[:LINE_CHARS], tokens=tokens,
        bytes=size, loss=nats / tokens, perplexity=math.exp(nats / tokens), bpb=nats / math.log(2) / size,
    )  # fmt: skip


def _together(found: list[Document], of: int) -> Documents:
    counts = np.array([d.tokens for d in found])
    sizes = np.array([d.bytes for d in found])
    nats = np.array([d.loss for d in found]) * counts
    loss, loss_se = ratio(nats, counts)
    bpb, bpb_se = ratio(nats / math.log(2), sizes)
    return Documents(
        scored=tuple(sorted(found, key=lambda d: -d.perplexity)), documents=of, tokens=int(counts.sum()),
        bytes=int(sizes.sum()), loss=loss, loss_se=loss_se, bpb=bpb, bpb_se=bpb_se,
        quantiles_perplexity=_quantiles([d.perplexity for d in found]),
        quantiles_bpb=_quantiles([d.bpb for d in found]),
    )  # fmt: skip


def _quantiles(values: list[float]) -> dict[str, float]:
    found = np.quantile(values, QUANTILES)
    return {f"{q:g}": float(value) for q, value in zip(QUANTILES, found, strict=True)}
