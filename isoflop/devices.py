"""Where a run computes: its device, and the processes (ranks) that share each of its batches.

On a CPU, processes of few threads, joined by torch.distributed, are faster and steadier than one process of
many threads (docs/LOG.md): small matrices give threads too little to do between two barriers. They are
started here, or by torchrun (`launched`), then also on several machines.
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
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from loky.process_executor import TerminatedWorkerError
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from isoflop import flops, launched
from isoflop.errors import IsoflopError, TrainError
from isoflop.options import check_options
from isoflop.precision import cpu_capabilities, has_bf16_units
from isoflop.records import RunConfig
from isoflop.workers import cores, pool

MEMORY_SHARE = 0.5  # of the machine's, at most, for the copies of model and optimizers, and activations
# Ranks wait for one that saves or is stopped, torchrun's for all that rank 0 does; a dead one is noticed.
PATIENCE = timedelta(days=30)
LOOPBACK = "127."  # how addresses begin that lead nowhere else
GRACE_SECONDS = 3.0  # for the error behind a broken connection to arrive

Result = TypeVar("Result")


def device_for(name: str = "auto") -> torch.device:
    """CUDA, else MPS, else CPU. Of torchrun's processes on one machine each has a CUDA device of its own.

    Ranks never meet on MPS, for which torch.distributed has no backend. Raises TrainError when torchrun
    started more processes than there are CUDA devices.
    """
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda", _local_rank(torch.cuda.device_count()))
    return torch.device("mps" if torch.backends.mps.is_available() and not joined() else "cpu")


def _local_rank(devices: int) -> int:
    """Number of this process among those of torchrun on this machine."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if local >= devices:
        raise TrainError(
            f"torchrun started process {local + 1} on a machine with {devices} CUDA devices",
            hint=f"give --nproc-per-node {devices}",
        )
    return local


def _backend(device: torch.device) -> str:
    """Of torch.distributed, by the device that a tensor is on: what is agreed upon stays on the CPU."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def whole_machine(
    config: RunConfig, most: int | None = None, memory: float | None = None, beside: float = 0.0
) -> RunConfig:
    """`config` for a run that has the machine to itself, or all of torchrun's processes.

    The machine has `most` cores and `memory` bytes, else those here. Each rank holds `beside` bytes more than
    training takes, as of teachers.

    On a CPU the ranks and threads that use most cores, as far as batch rows and memory allow; rather ranks
    than threads. Raises TrainError for options that cannot be.
    """
    check_options(config)
    most, rows = most or cores(), config.batch_tokens // config.model.context
    if launched.group() is not None:
        layout = {"ranks": world(), "threads": max(1, most // launched.on_this_machine())}
        return config.model_copy(update=layout)
    room = MEMORY_SHARE * (memory or psutil.virtual_memory().total)
    ranks = 1
    if device_for().type == "cpu" and dist.is_available():
        for r in range(2, min(most, rows) + 1):
            held = flops.training_memory_bytes(config, 1 if config.shard else r) + r * beside
            if (
                rows % (r * config.accumulate) == 0
                and held <= room
                and r * (most // r) >= ranks * (most // ranks)
            ):
                ranks = r
    return config.model_copy(update={"ranks": ranks, "threads": most // ranks})


def present(config: RunConfig) -> RunConfig:
    """`config`, planned here or elsewhere, on the processes of this command: torchrun's, or one on a GPU."""
    gpu = config.ranks > 1 and device_for().type != "cpu"
    return whole_machine(config) if gpu or launched.group() is not None else config


def preferred_precision() -> str:
    """What the recipe trains our decoder in here: bf16 where products are much faster in it.

    That is on GPUs with bf16 units, and on CPUs with AMX (1.4 times the training speed at N = 0.6M, 2 at 12M)
    or AVX-512's dot products (1.3 at 0.4M, 1.7 at 12M; docs/LOG.md). Other units for bf16 were not measured.
    By what the machine has, not by timing it: the same command must come to the same run.
    """
    device = device_for()
    if device.type == "cpu":
        fast = any(cpu_capabilities().get(units) for units in ("amx_bf16", "avx512_bf16"))
    else:
        fast = device.type == "cuda" and has_bf16_units(device)
    return "bf16" if fast else "float32"


def has_compiler() -> bool:
    """Whether there is a C++ compiler, which torch.compile needs on a CPU."""
    return any(map(shutil.which, ("c++", "g++", "clang++")))


def in_group(config: RunConfig) -> bool:
    """Whether a run takes joined processes: several, or one that could hold its shard of several."""
    return config.ranks > 1 or config.shard


def run_ranks(ranks: int, task: Callable[[], Result], *, fresh: bool = False) -> Result:
    """Call `task` in `ranks` joined processes at once, torchrun's where there are; returns what rank 0 did.

    A task that uses DTensors takes `fresh` processes: torch caches where in a mesh a process is, and one that
    had another rank in the group before would compute with other ranks' parts.

    Raises the first error of the task, and TrainError when one of the processes is killed.
    """
    if (group := launched.group()) is not None:
        return group.share(task)
    with tempfile.TemporaryDirectory() as meeting, pool(ranks, fresh=fresh) as executor:
        try:
            futures = [
                executor.submit(_join_here, r, ranks, Path(meeting, "store"), task) for r in range(ranks)
            ]
            if (error := _first_error(futures)) is not None:
                raise error
        except TerminatedWorkerError:
            raise launched.killed(ranks) from None
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
    return join(number, ranks, meeting, LOOPBACK, task)


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
    backend = _backend(device_for())
    dist.init_process_group(backend, store=meeting, rank=number, world_size=ranks, timeout=PATIENCE)
    try:
        result = task()
    finally:
        dist.destroy_process_group()
    return result if number == 0 else None


def take_part(command: Callable[[], int]) -> int:
    """In a process of torchrun: run `command` as rank 0, or serve it as another. Returns the exit code.

    Raises what another rank than 0 was the first to raise, on that rank.
    """
    store, number, ranks = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
    group = launched.enter(store, number)
    try:
        with group.speaking_once():
            device = device_for()
            if device.type == "cuda":
                torch.cuda.set_device(device)
            if launched.on_this_machine() == ranks:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(LOOPBACK))
            dist.init_process_group(
                _backend(device), store=store, rank=number, world_size=ranks, timeout=PATIENCE
            )
        return group.lead(command) if number == 0 else group.serve()
    finally:
        if group.whole:
            dist.destroy_process_group()


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


def average_gradients(model: nn.Module, loss: Tensor, *, sharded: bool = False) -> Tensor:
    """Replace every gradient, and the loss returned, by its mean over ranks; all get the same bits.

    Gradients that are sharded (`parallel.shard`) have become means in the backward pass.
    """
    if not joined():
        return loss
    grads = [p.grad for p in model.parameters() if p.grad is not None and not sharded]
    flat = torch.cat([*(g.reshape(-1) for g in grads), loss.view(1)])
    dist.all_reduce(flat)
    flat /= world()
    vector_to_parameters(flat[:-1], grads)
    return flat[-1]


def agreed(value: int) -> int:
    """Rank 0's value, on every rank, none of which goes on before rank 0 has come here."""
    if not joined():
        return value
    shared = torch.tensor(value)
    dist.broadcast(shared, 0)
    return int(shared)


def any_rank(*wishes: bool) -> tuple[bool, ...]:
    """Of each wish, whether any rank has it."""
    shared = torch.tensor(wishes, dtype=torch.uint8)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(map(bool, shared))


def summed(x: Tensor) -> Tensor:
    """The sum over ranks."""
    if joined():
        dist.all_reduce(x)
    return x


def gathered(part: Tensor) -> Tensor:
    """The parts (n, ...) that ranks have, of equal shape, one after another: (ranks * n, ...)."""
    parts = [torch.empty_like(part) for _ in range(world())]
    dist.all_gather(parts, part)
    return torch.cat(parts)


def collected(part: Result) -> list[Result]:
    """What every rank gives, by rank."""
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, part)
    return parts
