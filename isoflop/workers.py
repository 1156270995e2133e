"""Worker processes, by loky: no main-module guard needed, a killed worker is an error and not a hang."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from functools import cache
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TypeVar

from loky import ProcessPoolExecutor, get_reusable_executor

from isoflop.interrupt import ASKING

# The processes are the parallelism.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

IDLE_SECONDS = 60

# A worker that has grown is replaced between two tasks, which is no news to the user.
warnings.filterwarnings("ignore", message="A worker was restarted", category=UserWarning)

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(workers: int, *, fresh: bool = False) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes with one thread each, killed when the block fails and when this process dies.

    They are kept for the next block for a while, unless that wants `fresh` ones: importing torch takes them
    seconds.
    """
    executor = get_reusable_executor(
        workers, timeout=IDLE_SECONDS, initializer=_begin, initargs=(_life()[0],), env=ONE_THREAD,
        reuse=False if fresh else "auto",
    )  # fmt: skip
    with _unheard():
        executor._ensure_executor_running()  # starts the processes, which loky does at the first task
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=True, kill_workers=True)
        raise


@contextmanager
def _unheard() -> Iterator[None]:
    """What starts in this block is deaf to what asks to end from birth; this process hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@cache
def _life() -> tuple[Connection, Connection]:
    """A pipe whose second end this process alone holds, for as long as it lives; workers watch the first."""
    return Pipe(duplex=False)


def stream(
    function: Callable[[Task], Result], tasks: Sequence[Task], workers: int
) -> Iterator[tuple[int, Result]]:
    """Yield `(index of the task, result)` as tasks finish, few of them in flight; the first error ends it.

    With one worker, or one task, everything runs in this process.
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        yield from enumerate(map(function, tasks))
        return
    left = iter(enumerate(tasks))
    running: dict[Future[Result], int] = {}
    with pool(workers) as executor:
        while True:
            for index, task in islice(left, 2 * workers - len(running)):
                running[executor.submit(function, task)] = index
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()


def _begin(parent: Connection) -> None:
    """Leave Ctrl-C and SIGTERM to the parent and die with it: an orphan would go on writing what its
    successor writes."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        parent.poll(None)  # until the other end closes, which nobody else holds
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
