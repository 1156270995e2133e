"""Where a run computes: its device, and the processes (ranks) that share each of its batches.

On a CPU, processes of one thread each, joined by torch.distributed, are faster and steadier than the threads
of one process (docs/LOG.md): small matrices give threads too little to do between two barriers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import wait
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

MEMORY_SHARE = 0.5  # of the machine's, at most, for the copies of model, optimizers and activations

Result = TypeVar("Result")


def device_for(name: str = "auto") -> torch.device:
    """CUDA, else MPS, else CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def whole_machine(config: RunConfig) -> RunConfig:
    """`config` for a run that has the machine to itself.

    On a CPU as many ranks as cores, batch rows and memory allow, with the threads that are left to each.
    """
    most, rows = cores(), config.batch_tokens // config.model.context
    ranks = 1
    if device_for().type == "cpu" and dist.is_available():
        each = flops.training_memory_bytes(config.model, config.batch_tokens)
        fit = max(1, int(MEMORY_SHARE * psutil.virtual_memory().total / each))
        ranks = max(r for r in range(1, min(most, fit, rows) + 1) if rows % r == 0)
    return config.model_copy(update={"ranks": ranks, "threads": max(1, most // ranks)})


def run_ranks(ranks: int, task: Callable[[], Result]) -> Result:
    """Call `task` in `ranks` joined processes at once; returns what rank 0 did.

    Raises what the task raises, rank 0's first: an error of one rank breaks the others' connections.
    Raises TrainError when one of the processes is killed.
    """
    with tempfile.TemporaryDirectory() as meeting, pool(ranks) as executor:
        futures = [executor.submit(_join, r, ranks, Path(meeting, "store"), task) for r in range(ranks)]
        wait(futures)
        errors = [e for f in futures if (e := f.exception()) is not None]
        if any(isinstance(e, TerminatedWorkerError) for e in errors):
            raise TrainError(
                f"one of the {ranks} processes of this run was killed",
                hint="look for a lack of memory, then run the same command again: it goes on where it was",
            )
        if errors:
            raise next((e for e in errors if isinstance(e, IsoflopError)), errors[0])
        result: Result = futures[0].result()
        return result


def _join(rank: int, ranks: int, store: Path, task: Callable[[], Result]) -> Result | None:
    """In a worker: meet the others, then work; only rank 0 reports."""
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=ranks)
    try:
        result = task()
    finally:
        dist.destroy_process_group()
    return result if rank == 0 else None


def joined() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized()


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
    flat /= dist.get_world_size()
    vector_to_parameters(flat[:-1], grads)
    return flat[-1]


def agreed(value: int) -> int:
    """Rank 0's value, on every rank."""
    if not joined():
        return value
    shared = torch.tensor(value)
    dist.broadcast(shared, 0)
    return int(shared)
