"""Ctrl-C: the first lets the work save itself and end, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from isoflop.progress import Progress


class Interrupted(KeyboardInterrupt):
    """The work was asked to end, saved itself, and goes on when it is started again."""


@contextmanager
def heeded(progress: Progress) -> Iterator[Callable[[], bool]]:
    """In this block the first Ctrl-C only makes the function that it yields true: look, save, end.

    A second is a KeyboardInterrupt, and a third kills. Elsewhere than in the main thread, and in a process
    that ignores Ctrl-C, such as a worker, nothing changes.
    """
    presses = 0

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            raise KeyboardInterrupt
        progress.log("finishing this step and saving; Ctrl-C again ends at once")

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: presses > 0
    finally:
        signal.signal(signal.SIGINT, before)
