"""Packed token ids on a disk, read piece by piece."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from isoflop.errors import CorruptError

AGAIN = "Delete the folder, build the corpus again and run the same command again."


class Tokens:
    """The `count` token ids of a file; `tokens[begin:end]` is a copy of some, shape (end - begin,).

    They are read and not mapped: under a map, a file that somebody truncates, or a server that goes away,
    ends the process by SIGBUS. Raises CorruptError when ids cannot be read.
    """

    def __init__(self, path: Path, dtype: DTypeLike, count: int) -> None:
        self.path, self.dtype, self._count = path, np.dtype(dtype), count
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed with the last reference
        except OSError as error:
            raise self._unread(error) from None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> NDArray[np.unsignedinteger]:
        begin, end, _ = part.indices(self._count)
        ids = np.empty(max(0, end - begin), self.dtype)
        rest, at = ids.view(np.uint8).data, begin * self.dtype.itemsize
        while len(rest):
            try:
                got = os.preadv(self._file.fileno(), [rest], at)
            except OSError as error:
                raise self._unread(error) from None
            if not got:
                raise CorruptError(f"{self.path} was cut short while it was being read.", hint=AGAIN)
            rest, at = rest[got:], at + got
        return ids

    def _unread(self, error: OSError) -> CorruptError:
        return CorruptError(f"{self.path} cannot be read: {error.strerror}.", hint=AGAIN)
