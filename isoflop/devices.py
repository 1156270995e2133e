"""Where a run computes: its device, and the processes (ranks) that share each of its batches.

On a CPU, processes of few threads, joined by torch.distributed, are faster and steadier than one process of
many threads (docs/LOG.md): small matrices give threads too little to do between two barriers.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist
from loky.process_executor import TerminatedWorkerError
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from isoflop import flops
from isoflop.errors import IsoflopError, TrainError
from isoflop.records import RunConfig
from isoflop.workers import cores, pool

MEMORY_SHARE = 0.5  # of the machine's, at most, for the copies of model and optimizers, and activations
PATIENCE = timedelta(days=1)  # ranks wait for one that scores, saves or is stopped; a dead one is noticed
GRACE_SECONDS = 3.0  # for the error behind a broken connection to arrive

Result = TypeVar("Result")


def device_for(name: str = "auto") -> torch.device:
    """CUDA, else MPS, else CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def whole_machine(config: RunConfig, most: int | None = None, memory: float | None = None) -> RunConfig:
    """`config` for a run that has the machine to itself: `most` cores and `memory` bytes, else those here.

    On a CPU the ranks and threads that use most cores, as far as batch rows and memory allow; rather ranks
    than threads.
    """
    most, rows = most or cores(), config.batch_tokens // config.model.context
    room = MEMORY_SHARE * (memory or psutil.virtual_memory().total)
    ranks = 1
    if device_for().type == "cpu" and dist.is_available():
        for r in range(2, min(most, rows) + 1):
            fits = flops.training_memory_bytes(config.model, config.batch_tokens, r) <= room
            if rows % r == 0 and fits and r * (most // r) >= ranks * (most // ranks):
                ranks = r
    return config.model_copy(update={"ranks": ranks, "threads": most // ranks})


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def run_ranks(ranks: int, task: Callable[[], Result]) -> Result:
    """Call `task` in `ranks` joined processes at once; returns what rank 0 did.

    Raises the first error of the task, and TrainError when one of the processes is killed.
    """
    with tempfile.TemporaryDirectory() as meeting, pool(ranks) as executor:
        try:
            futures = [
                executor.submit(_join_here, r, ranks, Path(meeting, "store"), task) for r in range(ranks)
            ]
            if (error := _first_error(futures)) is not None:
                raise error
        except TerminatedWorkerError:
            raise TrainError(
                f"one of the {ranks} processes of this run was killed",
                hint="look for a lack of memory, then run the same command again: it goes on where it was",
            ) from None
        result: Result = futures[0].result()
        return result


def _first_error(futures: list[Future[Result]]) -> BaseException | None:
    """What went wrong, once something did: one rank's error breaks the connections of the others."""
    first, left = wait(futures, return_when=FIRST_EXCEPTION)
    if all(f.exception() is None for f in first):
        return None
    later, _ = wait(left, timeout=GRACE_SECONDS)
    return root_cause([e for f in (*first, *later) if (e := f.exception()) is not None])


def root_cause(errors: Iterable[BaseException]) -> BaseException:
    """The error of one rank that broke the connections of the others."""
    # torch tells of a broken connection by a RuntimeError.
    return min(errors, key=lambda e: (not isinstance(e, IsoflopError), isinstance(e, RuntimeError)))


def _join_here(number: int, ranks: int, store: Path, task: Callable[[], Result]) -> Result | None:
    """In a worker: meet the others on this machine, then work."""
    meeting = dist.FileStore(str(store), ranks)  # type: ignore[attr-defined]
    return join(number, ranks, meeting, "127.", task)


def join(
    number: int,
    ranks: int,
    meeting: dist.Store,  # type: ignore[name-defined]
    address: str,
    task: Callable[[], Result],
) -> Result | None:
    """Be one of `ranks` processes that meet in a store, then work; only rank 0 reports.

    They talk over this machine's network interface whose address begins with `address`.
    """
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(address))
    dist.init_process_group("gloo", store=meeting, rank=number, world_size=ranks, timeout=PATIENCE)
    try:
        result = task()
    finally:
        dist.destroy_process_group()
    return result if number == 0 else None


def _interface(address: str) -> str:
    """Name of the network interface whose address begins so; else of the one that leads nowhere else."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family == socket.AF_INET and a.address.startswith(address) for a in addresses):
            return str(name)
    return "lo"


def joined() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized()


def world() -> int:
    """How many ranks share the run of this process."""
    return dist.get_world_size() if joined() else 1


def rank() -> int:
    """This process's number among the ranks of its run; 0 when it is alone."""
    return dist.get_rank() if joined() else 0


def average_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Replace every gradient, and the loss returned, by its mean over ranks; all get the same bits."""
    if not joined():
        return loss
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([parameters_to_vector(grads), loss.view(1)])
    dist.all_reduce(flat)
    flat /= world()
    vector_to_parameters(flat[:-1], grads)
    return flat[-1]


def agreed(value: int) -> int:
    """Rank 0's value, on every rank."""
    if not joined():
        return value
    shared = torch.tensor(value)
    dist.broadcast(shared, 0)
    return int(shared)
