"""Every family: built, counted, trained, resumed, saved, and opened by transformers with the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop import flops
from isoflop import ladder as rungs
from isoflop.budget import Budget
from isoflop.corpus import heldout_tokens
from isoflop.errors import ProjectError, TrainError
from isoflop.evaluate import heldout
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families import FAMILIES, OWN, family_of, find, shapes
from isoflop.model import LanguageModel
from isoflop.objectives import OBJECTIVES
from isoflop.optim import make_optimizers
from isoflop.progress import Silent
from isoflop.recipe import recipe
from isoflop.records import Corpus, ModelConfig, RunConfig, Throughput
from isoflop.store import Project
from isoflop.throughput import SpeedModel
from isoflop.trainer import Trainer
from isoflop.using import evaluate_model, sample
from isoflop.variant import Variant

FOREIGN = [name for name in FAMILIES if name != OWN.name]
OTHERS = [("bert", "masked-next"), ("gpt2", "prefix"), ("llama", "prefix"), ("t5", "prefix")]
ALL = [(name, FAMILIES[name].objective) for name in FOREIGN] + OTHERS


def small_shape(name: str, corpus: Corpus, objective: str | None = None) -> ModelConfig:
    return find(name, objective).shape(64, corpus.vocab_size, n_layers=2, context=64)


def small_run(name: str, corpus: Corpus, objective: str | None = None, **changes: object) -> RunConfig:
    return recipe(
        small_shape(name, corpus, objective), 30 * 512, batch_tokens=512, eval_tokens=4096, **changes
    )


def examples(model: LanguageModel, corpus: Corpus, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, corpus.vocab_size, (rows, model.config.context + 1), generator=generator)
    return OBJECTIVES[model.config.objective].examples(windows, corpus, (0,))


@pytest.mark.parametrize(("name", "objective"), ALL)
def test_flops_and_parameters_are_what_torch_counts(corpus: Corpus, name: str, objective: str) -> None:
    shape = small_shape(name, corpus, objective)
    model = family_of(shape).build(shape, 0)
    inputs, targets = examples(model, corpus)
    # As plain matmuls: the counter does not know the CPU's fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
    # The counter takes the backward pass of a depthwise convolution (Mamba's) for a dense one's.
    by_kind = {str(kind): n for kind, n in counter.get_flop_counts()["Global"].items()}
    by_kind["aten.convolution_backward"] = 2 * by_kind.get("aten.convolution", 0)
    counted = sum(by_kind.values()) / (len(inputs) * shape.context)
    assert flops.flops_per_token(shape) == pytest.approx(counted, rel=0.01)
    weights = list(model.parameters())
    tables = [m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    assert flops.params_total(shape) == sum(p.numel() for p in weights)
    assert flops.params_matmul(shape) == pytest.approx(
        sum(p.numel() for p in weights if p.ndim > 1 and p is not model.table and p is not model.head
            and not any(p is t for t in tables)) + model.head.numel()
    )  # fmt: skip
    assert flops.params_nonembedding(shape) < flops.params_total(shape) - model.head.numel()


@pytest.mark.parametrize(("name", "objective"), ALL[: -len(OTHERS) + 1])
def test_it_learns_and_a_restored_state_goes_on_with_the_same_bits(
    corpus: Corpus, name: str, objective: str
) -> None:
    config = small_run(name, corpus, objective)
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


@pytest.mark.parametrize("name", [n for n in FOREIGN if n != "t5"])
def test_transformers_opens_it_with_the_same_logits(corpus: Corpus, name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    shape = small_shape(name, corpus)
    model = family_of(shape).build(shape, 1)
    save_pretrained(model, corpus, tmp_path)
    theirs, tok = (
        family_of(shape).auto_class().from_pretrained(tmp_path),  # type: ignore[attr-defined]
        AutoTokenizer.from_pretrained(tmp_path),
    )
    ids = tok("def main(argv: list[str]) -> int:\n    return 0\n", return_tensors="pt").input_ids[:, :32]
    with torch.no_grad():
        assert (model(ids) - theirs(ids).logits).abs().max() < 1e-5
        assert (load_pretrained(tmp_path)(ids) - theirs(ids).logits).abs().max() < 1e-5
    assert theirs.config.vocab_size == shape.vocab_size
    assert theirs.config.eos_token_id == tok.eos_token_id == 0
    scores = evaluate_model(tmp_path, corpus, eval_tokens=1024)
    assert scores.loss == pytest.approx(heldout(model, corpus, eval_tokens=1024).loss, abs=1e-5)
    if OBJECTIVES[shape.objective].compresses:
        assert len(sample(tmp_path, corpus, ["def "], tokens=3)) == 1
    else:
        assert tok.mask_token_id == corpus.vocab_size
        with pytest.raises(ProjectError, match="fills gaps"):
            sample(tmp_path, corpus, ["def "], tokens=3)


@pytest.mark.parametrize("objective", ["spans", "prefix"])
def test_transformers_opens_t5_with_the_same_loss(corpus: Corpus, objective: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer, T5ForConditionalGeneration

    shape = small_shape("t5", corpus, objective)
    model = family_of(shape).build(shape, 1)
    save_pretrained(model, corpus, tmp_path)
    theirs, tok = (
        T5ForConditionalGeneration.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    inputs, targets = examples(model, corpus)
    if objective == "spans":
        assert len(tok) == shape.vocab_size
        assert tok.convert_tokens_to_ids("<extra_id_99>") == shape.vocab_size - 1
        read, labels = inputs, targets
    else:
        read, labels = inputs[:, :32], targets[:, 31:].contiguous()
    with torch.no_grad():
        loss = theirs(input_ids=read, labels=labels).loss
    assert model.loss(inputs, targets).item() == pytest.approx(loss.item(), abs=1e-6)
    opened = load_pretrained(tmp_path)
    assert opened.config.objective == objective
    assert opened.loss(inputs, targets).item() == pytest.approx(loss.item(), abs=1e-6)
    assert theirs.generate(read, max_new_tokens=3).shape[0] == len(read)
    scores = evaluate_model(tmp_path, corpus, eval_tokens=1024)
    assert (scores.predicted, scores.bpb) == (16 * OBJECTIVES[objective].predicted(64), None)
    assert scores.loss == pytest.approx(heldout(model, corpus, eval_tokens=1024).loss, abs=1e-5)
    with pytest.raises(ProjectError, match="cannot continue text"):
        sample(tmp_path, corpus, ["def "])


def test_transformers_opens_bert_with_both_its_heads(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import BertForPreTraining

    shape = small_shape("bert", corpus, "masked-next")
    model = family_of(shape).build(shape, 1)
    save_pretrained(model, corpus, tmp_path)
    theirs = BertForPreTraining.from_pretrained(tmp_path)
    inputs, targets = examples(model, corpus, rows=3)
    sep = corpus.vocab_size + 2
    types = [[0] * (row.index(sep) + 1) for row in inputs.tolist()]
    types = [row + [1] * (64 - len(row)) for row in types]
    with torch.no_grad():
        loss = theirs(
            inputs, token_type_ids=torch.tensor(types), labels=targets[:, :-1].contiguous(),
            next_sentence_label=targets[:, -1],
        ).loss  # fmt: skip
        relation = theirs(inputs, token_type_ids=torch.tensor(types)).seq_relationship_logits
        assert torch.allclose(model.eval().relation_logits(inputs), relation, atol=1e-5)  # type: ignore[operator]
    assert model.loss(inputs, targets).item() == pytest.approx(loss.item(), abs=1e-5)
    assert load_pretrained(tmp_path).config.objective == "masked-next"
    scores = heldout(model, corpus, eval_tokens=1024)  # by masked tokens alone, as a masked model
    assert scores.predicted == 16 * OBJECTIVES["masked"].predicted(64)


def test_a_models_next_sentences_are_scored_on_heldout_pairs(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = small_shape("bert", corpus, "masked-next")
    model = family_of(shape).build(shape, 1)
    text, sep = heldout_tokens(corpus)[:], corpus.vocab_size + 2
    asked: list[bool] = []

    def stands(row: list[int]) -> bool:
        """Whether the held-out text has this row somewhere, masked tokens apart."""
        places = np.lib.stride_tricks.sliding_window_view(text, len(row))
        return bool(((places == row).mean(axis=1) >= 0.7).any())

    def oracle(ids: torch.Tensor) -> torch.Tensor:
        """What knows the held-out text by heart would say."""
        rows = [[w for w in row[1:-1] if w != sep] for row in ids.tolist()]
        cuts = [row.index(sep) - 1 for row in ids.tolist()]
        assert all(stands(row[cut:]) for row, cut in zip(rows, cuts, strict=True))
        asked.extend(follows := [stands(row) for row in rows])
        return torch.tensor([[float(yes), float(not yes)] for yes in follows])

    plain = heldout(model, corpus, eval_tokens=1024)
    assert plain.next_accuracy is not None
    assert 0 <= plain.next_accuracy <= 1
    monkeypatch.setattr(model, "relation_logits", oracle)
    scores = heldout(model, corpus, eval_tokens=1024)
    assert (scores.next_accuracy, scores.next_accuracy_se) == (1.0, 0.0)
    assert len(asked) == 16
    assert 4 <= sum(asked) <= 12
    shape = small_shape("bert", corpus)
    assert heldout(family_of(shape).build(shape, 1), corpus, eval_tokens=1024).next_accuracy is None


@pytest.mark.parametrize("name", ["isoflop", "gpt2", "llama"])
def test_a_decoder_sees_its_prefix_whole_and_transformers_too(
    corpus: Corpus, name: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    shape = small_shape(name, corpus, "prefix")
    model = family_of(shape).build(shape, 1)
    with torch.no_grad():
        for weight in model.parameters():  # our own decoder's blocks start as the identity
            weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    ids, targets = examples(model, corpus)
    moved = [ids.clone() for _ in range(3)]
    for changed, position in zip(moved, (31, 32, 63), strict=True):
        changed[:, position] = (changed[:, position] + 1) % corpus.vocab_size
    with torch.no_grad():
        logits, (first, second, last) = model(ids), (model(x) for x in moved)
    assert not torch.allclose(logits[:, 0], first[:, 0], atol=1e-5)  # a prefix is seen in both directions
    assert torch.allclose(logits[:, :32], second[:, :32], atol=1e-5)  # and sees nothing of the rest
    assert torch.allclose(logits[:, :63], last[:, :63], atol=1e-5)  # which is causal
    save_pretrained(model, corpus, tmp_path)
    assert load_pretrained(tmp_path).config.objective == "prefix"
    mask = torch.full((64, 64), torch.finfo(torch.float32).min).triu(1)
    mask[:, :32] = 0.0
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(ids, attention_mask=mask.expand(2, 1, 64, 64))
    assert torch.allclose(theirs.logits, logits, atol=1e-4)
    nats = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="sum") / (2 * 33)
    assert model.loss(ids, targets).item() == pytest.approx(nats.item(), abs=1e-5)
    assert model.token_losses(ids, targets).sum().item() == pytest.approx(66 * nats.item(), rel=1e-5)


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
        sizes = [flops.params_matmul(m) for m in shapes(512, largest=4_000_000, family=FAMILIES[name])]
        assert len(sizes) > 4
        assert sizes == sorted(set(sizes))
    ours = OWN.shape(64, corpus.vocab_size)
    assert "family" not in json.loads(ours.to_json())
    assert family_of(ModelConfig.from_json(ours.to_json())) == OWN
    other = FAMILIES["llama"].shape(64, 512)
    assert recipe(ours, 0).speed_key(1, "m") != recipe(other, 0).speed_key(1, "m")
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
            variant=Variant(find("gpt2")),
        )  # fmt: skip
        assert {m.config.model.kind for m in ladder.members} == {("gpt2", "causal", "")}
        assert len({m.params for m in ladder.members}) >= rungs.FEWEST_SIZES


def test_a_family_that_is_not_there() -> None:
    with pytest.raises(TrainError, match="no family 'gtp2'"):
        find("gtp2")
    with pytest.raises(TrainError, match="cannot learn"):
        find("gpt2", "masked")
    with pytest.raises(TrainError, match="mamba2 cannot look at a prefix"):
        find("mamba2", "prefix")
    with pytest.raises(TrainError, match="modernbert cannot learn the objective 'masked-next'"):
        find("modernbert", "masked-next")
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


@pytest.mark.parametrize("kind", ["t5", "mt5"])
def test_a_folder_of_an_encoder_decoder(corpus: Corpus, kind: str, tmp_path: Path) -> None:
    raw = {
        "model_type": kind, "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 256, "num_layers": 4,
        "num_decoder_layers": 2, "dropout_rate": 0.1,
    }  # fmt: skip
    family = find(str(folder_with(raw, tmp_path)))
    shape = family.shape(128, corpus.vocab_size, context=64)
    model = family.build(shape, 0)
    assert (shape.objective, shape.d_ff, len(model.blocks)) == ("spans", 256, 6)
    inputs, targets = examples(model, corpus)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
    assert 2 * 64 * flops.flops_per_token(shape) == pytest.approx(flops.counted_by_torch(counter), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"model_type": "vit"}, r"config\.json cannot be scaled: 'vit' is neither a causal nor a masked"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "neither a causal nor a masked"),
        ({"architectures": ["Mine"]}, r"config\.json is not a config: it names no model_type"),
        ({"model_type": "albert", "hidden_size": 64, "num_attention_heads": 2}, "cannot be counted"),
        ({"model_type": "gpt2", "n_head": "many"}, "cannot be built"),
        ({"model_type": "mamba", "hidden_size": 64}, "no width and heads"),
        ([1, 2], "is not a config: it names no model_type"),
        (None, r"has no config\.json"),
    ],
)
def test_folders_that_cannot_be_used(config: object, says: str, tmp_path: Path) -> None:
    if config is not None:
        folder_with(config, tmp_path)
    with pytest.raises(TrainError, match=says):
        find(str(tmp_path))
