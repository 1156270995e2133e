"""Transformers by their shape: parameters and training FLOPs, dense or with experts.

FLOPs as in `isoflop.flops`: 2 a multiply-add, the backward pass twice the forward, attention counted as the
full square (PaLM, 2204.02311, appendix B).
"""

from __future__ import annotations

import math

from pydantic import PositiveInt, model_validator

from isoflop.errors import LayoutError
from isoflop.records import Record

VOCAB = 128_000  # near Llama 3's
HEAD_DIM, KV_HEADS = 128, 8
ASPECT = 128  # width over layers: Llama's 7B 128, 13B 128, 405B 130
FF_RATIO = 3.5  # feed-forward width over width, gated: Llama 3's 8B and 70B
ACTIVE_EXPERTS = 8  # of many: DeepSeek-V3, Qwen3


class Shape(Record):
    """A decoder. Widths in numbers, `context` in tokens."""

    layers: PositiveInt
    width: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    ff: PositiveInt  # of a dense layer
    vocab: PositiveInt
    context: PositiveInt
    head_dim: int = 0  # 0: width / heads
    gated: bool = True  # three matrices rather than two
    tied: bool = False
    dropout: bool = False  # its masks are kept for the backward pass
    parallel_block: bool = False  # attention and feed-forward side by side: half the all-reduces
    experts: int = 0  # routed, in each sparse layer
    active_experts: int = 0  # of them a token
    shared_experts: int = 0
    expert_ff: int = 0
    dense_layers: int = 0  # of `layers`, without experts, where there are experts
    attention_params: int = 0  # a layer, where it is not the usual four matrices; 0: it is
    kv_cached: int = 0  # numbers cached a token and layer, where it is not keys and values; 0: it is

    @model_validator(mode="after")
    def _divides(self) -> Shape:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.active_experts > self.experts:
            raise ValueError(f"{self.active_experts} of {self.experts} experts cannot be active")
        return self

    @property
    def dim(self) -> int:
        """Of a head."""
        return self.head_dim or self.width // self.heads

    @property
    def sparse_layers(self) -> int:
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def attention(self) -> int:
        """Weights a layer: queries and output, keys and values."""
        return self.attention_params or 2 * self.width * self.dim * (self.heads + self.kv_heads)

    def _mlp(self, ff: int) -> int:
        return (3 if self.gated else 2) * self.width * ff

    @property
    def expert_params(self) -> int:
        """Weights of all routed experts: what expert parallelism shares out."""
        return self.sparse_layers * self.experts * self._mlp(self.expert_ff)

    @property
    def dense_params(self) -> int:
        """Weights that every token meets, the embedding table apart; the head counted. Norms are left out."""
        shared = self.sparse_layers * self.shared_experts * self._mlp(self.expert_ff)
        dense = (self.layers - self.sparse_layers) * self._mlp(self.ff)
        return self.layers * self.attention + dense + shared + self.vocab * self.width

    @property
    def params(self) -> int:
        """Every weight."""
        return self.dense_params + self.expert_params + (0 if self.tied else self.vocab * self.width)

    @property
    def active_params(self) -> int:
        """N: weights that multiply a token."""
        routed = self.sparse_layers * self.active_experts * self._mlp(self.expert_ff)
        return self.dense_params + routed

    @property
    def score_flops_per_token(self) -> float:
        """Of attention's scores and sums, forward: 4 * layers * heads * head_dim * context."""
        return 4.0 * self.layers * self.heads * self.dim * self.context

    @property
    def head_flops_per_token(self) -> float:
        """Forward, of the output head."""
        return 2.0 * self.vocab * self.width

    @property
    def flops_per_token(self) -> float:
        """Training: 6 N and attention's."""
        return 6.0 * self.active_params + 3 * self.score_flops_per_token

    @property
    def kv_cache(self) -> int:
        """Numbers cached a token, all layers."""
        return self.layers * (self.kv_cached or 2 * self.kv_heads * self.dim)

    @property
    def words(self) -> str:
        base = f"{self.layers} layers, width {self.width:,}, {self.heads} heads ({self.kv_heads} key-value)"
        if not self.experts:
            return f"{base}, feed-forward {self.ff:,}"
        return f"{base}, {self.experts} experts of {self.expert_ff:,}, {self.active_experts} active"


def shape_for(params: float, *, context: int = 8192, experts: int = 0) -> Shape:
    """A shape of about `params` active parameters, by the habits of Llama 3 and DeepSeek-V3.

    Heads of 128, 8 of keys and values, feed-forward 3.5 times the width; layers in multiples of 4 from 16 on,
    of 8 from 64 on. Of all widths in multiples of 256 (1,024 from 2,048 on) it takes the one whose size is
    nearest to `params` and whose width over layers is nearest to 128. With `experts`, 8 of them and a shared
    one take the place of the feed-forward part, each a ninth as wide: as many active parameters, many more in
    all.
    Raises LayoutError below a million parameters or for fewer than 2 experts.
    """
    if not 1e6 <= params < 1e15:
        raise LayoutError(
            f"A model of {params:.3g} parameters is not planned here.", hint="Give 1M to 1000T."
        )
    if experts and experts < 2:
        raise LayoutError(f"{experts} expert is a dense model.", hint="Give --experts 8 or more, or none.")
    widths = [*range(256, 2048, 256), *range(2048, 262_145, 1024)]
    shapes = [s for w in widths if (s := _of_width(params, w, context, experts)) is not None]
    return min(shapes, key=lambda s: _distance(s, params))


def _distance(shape: Shape, params: float) -> float:
    """How far from the habits: of width over layers, and of the size that was asked for."""
    aspect = abs(math.log(shape.width / shape.layers / ASPECT))
    return aspect + 3 * abs(math.log(shape.active_params / params))


def _of_width(params: float, width: int, context: int, experts: int) -> Shape | None:
    heads = width // HEAD_DIM
    ff = int(FF_RATIO * width)
    base = {"width": width, "heads": heads, "kv_heads": math.gcd(KV_HEADS, heads), "ff": ff,
            "vocab": VOCAB, "context": context}  # fmt: skip
    if experts:
        active = min(ACTIVE_EXPERTS, experts)
        narrow = max(128, round(ff / (active + 1) / 128) * 128)
        base |= {"experts": experts, "active_experts": active, "shared_experts": 1, "expert_ff": narrow}
    one, two = (Shape(layers=n, **base).active_params for n in (1, 2))
    layers = _even((params - (2 * one - two)) / (two - one))
    return Shape(layers=layers, **base) if 1 <= layers <= 512 else None


def _even(layers: float) -> int:
    """Rounded so that pipeline stages divide it: to multiples of 4 from 16 on, of 8 from 64 on."""
    step = 1 if layers < 16 else 4 if layers < 64 else 8
    return step * round(layers / step)
