"""Frozen records that stages pass to one another; each goes to JSON and back unchanged.

Units follow the field's names: losses in nats a token, `seconds`, `bytes`, `flops`.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer


def digest(document: object) -> str:
    """First 16 hex digits of the SHA-256 of a document's canonical JSON."""
    canonical = json.dumps(document, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


class Record(BaseModel):
    """Base of every record: immutable, no unknown fields, JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True, ser_json_inf_nan="strings")

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.model_validate_json(text)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON: the record's content name."""
        return digest(self.model_dump(mode="json"))


class Growing(Record):
    """A record that gained fields after ids had been made of it.

    The fields named `later` stay out of its JSON where they have their defaults: what does without them keeps
    the id that it had.
    """

    later: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def _without_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            k: v
            for k, v in handler(self).items()
            if k not in self.later or getattr(self, k) != fields[k].default
        }


class CorpusConfig(Record):
    """What to read and how to turn it into tokens; equal configs and inputs give equal corpora."""

    sources: tuple[str, ...] = ()  # empty: the Python standard library's source code
    field: str = "text"  # of structured sources (JSONL, Parquet, datasets)
    heldout_share: float = 0.02  # of documents, by hash of the text
    near_duplicate_threshold: float = 0.8  # estimated Jaccard similarity; 1.0 turns the step off
    min_chars: int = 32  # shorter documents are dropped
    max_repeated_line_share: float = 0.7  # Rae et al. 2112.11446, table A1, applied to long documents
    vocab_size: int | None = None  # None: chosen by `corpus.vocab_for`
    tokenizer: str | None = None  # path of an existing tokenizer.json
    seed: int = 0


class Corpus(Record):
    """A built corpus: packed token files plus the counts that every later stage needs."""

    id: str
    folder: Path  # where it lies now; set again by `load_corpus`
    config: CorpusConfig
    documents: int  # kept, both sides
    bytes: int  # UTF-8 bytes kept, both sides
    raw_bytes: int  # bytes read
    train_tokens: int
    heldout_tokens: int
    train_bytes: int
    heldout_bytes: int
    heldout_documents: int
    vocab_size: int
    bytes_per_token: float  # heldout_bytes / heldout_tokens
    dropped: dict[str, int]  # reason -> documents
    bad_bytes: int  # replaced while decoding
    hashes: dict[str, str]  # file name -> SHA-256
    seconds: float  # to build


class ModelConfig(Growing):
    """Shape of a model. Fields that an architecture does not have say what comes nearest to them."""

    later = ("family", "objective", "template")

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    context: int = 256
    rope_theta: float = 10_000.0
    tied: bool = False  # output head shares the input embedding
    family: str = "isoflop"  # of `isoflop.families`, or a model type of transformers
    objective: str = "causal"  # of `isoflop.objectives`
    template: str = ""  # config.json of the folder whose architecture is scaled; "": the family's own

    @property
    def kind(self) -> tuple[str, str, str]:
        """Runs of one kind have one law."""
        return self.family, self.objective, self.template


class Paced(Growing):
    """What the speed of a run depends on, beside the machine."""

    later = (
        "trunk_context", "accumulate", "precision", "checkpoint_activations", "dropout", "shard",
        "label_smoothing", "patience", "evaluate_every", "initial", "old", "replay_share", "ewc",
        "ewc_tokens", "teachers", "teacher_weight", "temperature", "divergence",
        "teacher_topk", "feature_weight", "optimizer", "cooldown_shape", "rounding", "tasks", "input_noise",
    )  # fmt: skip

    model: ModelConfig
    batch_tokens: int
    cooldown: float = 0.2  # share of tokens in the cooldown to zero
    compile: bool = False
    ranks: int = 1  # processes that share each batch; part of the record: float sums depend on it
    threads: int = 1  # of each rank; likewise
    trunk_context: int = 0  # tokens a window until the cooldown begins; 0: the model's context
    accumulate: int = 1  # parts of equal size in which a rank does its rows of a batch, one after the other
    precision: str = "float32"  # of `precision.PRECISIONS`
    checkpoint_activations: bool = False  # backward computes each block again: less memory, more time
    dropout: float = 0.0  # while training
    optimizer: str = "muon"  # of the blocks' matrices: of `recipe.MATRIX_RATES`
    shard: bool = False  # weights, gradients and optimizer state are shared out to the ranks (FSDP2)

    def trunk_steps(self, steps: int) -> int:
        """Those at a constant rate, of a run of so many optimizer steps."""
        return math.floor(steps * (1 - self.cooldown))

    def speed_key(self, packed: int, machine: str) -> str:
        """Names the speed of so many of these side by side on a machine."""
        return digest([self.model_dump(mode="json", include=set(Paced.model_fields)), packed, machine])

    @property
    def trunk_model(self) -> ModelConfig:
        """The shape as the trunk sees it."""
        if not self.trunk_context:
            return self.model
        return self.model.model_copy(update={"context": self.trunk_context})


class Task(Record):
    """A further text that a student learns at once, from a teacher of its own."""

    corpus: str  # its id
    share: float  # of the rows of all batches
    teacher: str  # hash of the model folder


class RunConfig(Paced):
    """Everything that determines a run's weights, given a corpus."""

    tokens: int  # D, training tokens seen
    lr_matrix: float  # matrices of the blocks
    lr_embed: float  # AdamW, input embedding
    lr_head: float  # AdamW, output head
    lr_vector: float  # AdamW, norms
    weight_decay: float  # of the matrices, times their rate each step
    warmup_tokens: int
    cooldown_shape: str = "linear"  # of `schedule.COOLDOWNS`
    grad_clip: float = 1.0
    seed: int = 0
    eval_tokens: int = 131_072
    momentum: float = 0.9  # Muon's
    betas: tuple[float, float] = (0.9, 0.99)  # AdamW's
    label_smoothing: float = 0.0  # of the training loss alone
    patience: int = 0  # held-out scores in a row without a better one that begin the cooldown (`patience.py`)
    evaluate_every: int = 0  # tokens between these scores; 0: a 20th of the run
    initial: str = ""  # hash of the model folder whose weights it starts with; "": from scratch
    old: str = ""  # id of the corpus that this model has learned before, if it is looked at
    replay_share: float = 0.0  # of the rows that are old text
    ewc: float = 0.0  # strength of elastic weight consolidation
    ewc_tokens: int = 0  # old text on which its Fisher information is measured
    teachers: tuple[str, ...] = ()  # hashes of the model folders that it learns from beside the text
    teacher_weight: float = 0.0  # lambda, of their share of the loss
    temperature: float = 1.0  # of their probabilities and, beside them, the model's
    divergence: str = "forward-kl"  # of `teaching.divergences.DIVERGENCES`
    teacher_topk: int = 0  # of their likeliest tokens so many are told apart; 0: all
    feature_weight: float = 0.0  # of their hidden states, beside all the rest
    rounding: str = ""  # of `rounding.KINDS`: gradients are those of weights rounded so; "": as they are
    tasks: tuple[Task, ...] = ()  # learned at once; `teachers` are those of the run's own corpus
    input_noise: float = 0.0  # share of input tokens replaced by others, beside teachers


class CurvePoint(Record):
    """One point of a run's training curve."""

    tokens: int
    seconds: float
    loss: float  # training loss, nats a token, mean since the last point


class Forgetting(Record):
    """What a continued run cost on the old corpus's held-out text, in nats a predicted token."""

    corpus_id: str
    before: float
    after: float
    nats: float  # after - before
    nats_se: float  # standard error of the difference over windows, which are paired
    windows: int


class Stretch(Record):
    """A part of a run that the same processes trained."""

    tokens: int  # of the run, at its beginning
    ranks: int
    threads: int  # of each rank


class Run(Record):
    """A finished training run and its exact accounting."""

    id: str
    corpus_id: str
    config: RunConfig
    role: str  # "ladder", "ablation", "tune", "final", "train", "continued" or "distilled"
    trunk: str  # runs of one constant-rate trunk share this id
    loss: float  # held-out, nats a predicted token
    loss_se: float  # standard error over held-out windows
    bpb: float | None  # bits per byte; a masked model's losses do not add up to a text's
    bpb_se: float | None
    params_total: int
    params_nonembedding: int
    params_matmul: int  # N
    tokens: int  # D
    unique_tokens: int
    flops: float  # of a run of this (N, D) from scratch, its teachers' included
    flops_spent: float  # really computed for this branch (the trunk's share is in its first branches)
    seconds_train: float
    seconds_eval: float
    seconds_compile: float
    tokens_per_second: float
    peak_flops_per_second: float  # measured matmul peak in its precision for the same threads, times ranks
    peak_share: float  # flops a second / peak_flops_per_second
    peak_memory_bytes: int  # of all ranks, pages that they share counted for each
    rate_scale: float = 1.0  # below 1 after a loss or gradient that was not finite
    curve: tuple[CurvePoint, ...] = ()
    # Of a run that went on in other processes than it began in: weights that its id names up to rounding.
    stretches: tuple[Stretch, ...] = ()  # empty: all of it in the processes of `config`
    model: str | None = None  # artifact folder, relative to the project
    forgetting: Forgetting | None = None  # of a continued run whose old corpus is known
    next_accuracy: float | None = None  # share of held-out pairs told apart, of the objective `masked-next`
    next_accuracy_se: float | None = None
    flops_teachers: float = 0.0  # of `flops`, their forward passes
    flops_teachers_spent: float = 0.0  # of `flops_spent`: those whose answers were on disk are left out


class Throughput(Paced):
    """Measured training speed of one shape on this machine."""

    packed: int  # runs side by side while it was measured
    params: int  # N
    tokens_per_second: float  # training, mean of a whole run
    eval_tokens_per_second: float
    compile_seconds: float
    memory_bytes: int  # of one rank
    machine: str

    @property
    def key(self) -> str:
        return self.speed_key(self.packed, self.machine)


class Member(Record):
    """One trunk of the ladder with the token counts of its cooldown branches, and what they will cost."""

    config: RunConfig  # `tokens` is the longest branch
    token_counts: tuple[int, ...]
    params: int  # N
    flops: float  # of everything computed
    seconds: float
    memory_bytes: int


class Ladder(Record):
    """The small runs to do; those that are added later are written down before they are trained."""

    id: str
    corpus_id: str
    members: tuple[Member, ...]
    packed: int  # members side by side
    seconds: float  # wall time of all
    flops: float
    changes: tuple[str, ...] = ()  # to the recipe, of `variant.Variant`
    ended: str = ""  # why no more runs were added (`extend`); empty while that is open, or for a fixed ladder


class Interval(Record):
    """A value with its central interval, and what the interval is of."""

    value: float
    low: float
    high: float
    level: float = 0.9
    of: str = "parameter"  # or "mean", "new run", "optimum", "doublings", "difference"


class Plan(Record):
    """What the budget buys, written before it is spent."""

    id: str
    fit_id: str
    corpus_id: str
    budget_seconds: float | None
    budget_flops: float | None
    config: RunConfig
    params: int  # N
    tokens: int  # D
    flops: float
    seconds: float  # predicted, of the final run with its compilation and evaluation
    memory_bytes: int
    tokens_per_second: float
    loss: Interval  # of a new run
    params_optimum: Interval
    tokens_optimum: Interval
    doubling_loss: Interval  # predicted loss with twice the budget
    doubling_saves: Interval  # nats a token that one more doubling of the budget would buy
    candidates: tuple[dict[str, float], ...] = ()  # the sizes compared: params, tokens, loss
    notes: tuple[str, ...] = ()


class Gain(Record):
    """Compute-equivalent doublings of a result over a baseline law."""

    loss: float
    flops: float  # total, all costs counted
    costs: dict[str, float] = Field(default_factory=dict)  # the parts of `flops`
    flops_base: Interval  # C_base(L)
    doublings: Interval
    extrapolated: bool  # C_base(L) is outside the measured runs
    undefined_share: float  # share of draws with L <= E


class Sample(Record):
    """Text the model wrote."""

    prompt: str
    text: str


class Result(Record):
    """What `isoflop run` hands over; the JSON on its stdout."""

    loss: float  # held-out, nats a predicted token
    loss_se: float
    bpb: float | None  # None: a masked model
    predicted: float  # written to the ledger before the final run
    interval: tuple[float, float]  # 90%, of a new run, written with it
    within_interval: bool
    params: int  # N
    tokens: int  # D
    flops: float  # of the final run
    flops_total: float  # ladder counted
    seconds: dict[str, float]  # by stage: corpus, ladder, plan, compile, train, evaluate, save, close, total
    doublings: Interval  # of the final run over the ladder's law, its own compute
    doublings_total: Interval  # the same with the ladder's compute counted
    model: str  # folder that transformers opens
    report: str
    corpus_id: str
    fit_id: str
    plan_id: str
    run_id: str
    samples: tuple[Sample, ...] = ()
