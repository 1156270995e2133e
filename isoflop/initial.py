"""Initial weights: blocks that start as the identity, and an induction circuit in the first two layers.

A small model learns little from its context until two layers have found each other: a head that looks at
the token before, and a head that looks for places where the current token came before and copies what
followed (Olsson et al., In-context Learning and Induction Heads, arXiv 2209.11895). The search is a long
plateau, then a steep phase that no power law foresees. Started as below there is neither (docs/LOG.md).

The residual stream is divided at the start: channel 0 is the same for every token; `here` holds the
token, `before` is empty and receives the previous token. Training is free to change all of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from isoflop.gpt import GPT, Attention, rotary_frequencies

# Of normalised queries and keys: at 1 no logit could exceed sqrt(head_dim), 5.7 for heads of 32.
QK_GAIN = 1.4
FAST = 0.15  # radians a token: frequencies that tell one position from the next
SLOW = 5.0  # radians over the whole context: frequencies that hardly notice position
COPY_LOGIT = 0.2  # of the initial head on the copied token's channels, where embeddings are standard normal


@torch.no_grad()
def initialise(model: GPT, seed: int) -> None:
    """Set every weight, by `seed` alone.

    Matrices are uniform with variance 1/fan_in, output projections and the untied head zero, the
    embedding standard normal (Jordan's modded-nanogpt recipe: every block starts as the identity).
    Then the induction circuit is wired.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            weight.zero_()
        elif name.endswith("embed_tokens.weight"):
            std = 0.02 if model.config.tied else 1.0
            weight.copy_(torch.empty(weight.shape).normal_(0, std, generator=generator))
        elif name.endswith(("q_norm.weight", "k_norm.weight")):
            weight.fill_(QK_GAIN)
        elif weight.ndim == 2:
            bound = math.sqrt(3.0 / weight.shape[1])
            weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
    if model.config.n_layers >= 2 and not model.config.tied:
        _wire(model, generator)


def _wire(model: GPT, generator: torch.Generator) -> None:
    """Make head 0 of layer 0 look at the token before, and head 0 of layer 1 an induction head.

    With grouped-query attention their key/value heads are the first. The rest is left as it is.
    """
    config = model.config
    d, e = config.d_model, config.head_dim
    n = min(e, (d - 1) // 2)
    here, before = torch.arange(1, n + 1), torch.arange(d - n, d)
    frequency = rotary_frequencies(e, config.rope_theta)
    pairs = torch.arange(e // 2)
    embedding = model.model.embed_tokens.weight
    embedding[:, before] = 0.0
    embedding[:, 0] = d**0.5

    first, second = (model.model.layers[i].self_attn for i in (0, 1))
    assert isinstance(first, Attention)
    assert isinstance(second, Attention)
    _look_back(first, pairs[frequency > FAST], frequency)
    _carry(first, here, before, torch.eye(n))

    unmoved = pairs[frequency * config.context <= SLOW]
    channels = torch.cat((unmoved, unmoved + e // 2))  # both halves of each rotary pair
    match = _orthogonal(max(n, len(channels)), generator)[: len(channels), :n]
    for projection, source in ((second.q_proj, here), (second.k_proj, before)):
        projection.weight[:e] = 0.0
        projection.weight[channels[:, None], source] = match
    turn = _orthogonal(n, generator)
    _carry(second, here, before, turn)
    model.lm_head.weight[:, before] = COPY_LOGIT * embedding[:, here] @ turn.T


def _look_back(attention: Attention, pairs: Tensor, frequency: Tensor) -> None:
    """Head 0's queries and keys depend on position alone and agree best one token apart.

    Both read the constant channel; the key is turned ahead by one position's angle.
    """
    e = attention.head_dim
    angle = frequency[pairs].float()
    for projection, real, imaginary in (
        (attention.q_proj, torch.ones(len(pairs)), torch.zeros(len(pairs))),
        (attention.k_proj, angle.cos(), angle.sin()),
    ):
        projection.weight[:e] = 0.0
        projection.weight[pairs, 0] = real
        projection.weight[pairs + e // 2, 0] = imaginary


def _carry(attention: Attention, source: Tensor, target: Tensor, turn: Tensor) -> None:
    """Head 0 adds the attended token's `source` channels, turned, to `target`."""
    e, n = attention.head_dim, len(source)
    attention.v_proj.weight[:e] = 0.0
    attention.v_proj.weight[torch.arange(n), source] = 1.0
    attention.o_proj.weight[:, :e] = 0.0
    attention.o_proj.weight[target[:, None], torch.arange(n)] = turn


def _orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal matrix."""
    q: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
    return q
