"""The initial weights copy before anything is learned."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.corpus import heldout_tokens
from isoflop.gpt import GPT, Attention, rotate
from isoflop.initial import initialise
from isoflop.recipe import shape
from isoflop.records import Corpus, ModelConfig

CONTEXT = 256


def started(config: ModelConfig, seed: int = 0) -> GPT:
    model = GPT(config)
    initialise(model, seed)
    return model


def text(corpus: Corpus) -> Tensor:
    """(4, context) held-out token ids."""
    ids = torch.from_numpy(heldout_tokens(corpus)[: 4 * CONTEXT].astype("int64"))
    return ids.view(4, CONTEXT)


@torch.no_grad()
def attention_bts(model: GPT, ids_bt: Tensor, layer: int) -> Tensor:
    """Where head 0 of `layer` looks, from the weights alone."""
    body, t = model.model, ids_bt.shape[1]
    x_btd = body.embed_tokens(ids_bt)
    for block in list(body.layers)[:layer]:
        x_btd = block(x_btd, body.cos_te[:t], body.sin_te[:t])
    block = body.layers[layer]
    heads, e = block.self_attn, model.config.head_dim
    assert isinstance(heads, Attention)
    y_btd = block.input_layernorm(x_btd)  # type: ignore[operator]
    q_bte = rotate(heads.q_norm(heads.q_proj(y_btd)[..., :e]), body.cos_te[:t], body.sin_te[:t])
    k_bse = rotate(heads.k_norm(heads.k_proj(y_btd)[..., :e]), body.cos_te[:t], body.sin_te[:t])
    future = torch.ones(t, t, dtype=torch.bool).triu(1)
    attention: Tensor = (q_bte @ k_bse.mT / e**0.5).masked_fill(future, -torch.inf).softmax(-1)
    return attention


@pytest.mark.parametrize("width", [32, 64, 96, 256])
def test_the_first_layer_looks_at_the_token_before(corpus: Corpus, width: int) -> None:
    model = started(shape(width, corpus.vocab_size, n_layers=2, context=CONTEXT))
    mass = attention_bts(model, text(corpus), 0).diagonal(-1, 1, 2)
    assert mass.mean() > 0.5


@pytest.mark.parametrize("width", [64, 96, 256])
def test_the_second_layer_finds_what_followed(corpus: Corpus, width: int) -> None:
    model = started(shape(width, corpus.vocab_size, n_layers=2, context=CONTEXT))
    ids = text(corpus)
    followed_bts = torch.zeros(4, CONTEXT, CONTEXT, dtype=torch.bool)
    followed_bts[:, :, 1:] = ids[:, :, None] == ids[:, None, :-1]
    followed_bts &= torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril()
    some = followed_bts.any(-1)
    mass = (attention_bts(model, ids, 1) * followed_bts).sum(-1)[some]
    chance = followed_bts.float().sum(-1)[some] / CONTEXT
    assert mass.mean() > 0.7 > 10 * chance.mean()


def test_a_repeated_text_is_predicted_before_training(corpus: Corpus) -> None:
    model = started(shape(64, corpus.vocab_size, n_layers=2, context=CONTEXT))
    generator = torch.Generator().manual_seed(3)
    once = torch.randperm(corpus.vocab_size, generator=generator)[None, :100]
    twice = torch.cat((once, once), dim=1)
    logits = model(twice)[:, 100:-1].flatten(0, 1)
    right = (logits.argmax(-1) == twice[:, 101:].flatten()).float().mean()
    assert right > 0.5  # chance: 1 in 512
    uniform = torch.log(torch.tensor(float(corpus.vocab_size)))
    assert F.cross_entropy(logits, twice[:, 101:].flatten()) < uniform - 1


def test_weights_depend_on_the_seed_alone(corpus: Corpus) -> None:
    config = shape(64, corpus.vocab_size, context=CONTEXT)
    first, again, other = (started(config, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("change", [{"tied": True}, {"n_layers": 1}, {"n_kv_heads": 1}])
def test_other_shapes_start_too(corpus: Corpus, change: dict[str, object]) -> None:
    config = shape(64, corpus.vocab_size, context=CONTEXT).model_copy(update=change)
    loss = started(config).loss(text(corpus)[:, :-1], text(corpus)[:, 1:])
    assert 1.0 < loss < 7.0
