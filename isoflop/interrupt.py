"""Ctrl-C and SIGTERM: the first lets the work save itself and end; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from isoflop.progress import Progress

ASKING = (signal.SIGINT, signal.SIGTERM)  # what asks a process to end; a scheduler sends the latter
INTERRUPTED, TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM  # codes of processes that end so


class Interrupted(KeyboardInterrupt):
    """The work was asked to end, saved itself, and goes on when it is started again."""


class Terminated(SystemExit):
    """The same, asked by SIGTERM: the process ends with code 143, as a shell says of one that it killed."""


@contextmanager
def heeded(progress: Progress) -> Iterator[Callable[[], bool]]:
    """In this block the first Ctrl-C or SIGTERM only makes the function that it yields true: look, save, end.

    A Ctrl-C after it is a KeyboardInterrupt, and one more kills. A SIGTERM never does: schedulers repeat it
    while they wait, and kill when they have waited long enough. Elsewhere than in the main thread nothing
    changes, nor for a signal that the process ignores, as a worker does.

    Raises Terminated in place of Interrupted when the first was a SIGTERM.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if len(heard) == 1:
            progress.log("finishing this step and saving; Ctrl-C again ends at once")
        elif number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ASKING}
    changed = [number for number in ASKING if before[number] is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        changed = []
    for number in changed:
        signal.signal(number, hear)
    try:
        yield lambda: bool(heard)
    except Interrupted:
        if heard[:1] == [signal.SIGTERM]:
            raise Terminated(TERMINATED) from None
        raise
    finally:
        for number in changed:
            signal.signal(number, before[number])
