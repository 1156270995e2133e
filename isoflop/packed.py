"""Trunks trained side by side in worker processes, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from pathlib import Path

from loky.process_executor import TerminatedWorkerError

from isoflop.errors import LadderError
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
