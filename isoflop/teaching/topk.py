"""The likeliest next tokens of a teacher, kept on disk: a window that is seen again costs a read.

Of each position the k highest log-probabilities are kept in 16 bits with their tokens, and one more for the
others, which share what is left evenly. Up to rounding the probabilities then differ from the teacher's by at
most twice the mass that is left, in L1, and so does a forward KL's gradient by the logits at temperature 1;
`left_out` measures both.

Shapes: b windows, t time, n = b*t positions, v vocabulary, k tokens kept.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from isoflop.errors import TrainError
from isoflop.store import disk_errors

TINY = 1e-12  # probability of all others together, at least: of a sum of 1 rounding may leave nothing
SMALL_VOCABULARY = 1 << 15  # torch's 16 bits have a sign
EMPTY, PROBES = 0, 16  # of the hash table: a free place, and places that a window may have


class Top(NamedTuple):
    """What is kept of each position."""

    tokens: Tensor  # (..., k)
    logp: Tensor  # (..., k + 1) in 16 bits; the last is that of each other token

    @classmethod
    def of(cls, logits_nv: Tensor, k: int) -> Top:
        logp_nv = logits_nv.log_softmax(1)
        best, tokens = logp_nv.topk(k)
        left = (1 - best.exp().sum(1, keepdim=True)).clamp_min(TINY)
        rest = (left / (logits_nv.shape[1] - k)).log()
        return cls(tokens.to(id_type(logits_nv.shape[1])), torch.cat([best, rest], 1).half())

    def logits(self, size: int, dtype: torch.dtype) -> Tensor:
        """(n, size) log-probabilities, up to rounding; of (n, ...)."""
        logp = self.logp.to(dtype)
        return logp[:, -1:].repeat(1, size).scatter_(1, self.tokens.long(), logp[:, :-1])


def id_type(vocabulary: int) -> torch.dtype:
    return torch.int16 if vocabulary <= SMALL_VOCABULARY else torch.int32


def left_out(logits_nv: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Of each position (n,) the probability of the tokens not kept, and the L1 distance to what is."""
    top = Top.of(logits_nv, k)
    p = logits_nv.softmax(1)
    kept = top.logits(logits_nv.shape[1], p.dtype).softmax(1)
    return 1 - p.gather(1, top.tokens.long()).sum(1), (p - kept).abs().sum(1)


class Memory:
    """Windows that a teacher has read, on disk: a hash table of fixed size, of which nothing is replaced.

    Processes of one machine may fill it at the same time. A window counts once its key is written, after the
    rest: a kill at any instant leaves no false one.
    """

    def __init__(self, folder: Path, *, max_bytes: float, context: int, k: int, vocabulary: int) -> None:
        kind = np.dtype("int16" if id_type(vocabulary) == torch.int16 else "int32")
        self.places = places_in(max_bytes, context, k, vocabulary)
        folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(folder / "lock")
        with self.lock:
            self.keys = _mapped(folder / "keys", np.dtype("uint64"), (self.places,))
            self.tokens = _mapped(folder / "tokens", kind, (self.places, context, k))
            self.logp = _mapped(folder / "logp", np.dtype("float16"), (self.places, context, k + 1))

    def recall(self, ids_bt: Tensor, ask: Callable[[Tensor], Top]) -> Top:
        """Of each position (b, t, ...); `ask` is asked of the windows that are not here, which are kept."""
        names = [_key(row) for row in ids_bt.cpu().numpy()]
        with self.lock:
            found = [self._place(name) for name in names]
            places = [0 if at is None else at for at, _ in found]
            known = self.tokens[places], self.logp[places]  # copies
        top = Top(*(torch.from_numpy(part).to(ids_bt.device) for part in known))
        missing = [i for i, (_, here) in enumerate(found) if not here]
        if not missing:
            return top
        new = ask(ids_bt[missing])
        top.tokens[missing], top.logp[missing] = new.tokens, new.logp
        with self.lock:
            for i, tokens, logp in zip(missing, new.tokens.cpu(), new.logp.cpu(), strict=True):
                at, here = self._place(names[i])
                if at is not None and not here:
                    self.tokens[at], self.logp[at] = tokens.numpy(), logp.numpy()
                    self.keys[at] = names[i]
        return top

    def _place(self, name: int) -> tuple[int | None, bool]:
        """Where a window is or could be (None: its places are taken), and whether it is there."""
        for step in range(PROBES):
            at = (name + step) % self.places
            key = int(self.keys[at])
            if key in (name, EMPTY):
                return at, key == name
        return None, False


def places_in(max_bytes: float, context: int, k: int, vocabulary: int) -> int:
    """How many windows can be kept. Raises TrainError for less than one."""
    places = int(max_bytes // bytes_a_window(context, k, vocabulary))
    if not places:
        raise TrainError(
            f"{max_bytes:,.0f} bytes do not hold one window of {context} tokens with {k} answers each",
            hint="give a larger --cache",
        )
    return places


def bytes_a_window(context: int, k: int, vocabulary: int) -> int:
    return 8 + context * (k * id_type(vocabulary).itemsize + 2 * (k + 1))


def _key(row: NDArray[np.int64]) -> int:
    """Names a window; never EMPTY."""
    return int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") or 1


def _mapped(path: Path, kind: np.dtype[Any], size: tuple[int, ...]) -> NDArray[Any]:
    """A file of zeros, or what was there, as an array; all of its room is taken at once.

    A full disk would end a process that writes to an array with a signal.
    """
    wanted = kind.itemsize * int(np.prod(size))
    with disk_errors(f"the teacher's answers in {path}"), path.open("ab") as file:
        if file.tell() != wanted:
            file.truncate(wanted)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, wanted)
    return np.memmap(path, kind, "r+", shape=size)
