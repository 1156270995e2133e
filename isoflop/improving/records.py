"""What a search asks, what it finds, and what it leaves out, as the ledger keeps it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field

from isoflop.budget import Budget
from isoflop.errors import TrainError
from isoflop.records import Record
from isoflop.transforms import Source
from isoflop.transforms.shapes import WORDS


class Limits(Record):
    """What the user's model may be at most."""

    bytes: float | None = None
    seconds: float | None = None  # a token of new text
    loss_increase: float = 0.01  # share of the input's held-out loss

    def check(self) -> None:
        """Raises TrainError for a limit that means nothing."""
        for name, limit in self:
            if limit is not None and not 0 < limit < float("inf"):
                raise TrainError(
                    f"a limit of {limit:g} on {name.replace('_', ' ')} means nothing",
                    hint="give numbers above zero, e.g. --max-bytes 4MB --max-ms-per-token 1",
                )


def shape_name(sizes: Mapping[str, int]) -> str:
    """Of the sizes of a shape, by `shapes.SIZES`; none are the input's own."""
    return ", ".join(f"{WORDS[name]} {size}" for name, size in sizes.items()) or "whole"


class Candidate(Record):
    """A chain of transforms: pruned to a shape and healed, or as it is, in one representation."""

    shape: dict[str, int] = Field(default_factory=dict)  # of `shapes.SIZES`; empty: as it is
    format: str  # of `export.gated.FORMATS`
    kind: str  # of its weights

    @property
    def shape_name(self) -> str:
        return shape_name(self.shape)

    @property
    def form(self) -> str:
        """Its representation."""
        return f"{self.format} {self.kind}"

    @property
    def name(self) -> str:
        return f"{self.shape_name}; {self.form}"


class Figures(Record):
    """What is compared: the loss in nats a token, bytes on disk, seconds a token of new text."""

    loss: float
    bytes: float
    seconds: float  # the median of its repetitions, or the fastest where the machine had other work


class Probe(Record):
    """The short measurement of an artifact on this machine."""

    hash: str  # of its content
    engine: str
    seconds: dict[int, float]  # a token of new text, by threads
    windows: tuple[float, ...]  # held-out loss of a few windows, by which artifacts are paired
    cost: float  # seconds that the measurement took

    @property
    def threads(self) -> int:
        """With which it is fastest."""
        return min(self.seconds, key=lambda n: (self.seconds[n], n))

    @property
    def best(self) -> float:
        return self.seconds[self.threads]


class Cut(Record):
    """A shape to prune to."""

    sizes: dict[str, int]  # by `shapes.SIZES`
    rise: float  # of the loss on training text, in nats a token, before it is healed


class Cuts(Record):
    """The shapes that are searched."""

    cuts: tuple[Cut, ...]


class Step(Record):
    """One of a chain's transforms."""

    kind: str  # "prune", "distill", "export"
    id: str
    path: str  # of what it made, from the project's folder
    words: str


class Tried(Record):
    """A candidate that was built and measured, or failed on the way."""

    candidate: Candidate
    error: str = ""  # why there are no figures
    part: str = ""  # of the search in which it failed
    steps: tuple[Step, ...] = ()
    expected: Figures | None = None  # before anything of it was built
    figures: Figures | None = None
    loss_se: float = 0.0  # over held-out windows
    change: float = 0.0  # of the loss, from the input's in its engine, window by window
    change_se: float = 0.0
    seconds_low: float = 0.0  # of the repetitions
    seconds_high: float = 0.0
    engine: str = ""
    threads: int = 1
    path: str = ""  # of the artifact, from the project's folder
    served: str = ""  # id of its measurement
    quiet: bool = True  # the machine had little else to do
    flops: float = 0.0  # of training and teachers, for the shape that it shares with others
    cost: float = 0.0  # seconds, without those of its shape


NEEDLESS, LIMIT, BUDGET, FAILURE = "others are as good", "a limit", "the budget", "a failure"  # of reasons


class Refused(Record):
    """A candidate that was not built, or not to the end."""

    candidate: Candidate
    because: str  # of NEEDLESS, LIMIT, BUDGET, FAILURE
    why: str
    figures: Figures  # the best that it could have


class Improvement(Record):
    """A search: what was tried and refused, the front of what was measured, and what is recommended."""

    id: str
    corpus_id: str
    source: Source
    limits: Limits
    budget: Budget
    heal_tokens: int | None  # for each shape; None until that is known, 0: nothing is pruned
    eval_tokens: int
    seed: int
    trials: tuple[Tried, ...] = ()  # the first is the input, in float32 in its fastest engine
    refused: tuple[Refused, ...] = ()
    healed: dict[str, float] = Field(default_factory=dict)  # loss of each shape that was, in float32
    skipped: dict[str, str] = Field(default_factory=dict)  # formats whose engine is not here, and why
    front: tuple[int, ...] = ()  # numbers of trials that no other is better than in everything
    best: int | None = None  # the recommended one: least bytes x seconds within the limits
    hypervolume: float = 0.0  # share of the box between the input, the limit on the loss, and nothing
    seconds: dict[str, float] = Field(default_factory=dict)  # by part
    flops: dict[str, float] = Field(default_factory=dict)
    sentence: str = ""  # the answer; empty while the search goes on

    @property
    def seconds_total(self) -> float:
        return sum(self.seconds.values())

    @property
    def flops_total(self) -> float:
        return sum(self.flops.values())
