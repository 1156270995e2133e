"""Worker processes that take jobs one by one: what comes next may depend on what has ended."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

from loky.process_executor import TerminatedWorkerError

from isoflop import flops
from isoflop.errors import TrainError
from isoflop.interrupt import Interrupted
from isoflop.packed import folder_of
from isoflop.progress import Address, Progress, Relay, gather
from isoflop.records import Corpus, Member, Run
from isoflop.store import Project
from isoflop.train import train_trunk
from isoflop.workers import pool

MOST_DEATHS = 2  # of the processes around a job, before it is given up
ROLE = "tune"


@dataclass(frozen=True)
class Job:
    """One branch of a trunk; those before it are trained already."""

    part: str  # what the progress is summed by
    number: int  # of the trial, or the seed
    member: Member
    branch: int  # its index in `member.token_counts`
    deaths: int = 0


Take = Callable[[], Job | None]
Tell = Callable[[Job, Run | TrainError], None]


@dataclass(frozen=True)
class Crew:
    """Worker processes of one thread each, on one corpus."""

    project: Project
    corpus: Corpus
    workers: int
    progress: Progress
    pressed: Callable[[], bool]  # of `interrupt.heeded`

    def work(self, stage: str, take: Take, tell: Tell) -> None:
        """Train what `take` gives and `tell` each run, until nothing is left nor running.

        A job whose loss is not finite, and one whose process was killed twice, is told with its error; other
        errors are raised. Raises Interrupted when `pressed`, once every job in training is saved.
        """
        lost = self._shift(stage, [], take, tell)
        while lost:
            again = []
            for job in lost:  # loky cannot tell which of them killed its worker
                if job.deaths + 1 < MOST_DEATHS:
                    again.append(replace(job, deaths=job.deaths + 1))
                else:
                    tell(job, TrainError("its process was killed", hint="look for a lack of memory"))
            lost = self._shift(stage, again, take, tell)
        if self.pressed():
            raise Interrupted

    def _shift(self, stage: str, first: list[Job], take: Take, tell: Tell) -> list[Job]:
        """Work until all is done or a worker dies; returns the jobs that were then in training or waiting."""
        running: dict[Future[Run], Job] = {}
        lost: list[Job] = []
        with gather(self.progress, stage, self.pressed) as address, pool(self.workers) as executor:
            while not lost:
                while len(running) < self.workers and not self.pressed():
                    job = first.pop() if first else take()
                    if job is None:
                        break
                    folder = folder_of(self.project, self.corpus, job.member)
                    try:
                        future = executor.submit(_train, job, self.corpus.folder, folder, stage, address)
                    except TerminatedWorkerError:  # a worker died since the last look
                        lost.append(job)
                        break
                    running[future] = job
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job, error = running.pop(future), future.exception()
                    if isinstance(error, TerminatedWorkerError):
                        lost.append(job)
                    elif error is None or isinstance(error, TrainError):
                        tell(job, error or future.result())
                    elif not isinstance(error, Interrupted):
                        raise error
        return [*lost, *running.values(), *first] if lost else []


def _train(job: Job, corpus_folder: Path, folder: Path, stage: str, address: Address) -> Run:
    """In a worker: one branch, from where the one before it left the trunk."""
    from isoflop.corpus import load_corpus

    member = job.member
    relay = Relay(address, job.part, flops.mean_flops_per_token(member.config))
    runs = train_trunk(
        member.config, member.token_counts, load_corpus(corpus_folder), folder, first=job.branch + 1,
        role=ROLE, progress=relay, stage=stage, stopping=relay.stopping,
    )  # fmt: skip
    return runs[job.branch]
