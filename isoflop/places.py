"""Where runs are trained: on this machine, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from isoflop.devices import whole_machine
from isoflop.errors import ProjectError
from isoflop.packed import TrainAsked, TrainMembers, train_asked, train_packed
from isoflop.progress import Progress
from isoflop.ray_alone import LOCAL, ray_alone
from isoflop.records import Corpus, RunConfig, Throughput
from isoflop.throughput import machine, probe_alone, probe_packed
from isoflop.train import Train, train
from isoflop.workers import cores


@dataclass(frozen=True)
class Place:
    """What the stages ask of the machines that train."""

    machine: str  # what a speed is measured on
    cores: int  # of all machines: so many members go side by side
    cores_alone: int  # of the machine that a run may have to itself
    whole: Callable[[RunConfig], RunConfig]  # the layout of such a run
    train_members: TrainMembers
    train_asked: TrainAsked
    train: Train
    probe: Callable[[Corpus, Sequence[RunConfig], int], Iterator[Throughput]]  # of so many side by side
    probe_alone: Callable[[RunConfig, Corpus], Throughput]


def here() -> Place:
    """This machine."""
    return Place(
        machine(), cores(), cores(), whole_machine, train_packed, train_asked, train, probe_packed,
        probe_alone,
    )  # fmt: skip


@contextmanager
def place_at(ray: str | None, progress: Progress) -> Iterator[Place]:
    """This machine when `ray` is None, else the Ray cluster at that address ("local": Ray on this machine).

    Raises ProjectError when Ray is not installed, or the cluster cannot be reached.
    """
    if ray is None:
        yield here()
        return
    with ray_alone() if ray == LOCAL else nullcontext():
        try:
            from isoflop.cluster import connected
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise ProjectError("Ray is not installed here", hint="pip install 'isoflop[ray]'") from None
        with connected(ray, progress) as place:
            yield place
