"""Peers: what is made of the same examples in seconds, without a pretrained model.

Where answers are labels or numbers, n-grams under a linear model (`ngrams`); where they are tags, the tokens
around each token under one (`contexts`); where they are texts, the answer of the training example that is
most alike (`memory`). A peer stands beside every adapted model, and answers with it where that is better on
the validation examples (`joined`).

Shapes: n rows, k numbers of a peer's answer to one.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from isoflop.adapting.contexts import Contexts
from isoflop.adapting.inputs import TEST, TRAIN, VALIDATION, some
from isoflop.adapting.memory import Memory
from isoflop.adapting.ngrams import NGrams
from isoflop.adapting.records import Peer
from isoflop.errors import AdaptError
from isoflop.metrics import METRICS, compared, value_of
from isoflop.metrics.protocol import Array

if TYPE_CHECKING:
    from datasets import Dataset

    from isoflop.adapting.work import Work
    from isoflop.tasks.protocol import Base, Spec, Task

FIRST = 100  # examples that are learned from at first
TIMED = 32  # held-out examples that tell how long its answers take
HELD_OUT = VALIDATION, TEST
GROWS = 1.3  # power of their number by which the time for them grows, at most
SURE = 0.95  # share of resamples in which one is better


class Learner(Protocol):
    """A peer that has learned."""

    name: ClassVar[str]
    says: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]]
    steps: ClassVar[tuple[float, ...]]  # how much it may have to say beside a model, the least first

    @classmethod
    def learn(cls, task: Task, base: Base, spec: Spec, rows: Dataset) -> Self:
        """From training rows."""

    @property
    def room(self) -> float:
        """How many times as many examples it could hold."""

    def answers(
        self, task: Task, base: Base, spec: Spec, rows: Mapping[str, Sequence[Any]]
    ) -> Sequence[Array]:
        """n of a batch of rows, (k,) each."""

    def asks(self, answer_k: Array, step: float) -> bool:
        """Whether a model is asked too."""

    def together(self, own: Any, answer_k: Array, step: float) -> Any:
        """One prediction in the task's form, of a model's own (None: it was not asked) and the answer."""

    def save(self, folder: Path) -> None:
        """Into an empty folder."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What was saved. Raises OSError, ValueError or KeyError for what was not."""


KINDS: tuple[type[Learner], ...] = (NGrams, Contexts, Memory)


class Learned(NamedTuple):
    """A peer, and its answers to the held-out examples."""

    peer: Learner
    examples: int  # that it learned from
    answers: dict[str, Sequence[Array]]  # by split
    learning: float  # seconds
    answering: float  # and for all held-out examples

    def alone(self, split: str) -> list[Any]:
        """Its predictions, in the task's form."""
        return self.together(split, [None] * len(self.answers[split]), self.peer.steps[-1])

    def together(self, split: str, own: Sequence[Any], step: float) -> list[Any]:
        """Its predictions and a model's own as one."""
        pairs = zip(own, self.answers[split], strict=True)
        return [self.peer.together(one, answer_k, step) for one, answer_k in pairs]


def kind_of(task: Task) -> type[Learner] | None:
    """The peer of a task; None: it has none."""
    return next((kind for kind in KINDS if task.name in kind.tasks), None)


def learned(work: Work, seconds: float) -> Learned | None:
    """The task's peer after the training examples: 100 drawn at random, and then as many as there are and
    about so many seconds suffice for. None: it has none."""
    kind = kind_of(work.task)
    if kind is None:
        return None
    asked = work.task, work.base, work.spec
    with work.part("peer"):
        try:
            for module in ("feature_extraction.text", "linear_model"):
                import_module(f"sklearn.{module}")  # takes a second, which is not learning
        except ImportError:
            raise AdaptError("scikit-learn is not installed", hint="pip install 'isoflop[adapt]'") from None
        ends, size, train = time.monotonic() + seconds, FIRST, work.rows[TRAIN]
        while True:
            drawn, began = some(train, size, work.seed), time.monotonic()
            peer = kind.learn(*asked, drawn)
            learning, began = time.monotonic() - began, time.monotonic()
            shown = some(work.rows[TEST], TIMED, work.seed)
            peer.answers(*asked, shown[:])
            each, now = (time.monotonic() - began) / len(shown), time.monotonic()
            answering = each * sum(len(work.rows[split]) for split in HELD_OUT)
            time_for = max(0.0, (ends - now) / (learning + answering)) ** (1 / GROWS)
            larger = min(int(size * min(time_for, peer.room)), len(train))
            if larger < 2 * size and (larger < len(train) or len(train) <= size):  # not worth it
                answers = {split: peer.answers(*asked, work.rows[split][:]) for split in HELD_OUT}
                return Learned(peer, len(drawn), answers, learning, answering)
            size = larger


def best_step(work: Work, found: Learned, own: Sequence[Any]) -> float:
    """How much the peer has to say where a model's own predictions of the validation examples are these: what
    scores best, and of equals the least."""
    references = work.task.references(work.spec, work.rows[VALIDATION])
    sign = 1 if work.metric.higher_is_better else -1

    def gain(step: float) -> float:
        return sign * value_of(work.metric, found.together(VALIDATION, own, step), references)

    return max(found.peer.steps, key=gain)  # the first of equals


def beside(work: Work, found: Learned, own: Sequence[Any], step: float) -> Peer:
    """A peer's scores on the test examples, how much what is kept is above them, and, where the peer has a
    say in it, how much it is above the model's own predictions."""
    rows = work.rows[TEST]
    references, alone = work.task.references(work.spec, rows), found.alone(TEST)
    kept = found.together(TEST, own, step)

    def apart(first: Sequence[Any]) -> Any:
        return tuple(compared(METRICS[name], first, kept, references) for name in work.task.metrics)

    joined = step > found.peer.steps[0]
    peer = Peer(
        says=found.peer.says, examples=found.examples, test=work.scores(alone, rows), apart=apart(alone),
        step=step if joined else None, gain=apart(own) if joined else (),
    )  # fmt: skip
    if peer.apart[0].p_better <= 1 - SURE:
        work.notes.append(
            f"{peer.says}, which learns in seconds from {peer.examples:,} examples, is better on the test "
            f"examples ({work.metric.name} {peer.apart[0].first:.4f}): this base needs more time, or is not "
            "needed"
        )
    return peer
