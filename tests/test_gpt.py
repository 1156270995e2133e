"""The decoder against transformers, torch and float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop import flops
from isoflop.errors import CorruptError, ProjectError
from isoflop.export import load_pretrained, save_pretrained
from isoflop.gpt import GPT, LinearCrossEntropy
from isoflop.recipe import shape
from isoflop.records import Corpus, ModelConfig


def shapes_of(corpus: Corpus) -> list[ModelConfig]:
    base = shape(64, corpus.vocab_size, n_layers=2, context=32)
    return [base, base.model_copy(update={"n_kv_heads": 1}), base.model_copy(update={"tied": True})]


def random_model(config: ModelConfig) -> GPT:
    model = GPT(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.empty(weight.shape).normal_(0, 0.3, generator=generator))
    return model.eval()


@pytest.mark.parametrize("index", [0, 1, 2], ids=["plain", "grouped", "tied"])
def test_logits_agree_with_transformers(corpus: Corpus, tmp_path: Path, index: int) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = random_model(shapes_of(corpus)[index])
    save_pretrained(model, corpus, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "Qwen3ForCausalLM"
    tok = AutoTokenizer.from_pretrained(tmp_path)
    ids = tok("def main(argv: list[str]) -> int:\n    return 0\n", return_tensors="pt").input_ids[:, :32]
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-4
    assert (
        tok.decode(ids[0]) == "def main(argv: list[str]) -> int:\n    return 0\n"[: len(tok.decode(ids[0]))]
    )


def test_a_saved_model_opens_here_with_the_same_logits(corpus: Corpus, tmp_path: Path) -> None:
    model = random_model(shapes_of(corpus)[2])
    save_pretrained(model, corpus, tmp_path)
    again = load_pretrained(tmp_path)
    ids = torch.arange(20)[None]
    assert again.config == model.config
    assert torch.equal(again(ids), model(ids))


def test_a_damaged_or_foreign_folder_is_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(ProjectError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    save_pretrained(random_model(shapes_of(corpus)[0]), corpus, tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CorruptError, match="cannot be read"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ProjectError, match="vit"):
        load_pretrained(tmp_path)


def test_chunked_cross_entropy_equals_torch_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1300, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(0, 50, (1300,), generator=generator)
    ours = LinearCrossEntropy.apply(x, weight, y)  # type: ignore[no-untyped-call]
    (3.0 * ours).backward()
    grads = x.grad, weight.grad
    x.grad = weight.grad = None
    theirs = F.cross_entropy(x @ weight.T, y)
    (3.0 * theirs).backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(ours, theirs, rtol=1e-12)
    for mine, reference in zip(grads, (x.grad, weight.grad), strict=True):
        assert mine is not None
        assert reference is not None
        assert torch.allclose(mine, reference, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_parameters_and_flops_are_counted_exactly(corpus: Corpus, index: int) -> None:
    config = shapes_of(corpus)[index]
    model = GPT(config)
    unique = {id(p): p.numel() for p in model.parameters()}
    assert flops.params_total(config) == sum(unique.values())
    assert flops.params_nonembedding(config) == sum(p.numel() for p in model.model.layers.parameters()) + len(
        model.model.norm.weight
    )
    ids = torch.zeros(2, config.context, dtype=torch.long)
    # As plain matmuls: the counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    assert counter.get_total_flops() * 3 == flops.flops_per_token(config) * ids.numel()


def test_a_token_never_sees_the_future(corpus: Corpus) -> None:
    model = random_model(shapes_of(corpus)[1])
    ids = torch.arange(30)[None] % corpus.vocab_size
    changed = ids.clone()
    changed[0, 20:] = 7
    assert torch.equal(model(ids)[:, :20], model(changed)[:, :20])
