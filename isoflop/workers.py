"""Worker processes, by loky: no main-module guard needed, a killed worker is an error and not a hang."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from loky.process_executor import ProcessPoolExecutor


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """`workers` processes with one thread each, killed on the way out and when this process dies."""
    executor = ProcessPoolExecutor(
        workers, initializer=_begin, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": "1"}
    )
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=True, kill_workers=True)
        raise
    executor.shutdown(wait=True)


def _begin(parent: int) -> None:
    """Die with the parent: an orphan would go on writing what its successor writes too."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
