"""The gate of an export: the engine must read, compute and write as the original does.

Shapes: t time, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from isoflop.corpus import heldout_documents, heldout_tokens
from isoflop.engines import Engine
from isoflop.errors import CorruptError
from isoflop.gpt import GPT
from isoflop.records import Corpus, Record

LINES = 1000
WINDOWS = 4
GREEDY_TOKENS = 64
PROMPT_TOKENS = 16
HINT = "report it with the model folder; nothing was kept"


class Parity(Record):
    """What was compared, and how close the logits were."""

    lines: int  # held-out lines with the same token ids
    logits: int  # compared
    deviation: float  # root mean square difference of logits, as a share of their standard deviation
    tolerance: float  # for it
    greedy: int  # tokens continued alike, up to a tie


def check(engine: Engine, reference: GPT, tokenizer: Tokenizer, corpus: Corpus, tolerance: float) -> Parity:
    """Compare an engine with the reference, whose weights are rounded alike.

    Token ids on held-out lines must be the same, logits on held-out windows within `tolerance`, and greedy
    text the same up to a token that is tied within that tolerance. Raises CorruptError with what differs.
    """
    lines = _same_ids(engine, tokenizer, corpus)
    windows = _windows(corpus, reference.config.context)
    theirs, ours = zip(*((_fed(engine, ids), _logits(reference, ids)) for ids in windows), strict=True)
    close = np.array([np.sqrt(((a - b) ** 2).mean()) / b.std() for a, b in zip(theirs, ours, strict=True)])
    if not close.max() <= tolerance:  # also when it is not a number
        position = int(np.abs(theirs[close.argmax()] - ours[close.argmax()]).max(1).argmax())
        raise CorruptError(
            f"the logits of {engine.name} differ from the original's by {close.max():.2%} of their spread, "
            f"{tolerance:.2%} are allowed; most at token {position} of held-out window {close.argmax()}",
            hint=HINT,
        )
    greedy = _same_text(engine, reference, windows, tolerance)
    return Parity(
        lines=lines, logits=sum(a.size for a in theirs), deviation=float(close.max()), tolerance=tolerance,
        greedy=greedy,
    )  # fmt: skip


def check_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor], tolerance: float) -> None:
    """Raises CorruptError naming the first tensor that a file does not hold as the model does.

    `tolerance` is for the root mean square difference, as a share of the tensor's root mean square.
    """
    for name, weight in before.items():
        wide = weight.double()
        difference = (after[name].double() - wide).square().mean().sqrt()
        if not difference <= tolerance * wide.square().mean().sqrt():  # also when it is not a number
            share = float(difference / wide.square().mean().sqrt())
            raise CorruptError(
                f"the tensor {name} in the file differs from the original's by {share:.2%} of its size, "
                f"{tolerance:.2%} are allowed",
                hint=HINT,
            )


def _same_ids(engine: Engine, tokenizer: Tokenizer, corpus: Corpus) -> int:
    """How many lines were compared."""
    lines = list(islice(_lines(corpus), LINES))
    for line in lines:
        ours, theirs = list(tokenizer.encode(line, add_special_tokens=False).ids), engine.encode(line)
        if ours != theirs:
            raise CorruptError(
                f"{engine.name} reads {line[:60]!r} as tokens {theirs[:12]}, the original as {ours[:12]}",
                hint=HINT,
            )
    return len(lines)


def _lines(corpus: Corpus) -> Iterator[str]:
    for document in heldout_documents(corpus):
        yield from (line for line in document.splitlines() if line)


def _windows(corpus: Corpus, context: int) -> list[list[int]]:
    """Evenly spread over the held-out text."""
    tokens = heldout_tokens(corpus)
    length = min(context, len(tokens))
    starts = np.linspace(0, len(tokens) - length, WINDOWS).astype(int)
    return [tokens[s : s + length].astype(int).tolist() for s in starts]


def _fed(engine: Engine, ids: Sequence[int]) -> NDArray[np.float32]:
    engine.reset()
    return engine.feed(ids, every=True)


@torch.no_grad()
def _logits(model: GPT, ids: Sequence[int]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = model.forward(torch.tensor([list(ids)]))[0].numpy()
    return found


def _same_text(engine: Engine, reference: GPT, windows: Sequence[Sequence[int]], tolerance: float) -> int:
    """Tokens that both continue the windows' beginnings with; a difference must be a tie."""
    alike = 0
    for window in windows:
        ids = list(window[:PROMPT_TOKENS])
        engine.reset()
        theirs = engine.feed(ids, every=False)[0]
        for _ in range(min(GREEDY_TOKENS, reference.config.context - len(ids))):
            ours = _logits(reference, ids)[-1]
            choice, other = int(ours.argmax()), int(theirs.argmax())
            if choice != other:
                if ours[choice] - ours[other] > 4 * tolerance * ours.std():
                    raise CorruptError(
                        f"{engine.name} continues {_ending(ids)} with token {other}, the original "
                        f"with {choice}",
                        hint=HINT,
                    )
                break
            alike += 1
            ids.append(choice)
            theirs = engine.feed([choice], every=False)[0]
    return alike


def _ending(ids: Sequence[int]) -> str:
    """The last tokens before a difference."""
    return f"tokens ... {' '.join(map(str, ids[-8:]))}"
