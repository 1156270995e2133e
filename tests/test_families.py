"""Every family: built, counted, trained, resumed, saved, and opened by transformers with the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop import flops
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.errors import ProjectError, TrainError
from isoflop.evaluate import heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families import FAMILIES, OWN, family_of, find, shapes
from isoflop.families.wrapped import auto_class
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.optim import make_optimizers
from isoflop.progress import Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, ModelConfig, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel, speed_key
from isoflop.trainer import Trainer
from isoflop.using import evaluate_folder, sample

FOREIGN = [name for name in FAMILIES if name != OWN.name]


def small_shape(name: str, corpus: Corpus) -> ModelConfig:
    return FAMILIES[name].shape(64, corpus.vocab_size, n_layers=2, context=64)


def small_run(name: str, corpus: Corpus, **changes: object) -> RunConfig:
    return recipe(small_shape(name, corpus), 30 * 512, batch_tokens=512, eval_tokens=4096, **changes)


def examples(model: LanguageModel, corpus: Corpus, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, corpus.vocab_size, (rows, model.config.context + 1), generator=generator)
    return OBJECTIVES[model.config.objective].examples(windows, corpus, (0,))


@pytest.mark.parametrize("name", FOREIGN)
def test_flops_and_parameters_are_what_torch_counts(corpus: Corpus, name: str) -> None:
    shape = small_shape(name, corpus)
    model = family_of(shape).build(shape, 0)
    inputs, targets = examples(model, corpus)
    # As plain matmuls: the counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
    # The counter takes the backward pass of a depthwise convolution (Mamba's) for a dense one's.
    by_kind = {str(kind): n for kind, n in counter.get_flop_counts()["Global"].items()}
    by_kind["aten.convolution_backward"] = 2 * by_kind.get("aten.convolution", 0)
    counted = sum(by_kind.values()) / inputs.numel()
    assert flops.flops_per_token(shape) == pytest.approx(counted, rel=0.01)
    weights = list(model.parameters())
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    assert flops.params_total(shape) == sum(p.numel() for p in weights)
    assert flops.params_matmul(shape) == pytest.approx(
        sum(p.numel() for p in weights if p.ndim > 1 and p is not model.table and p is not model.head
            and not any(p is t for t in tables)) + model.head.numel()
    )  # fmt: skip
    assert flops.params_nonembedding(shape) < flops.params_total(shape) - model.head.numel()


@pytest.mark.parametrize("name", FOREIGN)
def test_it_learns_and_a_restored_state_goes_on_with_the_same_bits(corpus: Corpus, name: str) -> None:
    config = small_run(name, corpus)
    trainer = Trainer(config, corpus, Silent())
    before = heldout(trainer.model, corpus, eval_tokens=4096)
    for _ in range(25):
        trainer.train_step(config.tokens)
    saved = torch.load(_stored(trainer.state()))
    ahead = [trainer.train_step(config.tokens) for _ in range(5)]
    other = Trainer(config, corpus, Silent())
    other.load(saved)
    assert [other.train_step(config.tokens) for _ in range(5)] == ahead
    for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)
    after = heldout(trainer.model, corpus, eval_tokens=4096)
    assert before.loss > after.loss + 0.3
    assert (after.bpb is None) == (config.model.objective != "causal")


def _stored(state: dict[str, object]) -> Path:
    import tempfile

    path = Path(tempfile.mkdtemp()) / "state.pt"
    torch.save(state, path)
    return path


@pytest.mark.parametrize("name", FOREIGN)
def test_transformers_opens_it_with_the_same_logits(corpus: Corpus, name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shape = small_shape(name, corpus)
    model = family_of(shape).build(shape, 1)
    save_pretrained(model, corpus, tmp_path)
    theirs, tok = (
        auto_class(shape.objective).from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    ids = tok("def main(argv: list[str]) -> int:\n    return 0\n", return_tensors="pt").input_ids[:, :32]
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-5
        assert (load_pretrained(tmp_path)(ids) - theirs(ids).logits).abs().max() < 1e-5
    assert theirs.config.vocab_size == shape.vocab_size
    assert theirs.config.eos_token_id == tok.eos_token_id == 0
    scores = evaluate_folder(tmp_path, corpus, eval_tokens=1024)
    assert scores.loss == pytest.approx(heldout(model, corpus, eval_tokens=1024).loss, abs=1e-5)
    if OBJECTIVES[shape.objective].compresses:
        assert len(sample(tmp_path, corpus, ["def "], tokens=3)) == 1
    else:
        assert tok.mask_token_id == corpus.vocab_size
        with pytest.raises(ProjectError, match="fills gaps"):
            sample(tmp_path, corpus, ["def "], tokens=3)


@pytest.mark.parametrize("name", FOREIGN)
def test_every_weight_gets_the_rate_of_its_kind(corpus: Corpus, name: str) -> None:
    config = small_run(name, corpus)
    model = family_of(config.model).build(config.model, 0)
    muon, adamw = make_optimizers(model, config)
    of_muon = [p for g in muon.param_groups for p in g["params"]]
    assert {p.ndim for p in of_muon} == {2}
    assert sum(len(g["params"]) for o in (muon, adamw) for g in o.param_groups) == len(
        list(model.parameters())
    )
    assert not any(p is model.table or p is model.head for p in of_muon)
    assert adamw.param_groups[0]["params"][0] is model.table
    inner = [
        m.weight for m in model.modules() if isinstance(m, torch.nn.Linear) and m.weight is not model.head
    ]
    assert all(any(p is q for q in of_muon) for p in inner)


def test_a_transposed_matrix_is_stepped_as_the_plain_one() -> None:
    from isoflop.optim import Muon

    start, grad = torch.randn(2, 12, 5, generator=torch.Generator().manual_seed(0))
    plain, turned = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.T.clone())
    plain.grad, turned.grad = grad, grad.T.contiguous()
    Muon([plain], 0.1, 0.9).step()
    Muon([{"params": [turned], "transposed": True}], 0.1, 0.9).step()
    assert torch.allclose(plain, turned.T, atol=1e-6)


def test_weights_depend_on_the_seed_alone(corpus: Corpus) -> None:
    shape = small_shape("gpt2", corpus)
    first, again, other = (family_of(shape).build(shape, seed) for seed in (0, 0, 1))
    state = torch.get_rng_state()
    assert torch.equal(first.head, again.head)
    assert not torch.equal(first.head, other.head)
    assert torch.equal(torch.get_rng_state(), state)


def test_sizes_grow_and_the_default_stays_ours(corpus: Corpus) -> None:
    for name in FOREIGN:
        sizes = [flops.params_matmul(m) for m in shapes(512, largest=2_000_000, family=FAMILIES[name])]
        assert len(sizes) > 4
        assert sizes == sorted(set(sizes))
    ours = OWN.shape(64, corpus.vocab_size)
    assert "family" not in json.loads(ours.to_json())
    assert family_of(ModelConfig.from_json(ours.to_json())) == OWN
    assert speed_key(recipe(ours, 0), 1, "m") != speed_key(
        recipe(FAMILIES["llama"].shape(64, 512), 0), 1, "m"
    )
    saved = flops.counts(FAMILIES["llama"].shape(64, 512)).saved
    assert 0.5 < saved / flops.counts(ours).saved < 2.5  # attention's probabilities come on top


def test_a_ladder_of_another_family(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(project: Project, corpus: Corpus, configs: list[RunConfig], **_: object) -> SpeedModel:
        return SpeedModel(
            Throughput(
                model=c.model, batch_tokens=c.batch_tokens, threads=1, packed=2, compile=False,
                params=flops.params_matmul(c.model), tokens_per_second=1e10 / flops.flops_per_token(c.model),
                eval_tokens_per_second=3e10 / flops.flops_per_token(c.model), compile_seconds=0.0,
                memory_bytes=0, machine="m",
            )
            for c in configs
        )  # fmt: skip

    monkeypatch.setattr(rungs, "measure", measured)
    for budget in (Budget(flops=8e11), Budget(seconds=100.0)):
        ladder = rungs.design(
            Project(tmp_path / "p"), corpus, budget, seed=0, progress=Silent(), key="k", workers=2,
            family=find("gpt2"),
        )  # fmt: skip
        assert {m.config.model.kind for m in ladder.members} == {("gpt2", "causal", "")}
        assert len({m.params for m in ladder.members}) >= rungs.FEWEST_SIZES


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(TrainError, match="no family 'gtp2'"):
        find("gtp2")
    with pytest.raises(TrainError, match="cannot learn"):
        find("gpt2", "masked")
    with pytest.raises(TrainError, match="no multiple of 32"):
        find("gpt2").shape(100, 512)


def folder_with(config: object, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_is_scaled_with_its_own_ratios(corpus: Corpus, tmp_path: Path) -> None:
    raw = {
        "model_type": "qwen2", "hidden_size": 512, "num_hidden_layers": 16, "num_attention_heads": 16,
        "num_key_value_heads": 4, "intermediate_size": 1536, "vocab_size": 9000, "torch_dtype": "bfloat16",
        "layer_types": ["full_attention"] * 16, "attention_dropout": 0.1,
        "architectures": ["Qwen2ForCausalLM"],
    }  # fmt: skip
    family = find(str(folder_with(raw, tmp_path / "qwen")))
    widths = family.widths()
    assert [next(widths) for _ in range(3)] == [64, 96, 128]
    shape = family.shape(256, corpus.vocab_size, context=64)
    assert (shape.n_layers, shape.n_heads, shape.n_kv_heads) == (8, 8, 2)
    assert (shape.head_dim, shape.d_ff, shape.vocab_size) == (32, 768, corpus.vocab_size)
    other = folder_with(raw | {"torch_dtype": "float32", "transformers_version": "4.2"}, tmp_path / "same")
    assert find(str(other)) == family  # ids depend on the architecture alone
    again = family_of(ModelConfig.from_json(shape.to_json()))
    config = family.config(shape)  # type: ignore[attr-defined]
    assert again == family
    assert config.attention_dropout == 0.0
    trainer = Trainer(
        recipe(family.shape(64, corpus.vocab_size, context=64), 2048, batch_tokens=512), corpus, Silent()
    )
    assert trainer.train_step(2048) < 8
    save_pretrained(trainer.model, corpus, tmp_path / "saved")
    opened = load_pretrained(tmp_path / "saved")
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(opened(ids), trainer.model(ids))


def test_a_folder_of_a_masked_model(corpus: Corpus, tmp_path: Path) -> None:
    raw = {"model_type": "distilbert", "dim": 128, "n_layers": 4, "n_heads": 4, "hidden_dim": 512}
    family = find(str(folder_with(raw, tmp_path)), "masked-words")
    shape = family.shape(64, corpus.vocab_size, context=64)
    assert (shape.objective, shape.n_layers, shape.d_ff) == ("masked-words", 2, 256)
    config = recipe(shape, 512, batch_tokens=512, eval_tokens=1024)
    trainer = Trainer(config, corpus, Silent())
    trainer.train_step(512)
    scores = heldout(trainer.model, corpus, eval_tokens=1024)
    assert (scores.bpb, scores.predicted) == (None, 16 * OBJECTIVES["masked"].predicted(64))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "vit"}, "neither a causal nor a masked"),
        ({"model_type": "t5"}, "neither a causal nor a masked"),
        ({"architectures": ["Mine"]}, "'None' is neither"),
        ({"model_type": "albert", "hidden_size": 64, "num_attention_heads": 2}, "cannot be counted"),
        ({"model_type": "gpt2", "n_head": "many"}, "cannot be built"),
        ({"model_type": "mamba", "hidden_size": 64}, "no width and heads"),
        ([1, 2], "is not a config"),
        (None, r"has no config\.json"),
    ],
)
def test_folders_that_cannot_be_used(config: object, says: str, tmp_path: Path) -> None:
    if config is not None:
        folder_with(config, tmp_path)
    with pytest.raises(TrainError, match=says):
        find(str(tmp_path))
