"""Checkpoints of a model that is shared out to ranks: a folder each, written by all, read by any number.

    checkpoint-000000123/__R_0.distcp    what rank R holds of each tensor (torch.distributed.checkpoint)
    checkpoint-000000123/.metadata       which part of which tensor lies where
    checkpoint-000000123/rest.pt         all that is not shared out, by rank 0

Like those of one file (`checkpoint`) they are written aside, synced and renamed, the index names whole ones
only with the hash of each of their files, and the last two are kept. All ranks call these functions together,
on a folder that all of them see.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from isoflop import checkpoint
from isoflop.checkpoint import Entry, State
from isoflop.devices import agreed, collected, rank, world
from isoflop.errors import TrainError
from isoflop.progress import Progress
from isoflop.store import atomic_write, disk_errors

REST = "rest.pt"
LIKE = {"sharded", "shape", "dtype"}  # what stands in `rest.pt` for a tensor that is shared out


def save(folder: Path, state: State, step: int) -> None:
    """Write `state` as checkpoint `step`; at every instant the index names only whole folders."""
    aside = folder / f".checkpoint-{step:09d}.tmp"
    if rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)  # of a killed writer
    agreed(0)
    try:
        files = _write(aside, state)
    except BaseException:
        if rank() == 0:  # a full disk has room again
            shutil.rmtree(aside, ignore_errors=True)
        raise
    if rank() == 0:
        named = {e["file"] for e in checkpoint.index(folder)}
        names = (f"checkpoint-{step:09d}" + ("" if i == 0 else f".{i}") for i in count())
        name = next(n for n in names if n not in named)
        shutil.rmtree(folder / name, ignore_errors=True)  # of a writer killed before it could name it
        aside.rename(folder / name)
        checkpoint.publish(folder, {"file": name, "files": files})
    agreed(0)


def _write(aside: Path, state: State) -> dict[str, str]:
    """Write `state` into a folder; returns the hash of each of its files."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.state_dict_saver import save as save_parts

    tensors: dict[str, Tensor] = {}
    rest = io.BytesIO()
    torch.save(_without(state, "", tensors), rest)
    with disk_errors(f"the checkpoint {aside}"):
        try:
            save_parts(tensors, storage_writer=_writer(aside))
        except CheckpointException as error:  # a BaseException that quotes those of all ranks
            raise RuntimeError(str(error)) from None
    if rank() == 0:
        atomic_write(aside / REST, rest.getvalue())  # last: it syncs the names of the others as well
    files = _hashes(aside, _from_first(sorted(path.name for path in aside.iterdir())))
    if "" in files.values():
        raise TrainError(
            f"the processes of this run do not see the same files in {aside.parent}",
            hint="keep the project on a disk that all machines share",
        )
    return files


def _writer(folder: Path) -> Any:
    """A FileSystemWriter that raises what the disk says.

    torch's archive, closed after the disk has refused, raises an error of its own, which is sent to the other
    ranks without the one before it.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter

    class Writer(FileSystemWriter):
        def write_data(self, plan: Any, planner: Any) -> Any:
            try:
                return super().write_data(plan, planner)
            except RuntimeError as error:
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    return Writer(folder)


def load(folder: Path, mesh: DeviceMesh, progress: Progress) -> State | None:
    """The newest whole checkpoint, shared out over `mesh`, or None when there never was one.

    Raises CorruptError when checkpoints exist and none of them is what was written.
    """

    def read(path: Path, entry: Entry) -> State | None:
        from torch.distributed.checkpoint.filesystem import FileSystemReader
        from torch.distributed.checkpoint.state_dict_loader import load as load_parts

        if _hashes(path, list(entry["files"])) != entry["files"]:
            return None
        tensors: dict[str, Tensor] = {}
        state: State = _with(torch.load(path / REST, weights_only=True), mesh, tensors)
        load_parts(tensors, storage_reader=FileSystemReader(path))
        return state

    return checkpoint.newest(folder, _from_first(checkpoint.index(folder)), read, progress)


def _from_first(value: list[Any]) -> list[Any]:
    """Rank 0's list: another machine may see a file or a folder's content later."""
    return collected(value)[0]


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of each file, "" of those that are not there; the ranks share the reading."""
    mine = {name: _hash(folder / name) for name in names[rank() :: world()]}
    return {name: found for part in collected(mine) for name, found in part.items()}


def _hash(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _without(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """`value` with a description in place of each tensor that is shared out, which goes to `tensors`."""
    from torch.distributed.tensor import DTensor

    if isinstance(value, DTensor):
        tensors[name] = value
        return {"sharded": name, "shape": list(value.shape), "dtype": value.dtype}
    if isinstance(value, dict):
        return {key: _without(part, f"{name}/{key}", tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_without(part, f"{name}/{i}", tensors) for i, part in enumerate(value)]
    return value


def _with(value: Any, mesh: DeviceMesh, tensors: dict[str, Tensor]) -> Any:
    """The reverse: `value` with empty tensors, shared out over `mesh` as FSDP does, which go to `tensors`."""
    from torch.distributed.tensor import Shard, empty

    if isinstance(value, dict) and value.keys() == LIKE:
        like = empty(*value["shape"], dtype=value["dtype"], device_mesh=mesh, placements=[Shard(0)])
        tensors[value["sharded"]] = like
        return like
    if isinstance(value, dict):
        return {key: _with(part, mesh, tensors) for key, part in value.items()}
    if isinstance(value, list):
        return [_with(part, mesh, tensors) for part in value]
    return value
