"""Training on a Ray cluster: Ray schedules, restarts and carries; the ledger and checkpoints are ours.

Every trunk is one Ray task that reserves `threads` CPUs, submitted in the order given (the ladder's is
longest first), a few more than fit at a time; of a tuning's every branch is one, submitted when those before
it have been judged. It trains as it does on one machine, in the project's folder, which must lie on storage
that every node mounts at the same path: what is lost with a process or a node is the work since its last
checkpoint, and the loss is the same to the last bit. Only the driver touches the ledger, and Optuna's study.

A run of several ranks is a placement group with a bundle of `threads` CPUs a rank, on one node where one has
room; the ranks meet by torch.distributed over TCP. Ray Train's TorchTrainer could start them as well, but its
Ctrl-C ends them unsaved, its restarts take an error of the run for a lost rank, and members of one rank would
stay tasks (docs/LOG.md, 2026-11-26).

Everything is for CPUs; isoflop must be installed on every node.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import ray

from isoflop import flops
from isoflop.branches import Keep
from isoflop.continued import Past
from isoflop.devices import whole_machine
from isoflop.errors import ProjectError, TrainError
from isoflop.identity import tokens_of_trunk
from isoflop.interrupt import heeded
from isoflop.jobs import RETRIES, flow
from isoflop.on_node import Job, stop_file
from isoflop.packed import TUNE, Asked, Take, folder_of, label_of
from isoflop.places import Place
from isoflop.progress import Progress, Silent
from isoflop.ray_alone import LOCAL
from isoflop.records import Corpus, Member, Run, RunConfig, Throughput, digest
from isoflop.store import Project, disk_errors
from isoflop.throughput import probe
from isoflop.train import CHECKPOINT_SECONDS, outcome, train_part
from isoflop.workers import cores

AHEAD = 2  # jobs in flight for each CPU: Ray has one to start at once, and an autoscaler sees what is wanted
FEWEST_IN_FLIGHT = 8
LOOK_SECONDS = 5.0  # between two looks at the size of the cluster
STORE_BYTES = 100 << 20  # of Ray on this machine: runs are records of some kilobytes
KNOCK_SECONDS = 10.0  # for the head node to answer


@contextmanager
def connected(address: str, progress: Progress) -> Iterator[Place]:
    """The Ray cluster at `address` ("local": one on this machine, for as long as the block lasts).

    In a process that is connected already, that cluster. Raises ProjectError when it cannot be reached or has
    no CPUs.
    """
    ours = not ray.is_initialized()
    if ours:
        progress.log(
            "starting Ray on this machine" if address == LOCAL else f"connecting to Ray at {address}"
        )
        _connect(address)
    try:
        yield Cluster().place()
    finally:
        if ours:
            ray.shutdown()


def _connect(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # else for ever
    options: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    if address == LOCAL:
        options |= {
            "num_cpus": cores(), "include_dashboard": False, "object_store_memory": STORE_BYTES
        }  # fmt: skip
    # Ray tells of retries on stdout, which is for results, and has no setting for that.
    ray._private.worker._worker_logs_enabled = False
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()
        ray.init(**options)
    except Exception as error:  # a plain Exception, too, where a node starts too slowly
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if address == LOCAL:
            raise ProjectError(
                f"Ray does not start on this machine: {why}",
                hint="run the same command again when the machine is less busy, or leave out --ray",
            ) from None
        raise ProjectError(
            f"the Ray cluster at {address} cannot be reached: {why}",
            hint="start one with `ray start --head`, check the address, or use --ray local",
        ) from None


class Cluster:
    """The cluster that this process is connected to; checkpoints are at least `checkpoint_seconds` apart.

    `train` is what each process of a run calls, with the arguments of `train_part`. Raises ProjectError when
    the cluster has no CPUs.
    """

    def __init__(
        self, checkpoint_seconds: float = CHECKPOINT_SECONDS, train: Callable[..., list[Run]] = train_part
    ) -> None:
        self.checkpoint_seconds, self._train_part = checkpoint_seconds, train
        nodes = _nodes()
        self.cpus = [_cpus(n) for n in nodes]  # of each node that is alive
        self._looked = time.monotonic()
        self.memory = max((n["Resources"].get("memory", 0.0) for n in nodes), default=0.0)
        names = sorted(n["NodeManagerHostname"] for n in nodes)
        self.machine = f"ray-{sum(self.cpus)}cpu-{digest(names)[:8]}"
        if not sum(self.cpus):
            raise ProjectError(
                "the Ray cluster has no CPUs", hint="start a node: ray start --address HEAD:6379"
            )

    def place(self) -> Place:
        """As the stages see it."""
        most = max(self.cpus)
        return Place(
            machine=self.machine,
            cores=sum(self.cpus),
            cores_alone=most,
            whole=partial(whole_machine, most=most, memory=self.memory),
            train_members=self.train_members,
            train_asked=self.train_asked,
            train=self.train,
            probe=self.probe,
            probe_alone=self.probe_alone,
        )

    # -- what a place does ----------------------------------------------------------------------------

    def train_members(
        self, project: Project, corpus: Corpus, members: Sequence[Member], packed: int, progress: Progress,
        pressed: Callable[[], bool],
    ) -> Iterator[tuple[Member, list[Run] | Exception]]:  # fmt: skip
        """As `packed.train_packed`, but as many side by side as the cluster has CPUs for.

        Yields a ProjectError for a node that does not see the project's folder.
        """
        jobs = [
            self._job(
                m.config, m.token_counts, corpus, folder_of(project, corpus, m), label=label_of(m),
                scale=m.flops / sum(tokens_of_trunk(m.token_counts, m.config)),
            )
            for m in members
        ]  # fmt: skip
        with _marked((project.folder / "runs").absolute()) as mark:
            for number, result in self.do(jobs, "ladder", progress, pressed, mark):
                if not isinstance(result, Exception):
                    progress.log(f"{jobs[number].label}: {outcome(result)}")
                yield members[number], result

    def train_asked(
        self, project: Project, corpus: Corpus, take: Take, workers: int, stage: str, progress: Progress,
        pressed: Callable[[], bool],
    ) -> Iterator[tuple[Asked, Run | Exception]]:  # fmt: skip
        """As `packed.train_asked`. Yields a ProjectError for a node that does not see the project."""
        begun: list[Asked] = []

        def following() -> Job | None:
            asked = take()
            if asked is None:
                return None
            begun.append(asked)
            m = asked.member
            return self._job(
                m.config, m.token_counts, corpus, folder_of(project, corpus, m), first=asked.branch + 1,
                label=asked.part, scale=flops.mean_flops_per_token(m.config), role=TUNE,
            )  # fmt: skip

        with _marked((project.folder / "runs").absolute()) as mark:
            room = partial(self._in_flight, progress, workers)
            for number, result in flow(following, room, stage, progress, pressed, mark):
                asked = begun[number]
                yield asked, result if isinstance(result, Exception) else result[asked.branch]

    def train(
        self, config: RunConfig, corpus: Corpus, folder: Path, *, role: str = "train",
        progress: Progress | None = None, keep: Keep = lambda model, run: None, past: Past | None = None,
    ) -> Run:  # fmt: skip
        """As `train.train`; `keep` is called on the node of the first rank. Raises TrainError to shard."""
        if config.shard:
            raise TrainError(
                "a sharded run does not go through Ray", hint="leave out --shard, or start it with torchrun"
            )
        progress, folder = progress or Silent(), folder.absolute()
        job = self._job(
            config, [config.tokens], corpus, folder, label="training", role=role, keep=keep, past=past
        )
        with heeded(progress) as pressed, _marked(folder.parent) as mark:
            progress.start("train", sum(tokens_of_trunk([config.tokens], config)), "tokens")
            (run,) = self._only(job, "train", progress, pressed, mark)
        progress.finish("train", outcome([run]))
        return cast(Run, run)

    def probe(self, corpus: Corpus, configs: Sequence[RunConfig], packed: int) -> Iterator[Throughput]:
        """As `throughput.probe_packed`."""
        jobs = [self._probe_job(c, corpus, packed, i) for i, c in enumerate(configs)]
        for _, result in self.do(jobs, "speed", Silent(), lambda: False):
            yield self._measured(result)

    def probe_alone(self, config: RunConfig, corpus: Corpus) -> Throughput:
        """As `throughput.probe_alone`."""
        job = self._probe_job(config, corpus, 1, 0)
        return self._measured(self._only(job, "speed", Silent(), lambda: False))

    def _measured(self, result: Any) -> Throughput:
        if isinstance(result, Exception):
            raise result
        assert isinstance(result, Throughput)
        return result.model_copy(update={"machine": self.machine})

    # -- jobs -----------------------------------------------------------------------------------------

    def _job(
        self, config: RunConfig, token_counts: Sequence[int], corpus: Corpus, folder: Path, *, label: str,
        first: int = sys.maxsize, scale: float = 1.0, role: str = "ladder",
        keep: Keep = lambda model, run: None, past: Past | None = None,
    ) -> Job:  # fmt: skip
        work = partial(
            self._train_part, config, token_counts, first, corpus, folder, role, "train",
            self.checkpoint_seconds, keep, past,
        )  # fmt: skip
        goes_on = 1 < first < sys.maxsize
        return Job(folder.name, label, work, scale, config.ranks, config.threads, folder, goes_on)

    def _probe_job(self, config: RunConfig, corpus: Corpus, packed: int, number: int) -> Job:
        work = partial(_probe, config, corpus, packed)
        return Job(f"{number}", "measuring", work, ranks=config.ranks, threads=config.threads)

    def _only(
        self, job: Job, stage: str, progress: Progress, pressed: Callable[[], bool], mark: Path | None = None
    ) -> Any:
        """What the only job of a stage hands back. Raises its error."""
        ((_, result),) = self.do([job], stage, progress, pressed, mark)
        if isinstance(result, Exception):
            raise result
        return result

    def do(
        self, jobs: Sequence[Job], stage: str, progress: Progress, pressed: Callable[[], bool],
        mark: Path | None = None,
    ) -> Iterator[tuple[int, Any]]:  # fmt: skip
        """The number of each job with what it hands back, or its error, as they finish.

        `mark` is a file that each must see before it starts. Raises TrainError for a job that has no room,
        Interrupted when `pressed`, once all that had begun are saved.
        """
        for ranks, threads in {(job.ranks, job.threads) for job in jobs}:
            self._check_fits(ranks, threads)
        following = partial(next, iter(jobs), None)
        yield from flow(following, partial(self._in_flight, progress), stage, progress, pressed, mark)

    def _in_flight(self, progress: Progress, most: int = sys.maxsize) -> int:
        """How many jobs Ray should hold, at most so many; looks now and then how large the cluster is."""
        if time.monotonic() - self._looked > LOOK_SECONDS:
            before, self.cpus = sum(self.cpus), [_cpus(n) for n in _nodes()]
            self._looked = time.monotonic()
            if sum(self.cpus) != before:
                progress.log(f"the cluster has {sum(self.cpus)} CPUs now, it had {before}")
        return min(most, max(FEWEST_IN_FLIGHT, AHEAD * sum(self.cpus)))

    def _check_fits(self, ranks: int, threads: int) -> None:
        if sum(cpus // threads for cpus in self.cpus) < ranks:
            raise TrainError(
                f"no room for {ranks} process(es) of {threads} CPUs on a Ray cluster with nodes of "
                + ", ".join(map(str, sorted(self.cpus, reverse=True)[:10])),
                hint="give fewer ranks or threads, or add larger nodes",
            )


def _probe(
    config: RunConfig, corpus: Corpus, packed: int, *, progress: Progress, stopping: Any
) -> Throughput:
    """A job's work: it neither reports nor stops."""
    return probe(config, corpus, packed=packed)


@contextmanager
def _marked(folder: Path) -> Iterator[Path]:
    """A file in the folder, which tells a node that it sees the driver's storage."""
    mark = folder / f".seen-{uuid.uuid4().hex}"
    with disk_errors(f"the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    try:
        yield mark
    finally:
        for file in (mark, stop_file(mark)):
            file.unlink(missing_ok=True)


def _nodes() -> list[dict[str, Any]]:
    return [n for n in ray.nodes() if n["Alive"]]  # type: ignore[no-untyped-call]


def _cpus(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))
