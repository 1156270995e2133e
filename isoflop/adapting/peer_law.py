"""The law of a peer: what twice the labels would buy it, from runs that take seconds.

The runs and the law are those of `law`; each run reads its examples once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from isoflop.adapting.inputs import TEST, TRAIN, some
from isoflop.adapting.law import CHOSEN, Price, Wanted, task_law
from isoflop.adapting.peers import Learned
from isoflop.adapting.records import LawPoint, TaskLaw
from isoflop.adapting.usual import unlearned
from isoflop.metrics import scored

if TYPE_CHECKING:
    from isoflop.adapting.work import Work

ONCE = 1.0  # passes


@dataclass(frozen=True)
class Runs:
    """What makes a run of the law."""

    work: Work
    found: Learned

    def measure(self, wanted: Wanted, passes: float) -> LawPoint | None:
        """A peer of a subset, scored on the test examples; of all that there are no other one is drawn."""
        work, began = self.work, time.monotonic()
        if wanted.seed and wanted.share == 1 and self.found.examples == len(work.rows[TRAIN]):
            return None
        size = max(2, round(wanted.share * self.found.examples))
        rows = some(work.rows[TRAIN], size, work.seed + wanted.seed)
        peer = type(self.found.peer).learn(work.task, work.base, work.spec, rows)
        answers = {TEST: peer.answers(work.task, work.base, work.spec, work.rows[TEST][:])}
        made = self.found._replace(peer=peer, answers=answers).alone(TEST)
        references = work.task.references(work.spec, work.rows[TEST])
        return LawPoint(
            who=CHOSEN, params=0, examples=size, seed=wanted.seed,
            score=scored(work.metric, made, references), seconds=time.monotonic() - began,
        )  # fmt: skip


def law_of_peer(work: Work, found: Learned, seconds: float) -> TaskLaw | None:
    """The law of as many examples as the peer has learned from; None: there is no time for it."""
    price = Price(found.learning / found.examples, found.answering, {})
    if sum(price.of(wanted, found.examples, ONCE) for wanted in price.first()) > seconds:
        return None
    with work.part("peer"):
        law = task_law(
            Runs(work, found).measure, work.metric, found.examples, seconds, price, passes=ONCE, known=ONCE,
            default=False, unlearned=unlearned(work.task, work.spec, work.rows[TRAIN], work.rows[TEST]),
            seed=work.seed,
        )  # fmt: skip
    said = tuple(f"Of the peer alone: {sentence[0].lower()}{sentence[1:]}" for sentence in law.sentences)
    return law.model_copy(update={"sentences": said})
