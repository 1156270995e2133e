"""Every counting convention in one place: parameters, FLOPs, bytes, the machine's peak.

A multiply-add counts as 2 FLOPs; the backward pass as twice the forward pass.
"""

from __future__ import annotations

import time
from functools import lru_cache

from isoflop.records import ModelConfig

BYTES_FLOAT32 = 4


def layer_params(m: ModelConfig) -> int:
    """Matrix weights of one layer: query, key, value, output, gate, up, down."""
    attention = m.d_model * m.head_dim * (2 * m.n_heads + 2 * m.n_kv_heads)
    return attention + 3 * m.d_model * m.d_ff


def params_matmul(m: ModelConfig) -> int:
    """N: weights that multiply, the output head counted whether tied or not; norms are left out."""
    return m.n_layers * layer_params(m) + m.vocab_size * m.d_model


def norm_params(m: ModelConfig) -> int:
    """Weights of the RMSNorms: two a layer, queries and keys, and the last one."""
    return m.n_layers * (2 * m.d_model + 2 * m.head_dim) + m.d_model


def params_nonembedding(m: ModelConfig) -> int:
    """Everything but the embedding table and the head (Kaplan et al., arXiv 2001.08361)."""
    return m.n_layers * layer_params(m) + norm_params(m)


def params_total(m: ModelConfig) -> int:
    """Every stored number; a tied table once."""
    tables = 1 if m.tied else 2
    return params_nonembedding(m) + tables * m.vocab_size * m.d_model


def flops_per_token(m: ModelConfig) -> int:
    """Training FLOPs a token: 6 a matrix weight, and 12 * layers * heads * head_dim * context for attention.

    Attention counts the full square, as in PaLM (arXiv 2204.02311, appendix B) and torch's FLOP
    counter, though a causal kernel may skip half of it.
    """
    attention = 12 * m.n_layers * m.n_heads * m.head_dim * m.context
    return 6 * params_matmul(m) + attention


def training_memory_bytes(m: ModelConfig, batch_tokens: int, ranks: int = 1) -> int:
    """Estimate of what training holds: weights, gradients, two moments, and the saved activations.

    Each of several ranks holds its own copy of all but its share of the activations, and a buffer for the
    gradients of all.
    A layer saves about 14 tensors of the width and 4 of the feed-forward width (counted on `gpt.Block`);
    the head saves a gradient of its own size. The interpreter and torch's libraries come on top.
    """
    states = (4 if ranks == 1 else 5) * params_total(m)
    saved = m.n_layers * (14 * m.d_model + 4 * m.d_ff) + 4 * m.d_model
    head = 2 * m.vocab_size * m.d_model
    return BYTES_FLOAT32 * (ranks * (states + head) + batch_tokens * saved)


def weight_bytes(params: float, bits: float) -> float:
    """Bytes of that many weights at that many bits each; decoding one sequence reads them once a token."""
    return params * bits / 8


@lru_cache
def matmul_peak(threads: int, seconds: float = 0.3) -> float:
    """Best float32 matrix-multiplication rate of this process with `threads` threads, in FLOP/s."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    size = 768
    a, b = torch.rand(size, size), torch.rand(size, size)
    best, deadline = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    torch.set_num_threads(before)
    return best
