"""What runs on the nodes of a Ray cluster: one job with its ranks, and the board that jobs report to.

A job runs in Ray's worker process as `train_part` does here. Ray starts it again, on another node if need be,
when its process or its node dies, and it goes on from its checkpoint.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from filelock import FileLock, Timeout
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from isoflop.errors import ProjectError
from isoflop.interrupt import Interrupted
from isoflop.progress import Live, Silent

REPORT_SECONDS = 1.0  # between two reports of a job, each of which asks whether to stop
LOCK_SECONDS = 1.0  # between two looks whether to stop, while another process still holds a run's folder
STOPPED = "stopped"  # what a job that was told to stop hands back: a KeyboardInterrupt means more to Ray
LOST = 1  # exit code of a rank that has lost another


@dataclass(frozen=True)
class Job:
    """Something to do in `ranks` processes at once; `work(progress=, stopping=)` is called in each."""

    name: str  # unique among the jobs of a stage
    label: str  # what its lines of progress begin with
    work: Callable[..., Any]
    scale: float = 1.0  # of its progress, to the unit of the stage
    ranks: int = 1
    threads: int = 1  # of each rank
    folder: Path | None = None  # its checkpoints
    goes_on: bool = False  # it begins with some, which is no news


class Board:
    """An actor beside the driver: jobs post how far they are, the driver reads it and says when to stop.

    It keeps what was not read yet, so that little is lost when it dies and Ray starts it again.
    """

    def __init__(self) -> None:
        self._posts: dict[str, tuple[float, str]] = {}
        self._lines: list[str] = []
        self._stop = False

    def post(self, job: str, done: float, note: str) -> bool:
        """`done` units of the stage are finished by the job, in all; whether it should stop."""
        self._posts[job] = done, note
        return self._stop

    def say(self, line: str) -> None:
        self._lines.append(line)

    def read(self, stop: bool) -> tuple[dict[str, tuple[float, str]], list[str]]:
        """The posts of jobs and the lines since the last call."""
        posts, lines = self._posts, self._lines
        self._posts, self._lines, self._stop = {}, [], stop
        return posts, lines


class Report:
    """Progress of a job, posted to the board once in a while, and whether to stop as it answers.

    It never waits by `ray.get` or `ray.wait`: meanwhile Ray would give the job's CPUs to the next one.
    """

    def __init__(self, board: Any, job: Job) -> None:
        self._board, self._job = board, job
        self._stop, self._next = False, 0.0
        self._answer: Future[bool] | None = None
        self._unsaid: tuple[float, str] | None = None

    def start(self, stage: str, total: float, unit: str = "") -> None: ...

    def update(self, stage: str, done: float, note: str = "") -> None:
        self._unsaid = done * self._job.scale, note
        if self._answer is None and time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        """Post what is not posted yet."""
        if self._unsaid is not None:
            self._answer = self._board.post.remote(self._job.name, *self._unsaid).future()
            self._unsaid, self._next = None, time.monotonic() + REPORT_SECONDS

    def finish(self, stage: str, note: str = "") -> None: ...

    def live(self, point: Live) -> None:
        """Curves come with the finished run."""

    def log(self, message: str) -> None:
        self._board.say.remote(f"{self._job.label}: {message}")

    def stopping(self) -> bool:
        """Whether the driver wants this job to save itself and end, as far as is known."""
        if self._answer is not None and self._answer.done():
            try:
                self._stop = self._answer.result()
            except RayError:  # the board is being started again
                self._stop = False
            self._answer = None
        return self._stop


@ray.remote
def do(job: Job, board: Any, mark: Path | None, group: PlacementGroup | None) -> Any:
    """Do a job on this node, as its first rank; `mark` is a file that the driver made.

    Raises ProjectError when this node does not see it.
    """

    from isoflop.checkpoint import INDEX  # brings torch in, which the board does without

    def stopped() -> bool:
        return mark is not None and told_to_stop(mark)

    report = Report(board, job)
    try:
        if stopped():
            return STOPPED
        with _alone_in(job.folder, stopped):
            if job.folder is not None and not job.goes_on and (job.folder / INDEX).exists():
                report.log("goes on from its last checkpoint")
            if group is None:
                return job.work(progress=report, stopping=report.stopping)
            return _lead(job, report, group)
    except Interrupted:
        return STOPPED
    finally:
        report.flush()


def stop_file(mark: Path) -> Path:
    """Beside the driver's mark, once jobs are to begin no more: those that run hear of it by the board."""
    return mark.with_suffix(".stop")


def told_to_stop(mark: Path) -> bool:
    """Whether the driver has said so. Raises ProjectError when this node does not see its mark."""
    names = os.listdir(mark.parent) if mark.parent.is_dir() else []  # asks a file server anew
    if mark.name not in names:
        raise ProjectError(
            f"the node {socket.gethostname()} does not see the project's folder {mark.parent}",
            hint="keep the project (--project) on storage that every node mounts at the same path",
        )
    return stop_file(mark).name in names


@contextmanager
def _alone_in(folder: Path | None, stopping: Callable[[], bool]) -> Iterator[None]:
    """Be the only process that works in a run's folder: one whose driver or node is lost may still end."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    while True:
        try:
            lock.acquire(timeout=LOCK_SECONDS)
            break
        except Timeout:
            if stopping():
                raise Interrupted from None
    try:
        yield
    finally:
        lock.release()


# -- several ranks ------------------------------------------------------------------------------------


def _lead(job: Job, report: Report, group: PlacementGroup) -> Any:
    """Be rank 0: start the other ranks on the bundles of the group, meet them over TCP, work.

    Dies when one of them dies, so that Ray starts the job again; raises the first error of any.
    """
    import torch.distributed as dist

    from isoflop.devices import GRACE_SECONDS, PATIENCE, join, root_cause

    host = _address()
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, 0, job.ranks, is_master=True, wait_for_workers=False, timeout=PATIENCE
    )
    others = [
        _follow.options(
            num_cpus=job.threads, max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
        ).remote(job, rank, host, store.port)
        for rank in range(1, job.ranks)
    ]  # fmt: skip
    ended = threading.Event()
    threading.Thread(target=_watch, args=(others, ended), daemon=True).start()
    try:
        return join(0, job.ranks, store, host, lambda: job.work(progress=report, stopping=report.stopping))
    except Exception as error:
        ready, _ = ray.wait(others, num_returns=len(others), timeout=GRACE_SECONDS)
        raise root_cause([error, *filter(None, map(_error, ready))]) from None
    finally:
        ended.set()


@ray.remote
def _follow(job: Job, rank: int, host: str, port: int) -> None:
    """Be another rank, which says and hears nothing of its own."""
    import torch.distributed as dist

    from isoflop.devices import PATIENCE, join

    store = dist.TCPStore(host, port, job.ranks, is_master=False, timeout=PATIENCE)  # type: ignore[attr-defined]
    join(rank, job.ranks, store, _address(), lambda: job.work(progress=Silent(), stopping=lambda: False))


def _address() -> str:
    """Of this node in the network of the cluster."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def _watch(others: Sequence[Any], ended: threading.Event) -> None:
    """In a thread of rank 0, which may wait for a lost one for ever: end this process with it."""
    left = list(others)
    while left and not ended.is_set():
        ready, left = ray.wait(left, timeout=1.0)
        for ref in ready:
            if not ended.is_set():
                _error(ref)


def _error(rank: Any) -> BaseException | None:
    """What a rank raised; ends this process when that rank was lost."""
    try:
        ray.get(rank)
    except RayTaskError as error:
        cause = error.cause
        return cause if isinstance(cause, BaseException) else error
    except RayError:
        os._exit(LOST)
    return None
