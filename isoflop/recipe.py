"""The default recipe: from one size and a vocabulary to a complete configuration.

Every value is derived in a numbered step, and each can be overridden by keyword. What was measured for
this project is in docs/LOG.md; the rest cites its source or says that it is an assumption.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from isoflop import flops
from isoflop.records import ModelConfig, RunConfig

WIDTH_STEP = 32  # GGUF's 8- and 4-bit blocks hold 32 weights
SMALLEST_WIDTH = 64  # 32 lies far above the law of the others, with one head or two (docs/LOG.md)
CONTEXT = 512
OWN_KIND = ModelConfig.model_fields["family"].default, "causal", ""  # our decoder
WARMUP_STEPS = 10
MATRIX_RATES = {  # of each optimizer of the matrices: at width 128, and the power of the width it falls with
    "muon": (0.04, 0.0),
    "normuon": (0.04, 0.0),
    "adamw": (0.004, 1.0),
    "soap": (0.003, 1.0),
}


def shape(
    d_model: int, vocab_size: int, *, n_layers: int | None = None, context: int = CONTEXT
) -> ModelConfig:
    """The decoder of one width.

    1. Depth d_model / 64, at least 2 (nanochat's aspect ratio; Kaplan et al., arXiv 2001.08361, figure 5,
       find a wide range equal; here 2 layers of 96 beat 3, docs/LOG.md).
    2. Heads of 32 below width 256, 64 below 1,024, then 128 (Qwen3's).
    3. Feed-forward width 8/3 of d_model (Shazeer, arXiv 2002.05202), rounded to 32.
    """
    layers = n_layers or max(2, round(d_model / 64))
    head_dim = 32 if d_model < 256 else 64 if d_model < 1024 else 128
    heads = max(1, d_model // head_dim)
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=head_dim,
        d_ff=WIDTH_STEP * max(1, round(8 / 3 * d_model / WIDTH_STEP)),
        context=context,
    )


def widths(unit: int = WIDTH_STEP) -> Iterator[int]:
    """Widths of a ladder, multiples of `unit`: fine steps where one is a large share, whole heads beyond."""
    width = unit * math.ceil(SMALLEST_WIDTH / unit)
    while True:
        yield width
        step = WIDTH_STEP if width < 256 else 64 if width < 1024 else 128
        width += unit * max(1, round(step / unit))


def matrix_rate(optimizer: str, d_model: int) -> float:
    """Peak learning rate of the blocks' matrices: step 2 of `recipe`."""
    rate, power = MATRIX_RATES[optimizer]
    return rate * math.pow(128 / d_model, power)


def recipe(model: ModelConfig, tokens: int, **overrides: Any) -> RunConfig:
    """The training configuration of one shape; keyword arguments replace derived values.

    1. Batch: 1,024 tokens at N = 0.1M, growing as sqrt(N), a power of two (at N = 0.4M 2,048 beats 1,024
       and 4,096; the growth keeps Muon's orthogonalisation, about 1,500 d^3 FLOPs a step, a small share).
    2. Matrix rate 0.04 for Muon (docs/LOG.md), constant over width: its step's spectral norm is already
       scaled (Bernstein and Newhouse, arXiv 2409.20325). NorMuon keeps that norm. AdamW and SOAP, which step
       every weight alike, have a rate that falls as 1/d_model (Yang et al., arXiv 2203.03466), its constant
       the better of two in a look of 40 steps.
    3. Embedding and head rates for AdamW fall as 1/sqrt(d_model), from their values at width 128: 0.07 for
       the embedding is worth 0.20 doublings of compute [0.16, 0.27] over 0.2 from 6.6e11 to 1.2e13 FLOPs,
       0.10 at the top, and 0.1 is as good there (docs/LOG.md). A table that is both learns at the head's: 10%
       less loss for ModernBERT, within 1% for GPT-2 and BERT (150 to 300 steps at width 64).
    4. Warm-up of 10 batches (25 are worse for short runs); cooldown to zero over the last 30% (Haegele et
       al., arXiv 2405.18392, find 20% enough for long runs and more better for short ones).
    5. Windows of half the context until the cooldown, of all of it from there on: +0.18 doublings of compute
       [0.14, 0.24], from 2e11 to 1.2e13 FLOPs (docs/LOG.md). Measured on our decoder with a context of 512;
       other families, other objectives and shorter contexts have whole windows throughout.
    6. Products in bf16 where this machine is much faster in it (`devices.preferred_precision`): at equal
       FLOPs 0.00 doublings [-0.03, 0.03] (docs/LOG.md). Measured on our decoder; other families have float32.
    """
    from isoflop.devices import preferred_precision  # brings torch in

    size = flops.params_matmul(model)
    batch = max(2 ** round(math.log2(1024 * math.sqrt(size / 100_000))), model.context)
    batch = overrides.get("batch_tokens", batch)
    width = math.sqrt(128 / model.d_model)
    optimizer = overrides.get("optimizer", RunConfig.model_fields["optimizer"].default)
    own = model.kind == OWN_KIND
    values: dict[str, Any] = {
        "model": model,
        "tokens": tokens,
        "batch_tokens": batch,
        "lr_matrix": matrix_rate(optimizer, model.d_model),
        "lr_embed": (0.01 if model.tied else 0.07) * width,
        "lr_head": 0.01 * width,
        "lr_vector": 0.01,
        "weight_decay": 0.0,
        "warmup_tokens": WARMUP_STEPS * batch,
        "cooldown": 0.3,
        "trunk_context": model.context // 2 if own and model.context >= CONTEXT else 0,
        "precision": preferred_precision() if own else "float32",
    }
    return RunConfig.model_validate(values | overrides)
