"""What a running server's model is worth, beside the ledger's row of it: `isoflop eval --live`.

The server is asked how likely held-out windows are that the ledger has the losses of. So both are compared
window by window, and what differs is the model, its engine or how it is served, not the text.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop import served
from isoflop.corpus import token_bytes
from isoflop.errors import ProjectError, ServeError
from isoflop.evaluate import HeldOut, heldout_windows, ratio
from isoflop.laws.intervals import student_t, tails
from isoflop.progress import Progress, Silent
from isoflop.records import Corpus, Interval, Record, digest
from isoflop.scoring import KIND as EVALUATION
from isoflop.scoring import Evaluation
from isoflop.serve.engines.http import TOO_LONG
from isoflop.serve.engines.remote import Remote
from isoflop.serve.protocol import EngineError, RequestError, Token
from isoflop.serve.screen import KEY
from isoflop.served import Served, now
from isoflop.store import Project

KIND, STAGE = "live", "live"
LEVEL = 0.9
TOLERANCE = 0.01  # share of the ledger's bits per byte that is no difference
REQUEST_TOKENS, REQUEST_WINDOWS = 4096, 64  # of a request at most, but one window in any case
LEAST_SHARE = 0.9  # of a window that has to fit into the server's context


class Live(Record):
    """A server's model beside a row of the ledger. Bits are per byte of held-out text."""

    id: str
    url: str  # without a password
    model: str  # the server's name of it
    engine: str
    served_hash: str  # of what runs, as the server says; "": it does not
    row_hash: str  # of the artifact that the ledger's row is of
    row_path: str
    corpus_id: str
    bits: Interval  # live; over windows
    row_bits: Interval  # of the same artifact in the ledger, on all of its windows
    difference: Interval  # live less the ledger's, of the same windows
    tolerance: float  # bits
    windows: int
    share: float  # of each window's tokens that were scored: the last may find no room
    same: bool
    why: str  # one sentence
    measured_at: str  # UTC, ISO 8601


class Row(NamedTuple):
    """What the ledger has of an artifact on the held-out text."""

    hash: str
    path: str
    bits: float
    bits_se: float
    losses: tuple[float, ...]  # of each window, nats a token
    eval_tokens: int
    context: int | None  # None: the row does not say


def row_of(project: Project, corpus: Corpus, hash: str) -> Row:
    """The last row of the artifact with this content. Raises ProjectError where there is none."""
    rows = [*_scored(project, corpus, hash), *_evaluated(project, corpus, hash)]
    if not rows:
        raise ProjectError(
            f"the ledger of {project.folder} has no score of the artifact {hash} on its held-out text",
            hint=f"isoflop eval ARTIFACT --project {project.folder} makes it; of an adapted model, name its "
            "examples with --data",
        )
    if len(rows[-1].losses) < 2:
        raise ProjectError(
            f"the ledger's score of {hash} is of one window, which tells nothing of chance",
            hint="score it on more text: isoflop eval ARTIFACT --tokens 1M",
        )
    return rows[-1]


def _scored(project: Project, corpus: Corpus, hash: str) -> Iterator[Row]:
    for row in project.all(served.KIND, Served):
        if (row.hash, row.corpus_id) == (hash, corpus.id) and row.bpb is not None and row.windows:
            se = row.bpb_se or math.nan
            yield Row(hash, row.path, row.bpb, se, row.windows, row.eval_tokens, None)


def _evaluated(project: Project, corpus: Corpus, hash: str) -> Iterator[Row]:
    for row in project.all(EVALUATION, Evaluation):
        if row.part == "loss" and row.corpus_id == corpus.id and row.artifacts[0].hash == hash:
            found = HeldOut(**row.result | {"windows": tuple(row.result["windows"])})
            if found.bpb is not None:
                yield Row(
                    hash, row.artifacts[0].path, found.bpb, found.bpb_se or math.nan, found.windows,
                    row.options["eval_tokens"], found.tokens // len(found.windows),
                )  # fmt: skip


@asynccontextmanager
async def asked(url: str) -> AsyncIterator[Remote]:
    """The server at an address, of which #MODEL names one of its models; the environment has the key.

    Raises ServeError for what it refuses or fails at, and where it does not answer.
    """
    address, _, model = url.partition("#")
    server = Remote(address, model=model or None, key_variable=KEY)
    await server.start()
    try:
        yield server
    except (EngineError, RequestError) as error:
        raise ServeError(f"{server.shown}: {error}", hint="look at the server's log") from None
    finally:
        await server.close()


def hash_of(server: Remote, hash: str | None) -> str:
    """Of the artifact to compare with: the one that was named, else what the server says that it runs."""
    said = said_hash(server)
    if hash is None and not said:
        raise ServeError(
            f"{server.shown} does not say which model it runs", hint="name the artifact: --live URL ARTIFACT"
        )
    return hash or said


def said_hash(server: Remote) -> str:
    """Of the model that the server runs, as it says; "": it does not."""
    return str(server.about.get("hash") or "")


def live(
    project: Project, corpus: Corpus, url: str, *, hash: str | None = None, windows: int = 64,
    tolerance: float = TOLERANCE, seed: int = 0, progress: Progress | None = None,
) -> Live:  # fmt: skip
    """Score as many held-out windows through the server, compare them with the ledger's, and keep the answer.

    `hash` names the artifact by its content; None: the one that the server says it runs. They differ where
    their hashes do, or where the interval of the difference lies beyond the tolerance, a share of the
    ledger's bits per byte. Raises ServeError for the server, ProjectError where the ledger has no such row.
    """
    return asyncio.run(_live(project, corpus, url, hash, windows, tolerance, seed, progress or Silent()))


async def _live(
    project: Project, corpus: Corpus, url: str, hash: str | None, windows: int, tolerance: float, seed: int,
    progress: Progress,
) -> Live:  # fmt: skip
    async with asked(url) as server:
        row = row_of(project, corpus, hash_of(server, hash))
        context = row.context or server.context
        ids = heldout_windows(corpus, context, row.eval_tokens).numpy()
        if len(ids) != len(row.losses):
            raise ServeError(
                f"{server.shown} has a context of {server.context} tokens, with which the ledger's row of "
                f"{row.hash} was not made",
                hint=f"serve it with its own context, or make a row: isoflop eval {row.path}",
            )
        chosen = np.sort(np.random.default_rng(seed).permutation(len(ids))[:windows])
        nats, share = await _nats(server, ids[chosen].tolist(), progress)
    known = np.array(row.losses)[chosen] * context
    bytes_ = token_bytes(corpus)[ids[chosen][:, 1:]].sum(1)
    bits, difference = (_interval(each / math.log(2), bytes_) for each in (nats, nats - known))
    allowed = tolerance * row.bits
    same, why = judged(server, row.hash, difference, allowed)
    found = Live(
        id=digest([server.shown, row.hash, corpus.id, seed, now(), nats.tolist()]), url=server.shown,
        model=server.about["id"], engine=server.about.get("engine", server.name),
        served_hash=said_hash(server), row_hash=row.hash, row_path=row.path, corpus_id=corpus.id, bits=bits,
        row_bits=_around(row.bits, row.bits_se, len(row.losses)),
        difference=difference, tolerance=allowed, windows=len(chosen), share=share, same=same, why=why,
        measured_at=now(),
    )  # fmt: skip
    project.put(KIND, found)
    return found


def judged(server: Remote, hash: str, difference: Interval, allowed: float) -> tuple[bool, str]:
    """Whether what is served is what the row is of, and why."""
    if (said := said_hash(server)) not in ("", hash):
        return False, f"the server runs the model {said}, and the row is of {hash}"
    if difference.low > allowed or difference.high < -allowed:
        more = "worse" if difference.value > 0 else "better"
        return False, f"what the server runs is {more} than the row by more than {allowed:.4f}"
    return True, "the same within the interval"


async def _nats(
    server: Remote, windows: list[list[int]], progress: Progress
) -> tuple[NDArray[np.float64], float]:
    """Of each window as a whole, and the share of its tokens that this was taken from."""
    predicted, size, found = len(windows[0]) - 1, 0, list[float]()
    progress.start(STAGE, float(len(windows)), "windows")
    together = max(1, min(REQUEST_WINDOWS, REQUEST_TOKENS // predicted))
    for start in range(0, len(windows), together):
        part = windows[start : start + together]
        told, size = await _scores(server, part, size)
        found += [-predicted * float(np.mean([token.logprob for token in tokens])) for tokens in told]
        progress.update(STAGE, len(found))
    progress.finish(STAGE, f"{len(found):,} windows")
    return np.array(found), (size - 1) / predicted


async def _scores(
    server: Remote, windows: Sequence[Sequence[int]], size: int
) -> tuple[list[list[Token]], int]:
    """Of as many of their first tokens as the server takes: `size`, where it is known.

    The last token has to be predicted only. Some servers have no room for it, others none for the one before.
    """
    whole = len(windows[0])
    room = min(whole, server.context + 1)
    sizes = [size] if size else [whole, room, room - 1, room - 2]
    for tokens in dict.fromkeys(sizes):
        if tokens - 1 < LEAST_SHARE * (whole - 1):
            break
        try:
            return await server.scores([window[:tokens] for window in windows]), tokens
        except RequestError as error:
            if error.code != TOO_LONG:
                raise
    raise ServeError(
        f"{server.shown} has a context of {server.context} tokens, too few for windows of {whole - 1}",
        hint="serve the model with its own context",
    )


def _interval(nats: Any, sizes: NDArray[np.int64]) -> Interval:
    value, se = ratio(nats, sizes)
    return _around(value, se, len(sizes))


def _around(value: float, se: float, windows: int) -> Interval:
    """Of a mean over windows, by Student's t."""
    margin = student_t(tails(LEVEL)[1], windows - 1) * se
    return Interval(value=value, low=value - margin, high=value + margin, level=LEVEL, of="windows")
