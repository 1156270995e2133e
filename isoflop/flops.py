"""Every counting convention in one place: parameters, FLOPs, bytes, the machine's peak.

A multiply-add counts as 2 FLOPs; the backward pass as twice the forward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from isoflop.records import ModelConfig, Paced, RunConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

BYTES_FLOAT32 = 4


@dataclass(frozen=True)
class Counts:
    """Of one shape; `saved` are the floats that training keeps for the backward pass, a token."""

    total: int
    nonembedding: int
    matmul: int
    per_token: int  # training FLOPs
    saved: int


@lru_cache(maxsize=4096)
def counts(m: ModelConfig) -> Counts:
    """As the shape's family counts itself."""
    from isoflop.families import family_of  # above this module

    return family_of(m).counts(m)


def params_matmul(m: ModelConfig) -> int:
    """N: weights that multiply, the output head counted whether tied or not; norms are left out."""
    return counts(m).matmul


def params_nonembedding(m: ModelConfig) -> int:
    """Everything but the embedding tables and the head (Kaplan et al., arXiv 2001.08361)."""
    return counts(m).nonembedding


def params_total(m: ModelConfig) -> int:
    """Every stored number; a tied table once."""
    return counts(m).total


def flops_per_token(m: ModelConfig) -> int:
    """Training FLOPs a token: 6 a matrix weight that it meets, and what mixes tokens.

    Of the model, so that laws compare: what checkpointed activations compute again is not counted.
    """
    return counts(m).per_token


def training_flops(config: Paced, trunk_tokens: float, cooled_tokens: float) -> float:
    """Of that many tokens before the cooldown and in it: the trunk's context may be shorter."""
    trunk = flops_per_token(config.trunk_model)
    return float(trunk * trunk_tokens + flops_per_token(config.model) * cooled_tokens)


def run_flops(config: RunConfig) -> float:
    """Of a run of `config.tokens`, by whole optimizer steps, without what its teachers compute."""
    return training_flops(config, *_parts(config))


def _parts(config: RunConfig) -> tuple[int, int]:
    """Tokens of a run's trunk and of its cooldown, by whole optimizer steps."""
    steps = config.tokens // config.batch_tokens
    trunk = config.trunk_steps(steps)
    return trunk * config.batch_tokens, (steps - trunk) * config.batch_tokens


def forward_flops_per_token(m: ModelConfig) -> float:
    """Of a model that is asked and not trained: a third, since the backward pass is twice the forward."""
    return flops_per_token(m) / 3


def run_teachers_flops(config: RunConfig, teachers: Sequence[ModelConfig]) -> float:
    """Of the teachers' forward passes beside `run_flops`, over the student's own windows.

    Those of tasks, the last ones, read their share of the rows, the others what is left.
    """
    shares = [task.share for task in config.tasks]
    own = [1 - sum(shares)] * (len(teachers) - len(shares))

    def asked(student: ModelConfig) -> float:
        context = {"context": student.context}
        read = [forward_flops_per_token(t.model_copy(update=context)) for t in teachers]
        return sum(share * cost for share, cost in zip([*own, *shares], read, strict=True))

    trunk_tokens, cooled_tokens = _parts(config)
    return asked(config.trunk_model) * trunk_tokens + asked(config.model) * cooled_tokens


def matching_flops_per_token(teachers: Sequence[ModelConfig], config: RunConfig) -> float:
    """Of the projections from each of the student's layers to each teacher, 6 a weight as usual."""
    m = config.model
    return 6.0 * m.n_layers * m.d_model * sum(t.d_model for t in teachers) if config.feature_weight else 0.0


def mean_flops_per_token(config: Paced, cooled: float = 1.0) -> float:
    """Training FLOPs over tokens of a long run; `cooled` cooldowns counted, as a trunk's branches have."""
    return training_flops(config, 1 - config.cooldown, config.cooldown * cooled)


def counted_by_torch(counter: FlopCounterMode) -> int:
    """What torch's FLOP counter saw of a training step.

    It takes the backward pass of a depthwise convolution for a dense one's: here that is twice the forward.
    """
    by_kind = {str(kind): int(n) for kind, n in counter.get_flop_counts()["Global"].items()}
    by_kind["aten.convolution_backward"] = 2 * by_kind.get("aten.convolution", 0)
    return sum(by_kind.values())


def weights_that_multiply(module: nn.Module) -> dict[str, int]:
    """Weights of linear layers and one-dimensional convolutions, by name: each meets a position once."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D  # a linear layer, in spite of its name

    kinds = (nn.Linear, nn.Conv1d, Conv1D)
    return {name: m.weight.numel() for name, m in module.named_modules() if isinstance(m, kinds)}


def attention_flops(m: ModelConfig, config: Any = None) -> int:
    """12 * layers * heads * head_dim * context a token, forward and backward.

    Counts the full square, as in PaLM (arXiv 2204.02311, appendix B) and torch's FLOP counter, though a
    causal kernel may skip half of it.
    """
    return 12 * m.n_layers * m.n_heads * m.head_dim * m.context


def crossed_attention_flops(m: ModelConfig, decoder_layers: int, read: int, written: int) -> int:
    """As `attention_flops`, a token of the window: of an encoder that reads and a decoder that writes."""
    squares = m.n_layers * read**2 + decoder_layers * (written**2 + written * read)
    return round(12 * m.n_heads * m.head_dim * squares / m.context)


def scan_flops(m: ModelConfig, config: Any) -> int:
    """Mamba-2's scan by chunks, forward and backward, as the matmuls of transformers' plain implementation.

    Of a head with p channels and n states, a token meets the l of its chunk (2 l n + 2 l p), its chunk's
    state and the state before (2 n p each), and the states of c + 1 chunks are combined (2 (c + 1)^2 n p a
    window).
    """
    p, n, chunk = m.head_dim, config.state_size, config.chunk_size
    chunks = math.ceil(m.context / chunk)
    tokens = 2 * chunk * (n + p) + 4 * n * p
    window: int = chunks * chunk * tokens + 2 * (chunks + 1) ** 2 * n * p
    return round(3 * m.n_layers * m.n_heads * window / m.context)


def decoder_counts(m: ModelConfig, predicted: int) -> Counts:
    """Of our own decoder (`gpt.GPT`), whose head meets the `predicted` tokens of a window."""
    attention = m.d_model * m.head_dim * (2 * m.n_heads + 2 * m.n_kv_heads)  # query, output; key, value
    matrices = m.n_layers * (attention + 3 * m.d_model * m.d_ff)  # gate, up, down
    norms = m.n_layers * (2 * m.d_model + 2 * m.head_dim) + m.d_model
    table = m.vocab_size * m.d_model
    return Counts(
        total=matrices + norms + (1 if m.tied else 2) * table,
        nonembedding=matrices + norms,
        matmul=matrices + table,
        per_token=6 * matrices + round(6 * table * predicted / m.context) + attention_flops(m),
        saved=m.n_layers * (14 * m.d_model + 4 * m.d_ff) + 4 * m.d_model,  # counted on `gpt.Block`
    )


def training_memory_bytes(config: RunConfig, ranks: int | None = None) -> int:
    """Estimate of what training holds: weights, gradients, two moments, and the saved activations.

    Each of several ranks (None: those of `config`) holds its own copy of all but its share of the
    activations, and a buffer for the gradients of all. Activations are those of the part of a batch that is
    done at once; checkpointed, the inputs of all blocks and what one of them saves. In float32: autocast
    needs less.
    The head saves a gradient of its own size. The interpreter and torch's libraries come on top.
    """
    m, ranks = config.model, ranks or config.ranks
    states = (4 if ranks == 1 else 5) * params_total(m)
    head = 2 * m.vocab_size * m.d_model
    saved = counts(m).saved
    if config.checkpoint_activations:
        saved = min(saved, saved // m.n_layers + m.n_layers * m.d_model)
    return BYTES_FLOAT32 * (ranks * (states + head) + config.batch_tokens // config.accumulate * saved)


def asking_memory_bytes(teachers: Sequence[ModelConfig], config: RunConfig) -> int:
    """Estimate of what each rank holds of its teachers: weights, and what a layer makes of a part."""
    tokens = config.batch_tokens // config.ranks // config.accumulate
    layers = [counts(t).saved // t.n_layers * tokens for t in teachers]
    return BYTES_FLOAT32 * (sum(params_total(t) for t in teachers) + max(layers, default=0))


def weight_bytes(params: float, bits: float) -> float:
    """Bytes of that many weights at that many bits each; decoding one sequence reads them once a token."""
    return params * bits / 8


@lru_cache
def matmul_peak(threads: int, precision: str = "float32", seconds: float = 0.3) -> float:
    """Best matrix-multiplication rate of this process with `threads` threads, in FLOP/s.

    In the precision that a run multiplies in, one of `precision.PRECISIONS`: where bf16 has units of its own,
    its peak is several times that of float32.
    """
    import torch

    from isoflop.precision import PRECISIONS

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    size = 768
    a, b = (torch.rand(size, size).to(PRECISIONS[precision] or torch.float32) for _ in range(2))
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    torch.set_num_threads(before)
    return best
