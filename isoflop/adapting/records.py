"""What says how a model is adapted, and what came of it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from isoflop.metrics.protocol import Comparison, Score
from isoflop.records import Interval, Record
from isoflop.tasks.protocol import Spec


class AdaptConfig(Record):
    """Everything that determines an adapted model's weights, given the base, the data and the machine."""

    task: str
    method: str = "full"  # of `adapting.methods.METHODS`
    method_options: dict[str, Any] = Field(default_factory=dict)  # of it, e.g. {"r": 8}
    lr: float = 5e-5
    batch: int = 16  # examples a step
    steps: int = 0  # optimizer steps; 0: as many as `epochs` are
    epochs: float = 3.0
    warmup: float = 0.1  # share of the steps in which the rate rises; it falls to zero over the others
    weight_decay: float = 0.01
    layer_decay: float = 1.0  # rate of a layer over that of the one above it
    grad_clip: float = 1.0
    label_smoothing: float = 0.0
    balanced: bool = False  # labels weigh by the inverse of their frequency
    dropout: float | None = None  # None: the base's own
    augment: tuple[str, ...] = ()  # of `adapting.augment.AUGMENTATIONS`, e.g. ("noise",)
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    adversarial: str = ""  # fgm, pgd or freelb; "": none
    adversarial_size: float = 1.0  # epsilon, relative to the norm of the embedding's rows
    r_drop: float = 0.0  # weight of the divergence between two passes
    teacher_weight: float = (
        0.5  # of the divergence from a teacher, where there is one; the labels have the rest
    )
    temperature: float = 1.0  # at which its and the model's probabilities are compared
    replay: float = 0.0  # share of a batch that is drawn from earlier examples, where there are some
    precision: str = "float32"  # of `isoflop.precision.PRECISIONS`
    averaged: float = 0.0  # decay of a moving average of the weights that is kept instead; 0: none
    patience: int = 3  # scores in a row without a better one that end it; 0: goes on
    evaluations: int = 10  # scores on validation examples
    seed: int = 0


class Point(Record):
    """The state of an adaptation at one score."""

    step: int
    examples: int  # seen
    seconds: float
    train_loss: float  # mean since the last point, nats an example
    score: float  # the chief metric on validation examples


class Trial(Record):
    """One configuration that was tried, as far as it was trained."""

    config: AdaptConfig
    curve: tuple[Point, ...]
    score: float  # the best on validation examples
    seconds: float
    flops: float  # of training
    params_trained: int
    stopped: str = ""  # "pruned", "patience", "budget", or an error's sentence; "": it ran to its end


class LawPoint(Record):
    """A run of the law of a task."""

    who: str  # "chosen", "default", or the folder of a further base model
    params: int  # N of its base model
    examples: int  # n, that it learned from
    seed: int
    score: Score  # the chief metric on the test examples
    seconds: float


class TaskLaw(Record):
    """The chief metric against training examples, and against size where further base models were given."""

    metric: str
    passes: float  # over their examples, of every run
    points: tuple[LawPoint, ...] = ()
    law: dict[str, float] = Field(
        default_factory=dict
    )  # error(n) = E + beta n^-c, of the chosen configuration
    now: float | None = None  # the score that it gives for all examples
    twice_labels: Interval | None = None  # score of a new run with twice the examples
    twice_model: Interval | None = None  # and with twice the parameters
    doublings: Interval | None = None  # of the examples that full fine-tuning would need for the same score
    undefined_share: float = 0.0  # of draws in which it never reaches that score
    sentences: tuple[str, ...] = ()


class Taught(Record):
    """The teacher of an adaptation, on the same test examples."""

    path: str
    hash: str  # of its folder
    flops: float  # of its answers to the training examples
    test: tuple[Score, ...]
    apart: tuple[Comparison, ...]  # how much the student is above it


class Peer(Record):
    """What is made of the same examples without a pretrained model, on the same test examples."""

    says: str  # what it is
    examples: int  # that it learned from
    test: tuple[Score, ...]
    apart: tuple[Comparison, ...]  # how much what is kept is above it
    step: float | None = None  # how much it has to say beside the model; None: it answers nothing
    gain: tuple[Comparison, ...] = ()  # how much the two together are above the model alone
    law: TaskLaw | None = None  # of the peer alone


class Adapted(Record):
    """An adapted model: where it is, how it was found, and what it scores on examples not chosen by."""

    id: str
    task: str
    base: str  # hash of the base's folder
    base_path: str
    data: dict[str, str]  # what each split was read from, and its digest
    columns: dict[str, str]  # role -> column
    examples: dict[str, int]  # by split
    cut: int = 0  # training inputs that are longer than the model reads
    spec: Spec
    config: AdaptConfig  # the chosen one
    trials: tuple[Trial, ...]
    validation: tuple[Score, ...]
    test: tuple[Score, ...]
    baseline: tuple[Score, ...] = ()  # zero-shot or majority, on the same test examples
    baseline_says: str = ""
    few_shot: tuple[Score, ...] = ()  # the base after some training examples, where it takes prompts
    few_shot_says: str = ""
    seconds: dict[str, float]  # by stage
    flops: float  # of all trials, and of a teacher's answers
    model: str  # artifact folder, relative to the project
    notes: tuple[str, ...] = ()
    law: TaskLaw | None = None
    taught: Taught | None = None
    peer: Peer | None = None  # of tasks that have one
