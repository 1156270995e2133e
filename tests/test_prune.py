"""Pruning: nothing is lost where nothing goes, what is zero goes first, and other readers open the result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop import flops
from isoflop.errors import CorpusError, TrainError
from isoflop.export import load_pretrained, save_pretrained
from isoflop.export.calibrate import windows
from isoflop.gpt import GPT
from isoflop.progress import Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, ModelConfig
from isoflop.trainer import Trainer
from isoflop.transforms.importance import DEPTHS, MEASURES, Importance, blocks, measure, norms
from isoflop.transforms.prune import prune, top
from isoflop.transforms.shapes import candidates, path, smaller

Damage = Callable[[GPT], None]
TOKENS = 1024


def grouped(vocab_size: int) -> ModelConfig:
    """Four heads of 32 that share two key/value heads."""
    return ModelConfig(
        vocab_size=vocab_size, d_model=96, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32, d_ff=160,
        context=64,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model after 60 steps: its output projections are zero at the start."""
    folder = tmp_path_factory.mktemp("prune") / "model"
    trainer = Trainer(recipe(grouped(corpus.vocab_size), 60 * 512, batch_tokens=512), corpus, Silent())
    for _ in range(60):
        trainer.train_step(60 * 512)
    save_pretrained(trainer.model, corpus, folder)
    return folder


@pytest.fixture
def model(trained: Path) -> GPT:
    """A copy of it to change."""
    found = load_pretrained(trained)
    assert isinstance(found, GPT)
    return found


def some_ids(corpus: Corpus) -> Tensor:
    return next(windows(corpus, 64, 8 * 64))[:, :-1]


def logits(model: GPT, corpus: Corpus) -> Tensor:
    with torch.no_grad():
        return model.forward(some_ids(corpus))


def test_pruning_nothing_changes_nothing(model: GPT, corpus: Corpus) -> None:
    same = prune(model, measure(model, corpus, tokens=TOKENS), model.config)
    assert torch.equal(logits(same, corpus), logits(model, corpus))


def silence_layer(model: GPT) -> None:
    blocks(model)[1].self_attn.o_proj.weight.zero_()
    blocks(model)[1].mlp.down_proj.weight.zero_()


def silence_groups(model: GPT) -> None:
    """Another one in each layer."""
    for i, block in enumerate(blocks(model)):
        block.self_attn.v_proj.weight[32 * (i % 2) :][:32].zero_()


def silence_neurons(model: GPT) -> None:
    for i, block in enumerate(blocks(model)):
        block.mlp.up_proj.weight[i : i + 32].zero_()


def silence_channels(model: GPT) -> None:
    """Every channel from 10 to 41: nothing writes to it."""
    for block in blocks(model):
        block.self_attn.o_proj.weight[10:42].zero_()
        block.mlp.down_proj.weight[10:42].zero_()
    model.table[:, 10:42].zero_()


PLANTED: list[tuple[Damage, dict[str, int]]] = [
    (silence_layer, {"n_layers": 2}),
    (silence_groups, {"n_heads": 2}),
    (silence_neurons, {"d_ff": 128}),
    (silence_channels, {"d_model": 64}),
]


@pytest.mark.parametrize("by", [by for by in MEASURES if by != "random"])
@pytest.mark.parametrize("depth", [by for by in DEPTHS if by != "random"])
@pytest.mark.parametrize(("damage", "keep"), PLANTED)
def test_what_does_nothing_goes_first_and_nothing_is_lost(
    model: GPT, corpus: Corpus, damage: Damage, keep: dict[str, int], by: str, depth: str
) -> None:
    with torch.no_grad():
        damage(model)
    made = prune(
        model, measure(model, corpus, by=by, depth=depth, tokens=TOKENS), smaller(model.config, **keep)
    )
    assert flops.params_total(made.config) == sum(p.numel() for p in made.parameters())
    assert flops.params_total(made.config) < flops.params_total(model.config)
    assert (logits(made, corpus) - logits(model, corpus)).abs().max() < 1e-4


def test_importance_is_what_its_formulas_say(model: GPT, corpus: Corpus) -> None:
    """Against a forward pass written out here, window by window."""
    ids, layer = some_ids(corpus), blocks(model)[0]
    with torch.no_grad():
        x = model.table[ids]
        normed = layer.input_layernorm(x)
        a = layer.self_attn
        heads_in: list[Tensor] = []
        hook = a.o_proj.register_forward_pre_hook(lambda module, inputs: heads_in.append(inputs[0]))
        middle = x + a(normed, model.model.cos_te[:64], model.model.sin_te[:64])
        hook.remove()
        read = layer.post_attention_layernorm(middle)
        neurons = F.silu(read @ layer.mlp.gate_proj.weight.T) * (read @ layer.mlp.up_proj.weight.T)
        y = middle + neurons @ layer.mlp.down_proj.weight.T
    size = heads_in[0].view(8, 64, 4, 32).square().sum(-1).sqrt()
    tokens = ids.numel()
    found = measure(model, corpus, tokens=tokens)
    assert (found.tokens, found.flops) == (tokens, flops.flops_per_token(model.config) * tokens / 3)
    torch.testing.assert_close(
        found.groups_lk[0].float(), size.mean((0, 1)).view(2, 2).sum(1), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(found.ff_lf[0].float(), neurons.abs().mean((0, 1)), rtol=1e-4, atol=1e-6)
    cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    assert float(found.layers_l[0]) == pytest.approx(float((1 - cosine).mean()), rel=1e-4)
    torch.testing.assert_close(found.squares_nd[0].float(), x.square().mean((0, 1)), rtol=1e-4, atol=1e-6)
    squared = measure(model, corpus, by="l2", tokens=tokens)
    torch.testing.assert_close(squared.ff_lf[0].float(), neurons.square().mean((0, 1)), rtol=1e-4, atol=1e-6)


def test_random_importance_is_of_its_seed(model: GPT, corpus: Corpus) -> None:
    first, same, other = (
        measure(model, corpus, by="random", depth="random", tokens=512, seed=seed) for seed in (1, 1, 2)
    )
    for name in ("layers_l", "groups_lk", "ff_lf", "width_d"):
        drawn = getattr(first, name)
        assert torch.equal(drawn, getattr(same, name))
        assert not torch.equal(drawn, getattr(other, name))
        assert len(drawn.unique()) == drawn.numel()
    assert torch.equal(first.squares_nd, measure(model, corpus, tokens=512).squares_nd)


def test_width_adds_up_over_all_norms(model: GPT, corpus: Corpus) -> None:
    outputs: list[Tensor] = []
    hooks = [n.register_forward_hook(lambda module, i, out: outputs.append(out)) for n in norms(model)]
    logits(model, corpus)
    for hook in hooks:
        hook.remove()
    assert len(outputs) == 7
    expected = sum(x.abs().mean((0, 1)) for x in outputs)
    found = measure(model, corpus, tokens=some_ids(corpus).numel()).width_d.float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_taylor_is_gradient_times_weight(model: GPT, corpus: Corpus) -> None:
    rows = next(windows(corpus, 64, 512))
    found = measure(model, corpus, by="taylor", depth="taylor", tokens=512)
    ids, targets = rows[:, :-1], rows[:, 1:]
    loss = F.cross_entropy(model.forward(ids).flatten(0, 1), targets.flatten())  # torch's own
    loss.backward()  # type: ignore[no-untyped-call]
    slope = {name: (p.grad * p).abs().detach() for name, p in model.named_parameters() if p.grad is not None}
    of_layer = [s for name, s in slope.items() if ".layers.2." in name]
    assert float(found.layers_l[2]) == pytest.approx(float(sum(s.sum() for s in of_layer)), rel=1e-3)
    mlp = "model.layers.1.mlp."
    neuron = sum(slope[f"{mlp}{n}_proj.weight"][7].sum() for n in ("gate", "up"))
    neuron = neuron + slope[f"{mlp}down_proj.weight"][:, 7].sum()
    assert float(found.ff_lf[1, 7]) == pytest.approx(float(neuron), rel=1e-3)
    attention = "model.layers.0.self_attn."
    second = sum(slope[f"{attention}{n}_proj.weight"][32:].sum() for n in ("k", "v"))
    second = second + slope[f"{attention}q_proj.weight"][64:].sum()
    second = second + slope[f"{attention}o_proj.weight"][:, 64:].sum()
    assert float(found.groups_lk[0, 1]) == pytest.approx(float(second), rel=1e-3)
    channel = sum(
        s[5].sum() if name.endswith(("o_proj.weight", "down_proj.weight")) else s[..., 5].sum()
        for name, s in slope.items()
        if not name.endswith(("q_norm.weight", "k_norm.weight"))
    )
    assert float(found.width_d[5]) == pytest.approx(float(channel), rel=1e-3)
    assert found.flops == flops.flops_per_token(model.config) * 512


def test_activations_keep_their_size_where_channels_go(model: GPT, corpus: Corpus) -> None:
    """Without the rescaling a norm would turn half of the energy into all of it."""
    found = measure(model, corpus, tokens=TOKENS)
    width = top(found.width_d, 64)
    made = prune(model, found, smaller(model.config, d_model=64))
    pairs = [(blocks(m)[0].input_layernorm, m.table[some_ids(corpus)]) for m in (model, made)]
    with torch.no_grad():
        before, after = (norm(x) for norm, x in pairs)
    assert float(after.square().mean().sqrt()) == pytest.approx(
        float(before[..., width].square().mean().sqrt()), rel=0.05
    )


def test_every_layer_keeps_its_own_in_their_old_order() -> None:
    assert top(torch.tensor([3.0, 1.0, 3.0, 2.0, 3.0]), 3).tolist() == [0, 2, 4]
    assert top(torch.tensor([1.0, 1.0, 1.0]), 2).tolist() == [0, 1]


def test_transformers_opens_it_with_the_same_logits(model: GPT, corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = smaller(model.config, n_layers=2, n_heads=2, d_ff=96, d_model=64)
    made = prune(model, measure(model, corpus, by="taylor", tokens=TOKENS), shape)
    save_pretrained(made, corpus, tmp_path / "made")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    with torch.no_grad():
        assert (theirs(some_ids(corpus)).logits - logits(made, corpus)).abs().max() < 1e-4
    again = load_pretrained(tmp_path / "made")
    assert again.config == shape


def test_tied_tables_stay_one(corpus: Corpus) -> None:
    config = grouped(corpus.vocab_size).model_copy(update={"tied": True})
    model = GPT(config).eval()
    made = prune(model, measure(model, corpus, tokens=256, by="taylor"), smaller(config, d_model=64))
    assert made.head is made.table
    same = prune(model, measure(model, corpus, tokens=256), config)
    assert torch.equal(logits(same, corpus), logits(model, corpus))


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"n_layers": 4}, r"--keep-layers is 4, and the model has layers 3"),
        ({"d_ff": 100}, r"--keep-ff is 100, not a multiple of 32"),
        ({"d_model": 0}, r"--keep-width is 0, not a multiple of 32"),
        ({"n_heads": 3}, r"--keep-heads is 3, not a multiple of 2 .* serves 2 of the model's 4"),
    ],
)
def test_shapes_that_cannot_be(keep: dict[str, int], says: str) -> None:
    with pytest.raises(TrainError, match=says):
        smaller(grouped(512), **keep)


def test_other_kinds_of_shape_are_refused(model: GPT) -> None:
    c = model.config
    nothing = Importance(
        torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 160), torch.zeros(96), torch.ones(7, 96), 0, 0.0
    )
    with pytest.raises(TrainError, match="differs from the model in more than"):
        prune(model, nothing, c.model_copy(update={"rope_theta": 5.0}))


def test_shares_give_shapes_that_fit() -> None:
    model = grouped(512)
    whole = flops.params_total(model)
    found = candidates(model, 0.5, {})
    for shape in found:
        assert 0.45 * whole <= flops.params_total(shape) <= 0.5 * whole
        assert shape.d_ff % 32 == shape.d_model % 32 == 0
        assert shape.n_heads == 2 * shape.n_kv_heads
    assert {s.n_layers for s in candidates(model, 0.6, {"n_layers": 3})} == {3}
    for share in (0.0, 1.0, -1.0, float("nan")):
        with pytest.raises(TrainError, match="is not between 0 and 1"):
            candidates(model, share, {})
    with pytest.raises(TrainError, match=r"no smaller shape with --keep-width 96 has 0.1"):
        candidates(model, 0.1, {"d_model": 96})


def test_steps_shrink_every_size_a_little() -> None:
    model = grouped(512).model_copy(update={"d_ff": 1024, "n_layers": 8})
    target = smaller(model, n_layers=2, d_ff=256)
    assert [(s.n_layers, s.d_ff) for s in path(model, target, 2)] == [(4, 512), (2, 256)]
    assert path(model, target, 1) == [target]
    assert path(model, smaller(model, n_layers=7), 5) == [smaller(model, n_layers=7)]
    with pytest.raises(TrainError, match="0 steps"):
        path(model, target, 0)


def test_text_and_measures_that_cannot_be(model: GPT, corpus: Corpus) -> None:
    with pytest.raises(TrainError, match="--by luck is no importance"):
        measure(model, corpus, by="luck")
    with pytest.raises(TrainError, match="--depth-by l2 is no importance"):
        measure(model, corpus, depth="l2")
    model.config = model.config.model_copy(update={"context": corpus.train_tokens})
    with pytest.raises(CorpusError, match="less than one window"):
        measure(model, corpus)
