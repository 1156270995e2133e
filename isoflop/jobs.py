"""The driver's side of jobs on a Ray cluster: a few in flight, the board read, results as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from isoflop.errors import LadderError, TrainError
from isoflop.interrupt import Interrupted
from isoflop.on_node import STOPPED, Board, Job, do, stop_file
from isoflop.progress import Progress, Tally

RETRIES = 3  # of a job whose process or node was lost
POLL_SECONDS = 0.5  # between two looks at the board, and whether Ctrl-C was pressed
READ_LOGS = "look for a lack of memory, and into Ray's logs on its nodes"


def flow(
    following: Callable[[], Job | None], in_flight: Callable[[], int], stage: str, progress: Progress,
    pressed: Callable[[], bool], mark: Path | None,
) -> Iterator[tuple[int, Any]]:  # fmt: skip
    """The number of each job with what it hands back, or its error, as they finish.

    `following` gives the next one, None while another must end before; Ray holds `in_flight` of them. `mark`
    is a file that each must see before it starts. Raises Interrupted when `pressed`, once all that had begun
    are saved.
    """
    board, tally, begun = _board(), Tally(), 0
    running: dict[Any, tuple[int, Any]] = {}  # by the task: the number of its job, its placement group
    read = 0.0
    try:
        while True:
            stop = pressed()
            if stop and mark is not None:
                stop_file(mark).touch()
            room = 0 if stop else in_flight()
            while len(running) < room and (job := following()) is not None:
                group = _group(job)
                running[_submit(job, board, mark, group)] = begun, group
                begun += 1
            if not running:
                break
            done, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            if not done or time.monotonic() - read > POLL_SECONDS:
                _show(board, tally, stage, progress, stop)
                read = time.monotonic()
            for task in done:
                number, group = running.pop(task)
                result = _result(task)
                _free(group)
                if result != STOPPED:
                    yield number, result
        _show(board, tally, stage, progress, stop)
    finally:
        if ray.is_initialized():  # else all ended with the connection, and a call would make a new one
            for task, (_, group) in running.items():
                ray.cancel(task, force=True)
                _free(group)
            ray.kill(board)
    if stop:
        raise Interrupted


def _submit(job: Job, board: Any, mark: Path | None, group: PlacementGroup | None) -> Any:
    """The task of a job; the first of several ranks reserves the first bundle of their group."""
    where = None if group is None else PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    options = {"num_cpus": job.threads, "max_retries": RETRIES, "name": job.label}
    return do.options(**options, scheduling_strategy=where).remote(job, board, mark, group)


def _result(task: Any) -> Any:
    """What a task that is over handed back, or its error."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else TrainError(str(error), hint=READ_LOGS)
    except OutOfMemoryError:
        return LadderError("no node had memory enough for it", hint="use larger nodes, or fewer CPUs a node")
    except RayError as error:
        return LadderError(
            f"its process or node was lost {RETRIES + 1} times ({type(error).__name__})", hint=READ_LOGS
        )


def _group(job: Job) -> PlacementGroup | None:
    """CPUs for all ranks of a job at once; of one node, where one has them."""
    if job.ranks == 1:
        return None
    group: PlacementGroup = placement_group([{"CPU": float(job.threads)}] * job.ranks, strategy="PACK")
    return group


def _free(group: PlacementGroup | None) -> None:
    if group is not None:
        remove_placement_group(group)


def _board() -> Any:
    """The board, on the driver's node, started again when it dies."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()


def _show(board: Any, tally: Tally, stage: str, progress: Progress, stop: bool) -> None:
    """Read the board and tell it whether jobs should stop."""
    try:
        posts, lines = ray.get(board.read.remote(stop))
    except RayActorError:  # it is being started again
        return
    for line in lines:
        progress.log(line)
    for job, (done, note) in posts.items():
        progress.update(stage, tally.set(job, done), note)
