"""Progress of long work, independent of who shows it: stages call it, the command line draws it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Connection, Listener
from typing import NamedTuple, Protocol

from isoflop.records import CurvePoint, RunConfig


class Live(NamedTuple):
    """A new point on the curve of a run that is being trained."""

    id: str  # that the run will have
    role: str
    config: RunConfig
    point: CurvePoint


class Progress(Protocol):
    """Something that shows how far the work is. `total` and `done` share one unit."""

    def start(self, stage: str, total: float, unit: str = "") -> None:
        """A stage begins."""

    def update(self, stage: str, done: float, note: str = "") -> None:
        """`done` units of the stage are finished, in all."""

    def finish(self, stage: str, note: str = "") -> None:
        """The stage is over."""

    def log(self, message: str) -> None:
        """One line for the reader."""

    def live(self, point: Live) -> None:
        """A run has come so far: for who keeps curves."""


class Silent:
    """Shows nothing: the default of the library."""

    def start(self, stage: str, total: float, unit: str = "") -> None: ...

    def update(self, stage: str, done: float, note: str = "") -> None: ...

    def finish(self, stage: str, note: str = "") -> None: ...

    def log(self, message: str) -> None: ...

    def live(self, point: Live) -> None: ...


class Tally:
    """The sum of what the parts of a stage have done, each of which says how much it has done in all."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}
        self.total = 0.0

    def set(self, part: str, done: float) -> float:
        """`part` has done so much; returns the sum."""
        self.total += done - self._done.get(part, 0.0)
        self._done[part] = done
        return self.total


Address = tuple[str, bytes]  # of a `gather`, and its key
LISTEN_SECONDS = 0.1  # after which a stop is passed on


class Relay:
    """In a worker process: sends one part's progress, in units of `scale`, to the parent's `gather`."""

    def __init__(self, address: Address, part: str, scale: float) -> None:
        self._part, self._scale = part, scale
        self._connection = Client(address[0], authkey=address[1])

    def _send(self, done: float | Live | None, text: str) -> None:
        with suppress(OSError):  # the parent is gone: its watcher ends this process
            self._connection.send((self._part, done, text))

    def start(self, stage: str, total: float, unit: str = "") -> None: ...

    def update(self, stage: str, done: float, note: str = "") -> None:
        self._send(done * self._scale, note)

    def finish(self, stage: str, note: str = "") -> None:
        self._send(None, f"{self._part}: {note}")

    def log(self, message: str) -> None:
        self._send(None, f"{self._part}: {message}")

    def live(self, point: Live) -> None:
        self._send(point, "")

    def stopping(self) -> bool:
        """Whether the parent wants this part to save itself and end."""
        return self._connection.poll()


@contextmanager
def gather(progress: Progress, stage: str, stopping: Callable[[], bool]) -> Iterator[Address]:
    """Sum what workers `Relay` into the progress of one stage; yields the address to give them.

    Once `stopping()` is true they are told to stop.
    """
    key = secrets.token_bytes(16)
    tally = Tally()
    lock = threading.Lock()

    def read(connection: Connection) -> None:
        told = False
        with suppress(EOFError, OSError):
            while True:
                if not told and stopping():
                    connection.send(None)
                    told = True
                if not connection.poll(LISTEN_SECONDS):
                    continue
                part, amount, text = connection.recv()
                with lock:
                    if amount is None:
                        progress.log(text)
                    elif isinstance(amount, Live):
                        progress.live(amount)
                    else:
                        progress.update(stage, tally.set(part, amount), text)

    with Listener(authkey=key) as listener:

        def accept() -> None:
            with suppress(OSError, EOFError):
                while True:
                    threading.Thread(target=read, args=(listener.accept(),), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield str(listener.address), key
