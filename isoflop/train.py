"""Training: a trunk with its branches, in one process or several; the loop is in `branches`.

A run of D tokens is a constant-rate trunk and a linear cooldown. Runs that differ in D alone share the
trunk: `train_trunk` trains it once and branches off a cooldown at each token count (Haegele et al.,
arXiv 2405.18392), and each branch has the very weights that a run of its own would have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from isoflop import launched
from isoflop.branches import Branches, Keep, Stopping
from isoflop.continued import Past
from isoflop.devices import in_group, rank, run_ranks
from isoflop.identity import tokens_of_trunk
from isoflop.interrupt import heeded
from isoflop.patience import check_patience
from isoflop.progress import Address, Progress, Relay, Silent, gather
from isoflop.quantities import bits
from isoflop.records import Corpus, Run, RunConfig

CHECKPOINT_SECONDS = 20.0


class Train(Protocol):
    """As `train` does, here or on a cluster."""

    def __call__(
        self, config: RunConfig, corpus: Corpus, folder: Path, *, role: str, progress: Progress | None,
        keep: Keep, past: Past | None = None,
    ) -> Run: ...  # fmt: skip


def train_trunk(
    config: RunConfig,
    token_counts: Sequence[int],
    corpus: Corpus,
    folder: Path,
    *,
    first: int = sys.maxsize,
    role: str = "ladder",
    progress: Progress | None = None,
    stage: str = "train",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    keep: Keep = lambda model, run: None,
    stopping: Stopping | None = None,
    past: Past | None = None,
) -> list[Run]:
    """Train one trunk and a cooldown branch for each of `token_counts`, in order of tokens.

    Only the `first` so many branches are trained now; asked for more, it goes on from there.
    `folder` holds the checkpoints, at least `checkpoint_seconds` apart (0: one a step): called again
    after a kill at any instant it goes on, and ends with the same bits. `keep(model, run)` may store each
    finished model; of a run in a group it is sent to another process and called there. `past` says where a
    run that goes on from a model folder finds it. A run with another number of ranks or threads may go on
    from the checkpoints (`job_id`).

    Raises TrainError when the loss or a gradient is not finite twice, the corpus is smaller than a batch, or
    an option cannot be; CorruptError when no checkpoint can be read or the training tokens change;
    Interrupted, saved, when `stopping()` (None: at Ctrl-C).
    """
    check_patience(config, token_counts)
    progress = progress or Silent()
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    work = partial(
        train_part, config, token_counts, first, corpus, folder, role, stage, checkpoint_seconds, keep, past
    )
    with heeded(progress) as pressed:
        progress.start(stage, sum(tokens_of_trunk(token_counts, config)), "tokens")
        if not in_group(config):
            runs = work(progress, stopping or pressed)
        else:
            with gather(progress, stage, stopping or pressed) as address:
                runs = run_ranks(config.ranks, partial(_as_rank, work, address), fresh=config.shard)
    progress.finish(stage, outcome(runs))
    return runs


def outcome(runs: Sequence[Run]) -> str:
    """What a trunk's longest branch came to."""
    return f"loss {runs[-1].loss:.4f}, {bits(runs[-1].bpb)}"


def train_part(
    config: RunConfig, token_counts: Sequence[int], first: int, corpus: Corpus, folder: Path, role: str,
    stage: str, checkpoint_seconds: float, keep: Keep, past: Past | None, progress: Progress,
    stopping: Stopping,
) -> list[Run]:  # fmt: skip
    """What each process of a `train_trunk` does, alone or joined with the other ranks."""
    past = None if past is None else replace(past, fisher=folder / "fisher")
    branches = Branches(
        config, token_counts, corpus, folder, role=role, progress=progress, stage=stage,
        checkpoint_seconds=checkpoint_seconds, stopping=stopping, past=past,
    )  # fmt: skip
    return branches.run(keep, first)


def _as_rank(work: Callable[[Progress, Stopping], list[Run]], address: Address) -> list[Run]:
    """In a joined process: the first rank speaks for all. When it ends, so do the others."""
    if rank() > 0:
        return work(Silent(), launched.asked)
    relay = Relay(address, "training", 1.0)
    return work(relay, relay.stopping)


def train(
    config: RunConfig,
    corpus: Corpus,
    folder: Path,
    *,
    role: str = "train",
    progress: Progress | None = None,
    keep: Keep = lambda model, run: None,
    past: Past | None = None,
) -> Run:
    """Train one model on `config.tokens` tokens. See `train_trunk`."""
    return train_trunk(
        config, [config.tokens], corpus, folder, role=role, progress=progress, keep=keep, past=past
    )[0]
