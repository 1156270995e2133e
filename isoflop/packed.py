"""Trunks, or single branches of them, trained side by side in worker processes, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import dataclass, replace
from pathlib import Path

from loky.process_executor import TerminatedWorkerError

from isoflop import flops
from isoflop.errors import LadderError, TrainError
from isoflop.identity import tokens_of_trunk, trunk_id
from isoflop.interrupt import Interrupted
from isoflop.progress import Address, Progress, Relay, gather
from isoflop.records import Corpus, Member, Run, digest
from isoflop.store import Project
from isoflop.train import train_trunk
from isoflop.workers import pool

# As `train_packed` does, here or on a cluster.
TrainMembers = Callable[
    [Project, Corpus, Sequence[Member], int, Progress, Callable[[], bool]],
    Iterator[tuple[Member, list[Run] | Exception]],
]

MOST_DEATHS = 2  # of the processes around a branch, before it is given up
TUNE = "tune"  # the role of runs that are asked for one by one


@dataclass(frozen=True)
class Asked:
    """One branch of a trunk; those before it are trained already."""

    part: str  # what the progress is summed by
    number: int  # of the trial, or the seed
    member: Member
    branch: int  # its index in `member.token_counts`
    deaths: int = 0


Take = Callable[[], Asked | None]  # what to train next; None: nothing before another has ended

# As `train_asked` does, here or on a cluster.
TrainAsked = Callable[
    [Project, Corpus, Take, int, str, Progress, Callable[[], bool]], Iterator[tuple[Asked, Run | Exception]]
]


def label_of(member: Member) -> str:
    """What its lines of progress begin with."""
    return f"{member.params:,} parameters, seed {member.config.seed}"


def folder_of(project: Project, corpus: Corpus, member: Member) -> Path:
    """Where a member keeps its checkpoints: another ladder may want other branches of the same trunk."""
    name = digest([trunk_id(member.config, corpus), member.token_counts])
    return (project.folder / "runs" / name).absolute()


def train_packed(
    project: Project, corpus: Corpus, members: Sequence[Member], packed: int, progress: Progress,
    pressed: Callable[[], bool],
) -> Iterator[tuple[Member, list[Run] | Exception]]:  # fmt: skip
    """Each member with its runs or its error, as they finish; a dead worker costs only its own member.

    Raises Interrupted when `pressed` (of `interrupt.heeded`), once every member in training is saved.
    """
    left = list(members)
    while left:
        broken = False
        with gather(progress, "ladder", pressed) as address, pool(min(packed, len(left))) as executor:
            futures: dict[Future[list[Run]], Member] = {
                executor.submit(_train_member, m, corpus.folder, folder_of(project, corpus, m), address): m
                for m in left
            }
            for future in as_completed(futures):
                if future.cancelled():
                    continue
                member, error = futures[future], future.exception()
                if isinstance(error, Interrupted):
                    for waiting in futures:
                        waiting.cancel()
                elif isinstance(error, TerminatedWorkerError):
                    broken = True
                else:
                    left.remove(member)
                    yield member, error if isinstance(error, Exception) else future.result()
        if pressed():
            raise Interrupted
        if broken:
            # loky cannot tell which member killed its worker: the longest that is left is given up.
            yield left.pop(0), LadderError("its process was killed", hint="look for a lack of memory")


def _train_member(member: Member, corpus_folder: Path, folder: Path, address: Address) -> list[Run]:
    """In a worker: one trunk with its branches."""
    from isoflop.corpus import load_corpus

    scale = member.flops / sum(tokens_of_trunk(member.token_counts, member.config))
    relay = Relay(address, label_of(member), scale)
    corpus = load_corpus(corpus_folder)
    return train_trunk(
        member.config, member.token_counts, corpus, folder, progress=relay, stopping=relay.stopping
    )


def train_asked(
    project: Project, corpus: Corpus, take: Take, workers: int, stage: str, progress: Progress,
    pressed: Callable[[], bool],
) -> Iterator[tuple[Asked, Run | Exception]]:  # fmt: skip
    """What `take` gives, each with its run or its error, as they finish, until nothing is left nor running.

    `take` is asked again when one has ended: what comes next may depend on it. A branch whose process was
    killed goes on from its checkpoint, and is given up when that happens again. Raises Interrupted when
    `pressed`, once every branch in training is saved.
    """
    lost = yield from _shift(project, corpus, [], take, workers, stage, progress, pressed)
    while lost:
        again = []
        for asked in lost:  # loky cannot tell which of them killed its worker
            if asked.deaths + 1 < MOST_DEATHS:
                again.append(replace(asked, deaths=asked.deaths + 1))
            else:
                yield asked, TrainError("its process was killed", hint="look for a lack of memory")
        lost = yield from _shift(project, corpus, again, take, workers, stage, progress, pressed)
    if pressed():
        raise Interrupted


def _shift(
    project: Project, corpus: Corpus, first: list[Asked], take: Take, workers: int, stage: str,
    progress: Progress, pressed: Callable[[], bool],
) -> Generator[tuple[Asked, Run | Exception], None, list[Asked]]:  # fmt: skip
    """Until all is done or a worker dies; returns what was then in training or waiting."""
    running: dict[Future[Run], Asked] = {}
    lost: list[Asked] = []
    with gather(progress, stage, pressed) as address, pool(workers) as executor:
        while not lost:
            while len(running) < workers and not pressed():
                asked = first.pop() if first else take()
                if asked is None:
                    break
                folder = folder_of(project, corpus, asked.member)
                try:
                    future = executor.submit(_train_branch, asked, corpus.folder, folder, stage, address)
                except TerminatedWorkerError:  # a worker died since the last look
                    lost.append(asked)
                    break
                running[future] = asked
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                asked, error = running.pop(future), future.exception()
                if isinstance(error, TerminatedWorkerError):
                    lost.append(asked)
                elif not isinstance(error, Interrupted):
                    yield asked, error if isinstance(error, Exception) else future.result()
    return [*lost, *running.values(), *first] if lost else []


def _train_branch(asked: Asked, corpus_folder: Path, folder: Path, stage: str, address: Address) -> Run:
    """In a worker: one branch, from where the one before it left the trunk."""
    from isoflop.corpus import load_corpus

    member = asked.member
    relay = Relay(address, asked.part, flops.mean_flops_per_token(member.config))
    runs = train_trunk(
        member.config, member.token_counts, load_corpus(corpus_folder), folder, first=asked.branch + 1,
        role=TUNE, progress=relay, stage=stage, stopping=relay.stopping,
    )  # fmt: skip
    return runs[asked.branch]
