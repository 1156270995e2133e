"""The decoder: Qwen3's architecture, so that what is trained here opens in transformers, vLLM and llama.cpp.

Pre-norm RMSNorm, rotary embedding, grouped-query attention with QK-norm, SwiGLU, optional tied head
(Qwen3 technical report, arXiv 2505.09388). Module names are those of `Qwen3ForCausalLM`, so the state
dictionary is the Hugging Face one.

Shapes: b batch, t time, n = b*t, d width, h heads, k key/value heads, e head width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES, prefix_mask, prefix_of
from isoflop.records import ModelConfig

EPS = 1e-6
FAST_HEAD = 64  # from here on torch's fused attention on a CPU gains by 16 bits
CHUNK_TOKENS = 512  # logits of one chunk stay in cache: 512 x 4,096 x 4 bytes = 8 MB


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang and Sennrich, arXiv 1910.07467)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # under autocast x may have 16 bits, whose squares lose or overflow
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * self.weight


def rotary_frequencies(head_dim: int, theta: float) -> Tensor:
    """(e/2,) radians a token of each pair, fastest first (Su et al., arXiv 2104.09864)."""
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)


def rotary_tables(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (t, e), of the rotary embedding, halves layout."""
    frequency = rotary_frequencies(head_dim, theta)
    angle_te = torch.outer(torch.arange(context, dtype=torch.float64), frequency).repeat(1, 2)
    return angle_te.cos().float(), angle_te.sin().float()


def rotate(x_bhte: Tensor, cos_te: Tensor, sin_te: Tensor) -> Tensor:
    """Rotate each pair (i, i + e/2) by its position's angle."""
    first, second = x_bhte.chunk(2, dim=-1)
    return x_bhte * cos_te + torch.cat((-second, first), dim=-1) * sin_te


class Attention(nn.Module):
    """Grouped-query attention with RMS-normalised queries and keys; causal, but for a prefix seen whole."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.grouped = config.n_kv_heads != config.n_heads
        self.prefix = prefix_of(config)
        d, e = config.d_model, config.head_dim
        self.q_proj = nn.Linear(d, config.n_heads * e, bias=False)
        self.k_proj = nn.Linear(d, config.n_kv_heads * e, bias=False)
        self.v_proj = nn.Linear(d, config.n_kv_heads * e, bias=False)
        self.o_proj = nn.Linear(config.n_heads * e, d, bias=False)
        self.q_norm = RMSNorm(e)
        self.k_norm = RMSNorm(e)

    def forward(self, x_btd: Tensor, cos_te: Tensor, sin_te: Tensor) -> Tensor:
        b, t, _ = x_btd.shape
        heads = (b, t, -1, self.head_dim)
        q_bhte = rotate(self.q_norm(self.q_proj(x_btd).view(heads)).transpose(1, 2), cos_te, sin_te)
        k_bkte = rotate(self.k_norm(self.k_proj(x_btd).view(heads)).transpose(1, 2), cos_te, sin_te)
        v_bkte = self.v_proj(x_btd).view(heads).transpose(1, 2)
        seen_tt = prefix_mask(t, self.prefix, x_btd.device) if self.prefix else None
        with self._attention_dtype(x_btd.device.type):
            y_bhte = F.scaled_dot_product_attention(
                q_bhte, k_bkte, v_bkte.to(q_bhte.dtype), attn_mask=seen_tt, is_causal=not self.prefix,
                enable_gqa=self.grouped,
            )  # fmt: skip
        out: Tensor = self.o_proj(y_bhte.transpose(1, 2).reshape(b, t, -1))
        return out

    def _attention_dtype(self, kind: str) -> AbstractContextManager[Any]:
        """Autocast as it is, but off for small heads on a CPU: there 32 bits are faster than 16."""
        slow = kind == "cpu" and self.head_dim < FAST_HEAD
        return torch.autocast(kind, enabled=False) if slow else nullcontext()


class MLP(nn.Module):
    """SwiGLU feed-forward (Shazeer, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_btd)) * self.up_proj(x_btd))
        return out


class Block(nn.Module):
    """One pre-norm layer; dropout on what it adds to the residual stream."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.d_model)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor, cos_te: Tensor, sin_te: Tensor) -> Tensor:
        x_btd = x_btd + self.dropout(self.self_attn(self.input_layernorm(x_btd), cos_te, sin_te))
        out: Tensor = x_btd + self.dropout(self.mlp(self.post_attention_layernorm(x_btd)))
        return out


class Decoder(nn.Module):
    """Embedding, layers and final norm (`Qwen3Model`); dropout on the embedding and in the layers."""

    cos_te: Tensor
    sin_te: Tensor

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model)
        cos_te, sin_te = rotary_tables(config.context, config.head_dim, config.rope_theta)
        self.register_buffer("cos_te", cos_te, persistent=False)
        self.register_buffer("sin_te", sin_te, persistent=False)

    def forward(self, ids_bt: Tensor) -> Tensor:
        t = ids_bt.shape[1]
        x_btd = self.dropout(self.embed_tokens(ids_bt))
        for layer in self.layers:
            x_btd = layer(x_btd, self.cos_te[:t], self.sin_te[:t])
        out: Tensor = self.norm(x_btd)
        return out


class GPT(LanguageModel):
    """The language model (`Qwen3ForCausalLM`): decoder and output head.

    Qwen3 has no dropout: ours acts while training alone, and what is saved does without.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def table(self) -> Tensor:
        return self.model.embed_tokens.weight

    @property
    def head(self) -> Tensor:
        return self.lm_head.weight

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.model.layers)

    def forward(self, ids_bt: Tensor) -> Tensor:
        """Logits (b, t, v) of each next token."""
        out: Tensor = self.lm_head(self.model(ids_bt))
        return out

    def features(self, ids_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        return self._written(self.model(ids_bt)).flatten(0, 1), self._written(targets_bt).flatten()

    def loss(self, ids_bt: Tensor, targets_bt: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats a token, without ever holding all logits."""
        x_nd, y_n = self.features(ids_bt, targets_bt)
        out: Tensor = LinearCrossEntropy.apply(x_nd, self.lm_head.weight, y_n, label_smoothing)  # type: ignore[no-untyped-call]
        return out

    def last_logits(self, ids_bt: Tensor) -> Tensor:
        out: Tensor = self.lm_head(self.model(ids_bt)[:, -1])
        return out

    @torch.no_grad()
    def token_losses(self, ids_bt: Tensor, targets_bt: Tensor) -> Tensor:
        """Cross-entropy (b, t) of each token, in nats."""
        x_nd, targets = self._written(self.model(ids_bt)).flatten(0, 1), self._written(targets_bt)
        parts = [
            F.cross_entropy(self.lm_head(x), y, reduction="none")
            for x, y in zip(
                torch.split(x_nd, CHUNK_TOKENS), torch.split(targets.flatten(), CHUNK_TOKENS), strict=True
            )
        ]
        return F.pad(torch.cat(parts).view_as(targets), (targets_bt.shape[1] - targets.shape[1], 0))

    def _written(self, x: Tensor) -> Tensor:
        """Of (b, t, ...) the positions that are predicted, the last ones of each row."""
        return x[:, x.shape[1] - OBJECTIVES[self.config.objective].predicted(x.shape[1]) :]


class LinearCrossEntropy(torch.autograd.Function):
    """mean(cross_entropy(x @ weight.T, targets)) with its gradients made chunk by chunk in the forward pass.

    Logits never leave the cache and the softmax is computed once, not twice. Under autocast the three
    products have its 16 bits, and what is summed up has the 32 of `x`.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x_nd: Tensor,
        weight_vd: Tensor,
        y_n: Tensor,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        n, chunk = x_nd.shape[0], min(CHUNK_TOKENS, x_nd.shape[0])
        low = product_dtype(x_nd)
        low_vd, sure = weight_vd.to(low), 1 - label_smoothing
        # 1/n goes into the small softmax where nothing is lost by it, and of 16 bits is left to the end.
        within, after = (n, 1) if low == x_nd.dtype else (1, n)
        grad_x, grad_weight = torch.empty_like(x_nd, dtype=low), torch.zeros_like(weight_vd)
        # One of each for all chunks: fresh pages cost as much as exp.
        logits_cv = low_vd.new_empty(chunk, len(low_vd))
        p_cv = logits_cv if low == x_nd.dtype else torch.empty_like(logits_cv, dtype=x_nd.dtype)
        total = x_nd.new_zeros(())
        for start in range(0, n, chunk):
            rows = slice(start, start + chunk)
            x, y = x_nd[rows].to(low), y_n[rows, None]
            logits = torch.mm(x, low_vd.T, out=logits_cv[: len(x)])
            p = logits if p_cv is logits_cv else p_cv[: len(x)].copy_(logits)
            picked, top = p.gather(1, y), p.amax(1, keepdim=True)
            if label_smoothing:
                picked = sure * picked + label_smoothing * p.mean(1, keepdim=True)
            norm = p.sub_(top).exp_().sum(1, keepdim=True)
            total += (norm.log() + top - picked).sum()
            p.mul_(1.0 / (within * norm))  # softmax, less what is wanted of it
            p.scatter_add_(1, y, p.new_full((1, 1), -sure / within).expand_as(y))
            if label_smoothing:
                p.sub_(label_smoothing / (within * len(weight_vd)))
            if p_cv is logits_cv:
                grad_weight.addmm_(p.T, x)
            else:
                p = logits.copy_(p)
                grad_weight += torch.mm(p.T, x)
            torch.mm(p, low_vd, out=grad_x[rows])
        ctx.save_for_backward(grad_x, grad_weight)
        ctx.after, ctx.dtype = after, x_nd.dtype  # type: ignore[attr-defined]
        return total / n

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        share = grad / ctx.after  # type: ignore[attr-defined]
        return grad_x.to(ctx.dtype) * share, grad_weight * share, None, None  # type: ignore[attr-defined]


def product_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply `x` in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
