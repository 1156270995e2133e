"""Worker processes for pure functions of one picklable task.

Unlike `multiprocessing`, a worker never imports the caller's main module, so a script needs no
`if __name__ == "__main__"` guard, and it ends by itself when its parent dies.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Self, TypeVar

from isoflop.errors import CorpusError

Task = TypeVar("Task")
Result = TypeVar("Result")


def serve() -> None:
    """The worker's loop: read `(function, task)` from stdin, write `(succeeded, result)` to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with results
    while True:
        try:
            function, task = pickle.load(source)
        except EOFError:
            return
        try:
            answer = (True, function(task))
        except Exception as error:
            answer = (False, error)
        pickle.dump(answer, sink)
        sink.flush()


class Pool:
    """`workers` processes; with one, everything runs in the caller's process."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def run(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[tuple[int, Result]]:
        """Yield `(index of the task, result)` as tasks finish; the first error ends the run."""
        if self._workers <= 1 or len(tasks) <= 1:
            yield from ((index, function(task)) for index, task in enumerate(tasks))
            return
        while len(self._processes) < min(self._workers, len(tasks)):
            self._processes.append(_start())
            self._idle.put(self._processes[-1])
        with ThreadPoolExecutor(len(self._processes)) as threads:
            futures = {threads.submit(self._call, function, task): i for i, task in enumerate(tasks)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self._kill()  # so that no thread waits for its worker
                raise

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def _call(self, function: Callable[[Task], Result], task: Task) -> Result:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, task), process.stdin)
            process.stdin.flush()
            succeeded, answer = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError) as error:
            raise CorpusError(
                f"A worker process ended unexpectedly (exit code {process.poll()}).",
                hint="The machine may be short of memory: use fewer workers.",
            ) from error
        self._idle.put(process)
        if not succeeded:
            raise answer
        return answer  # type: ignore[no-any-return]


def _start() -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        "TOKENIZERS_PARALLELISM": "false",  # the processes are the parallelism
        "RAYON_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", "from isoflop.corpus.pool import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
