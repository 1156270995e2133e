"""Every method: what it trains, what it does not fit, and that it is saved and read the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import LAYERS, TINY, reviews, tiny_bert, tiny_qwen3, tiny_t5

from isoflop.adapting.loop import fine_tune, predict_all
from isoflop.adapting.methods import METHODS, merged, prepared
from isoflop.adapting.parts import depths, new_parameters
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import ADAPTED, TASK, is_adapted, load_adapted, save_adapted
from isoflop.adapting.training import groups_of
from isoflop.errors import AdaptError, CorruptError, ProjectError
from isoflop.tasks import Base, load_base, task_of

CLASSIFY = task_of("classification")
OPTIONS: dict[str, dict[str, Any]] = {
    "adapters": {"width": 8}, "last-layers": {"layers": 1}, "prefix": {"num_virtual_tokens": 4},
    "prompt": {"num_virtual_tokens": 4}, "p-tuning": {"num_virtual_tokens": 4},
}  # fmt: skip
UNFIT = {("qwen3", "prompt"), ("qwen3", "p-tuning")}  # with a head of labels
UNFIT |= {(model, "decoder") for model in ("bert", "qwen3")}  # which are one stack
PAIRS = [(m, n) for m in ("bert", "qwen3") for n in METHODS if (m, n) not in UNFIT]


def base_of(name: str) -> Base:
    return load_base(TINY[name](), max_length=32)


def config_of(method: str, **options: Any) -> AdaptConfig:
    given = {"lr": METHODS[method].lr, "steps": 20, "batch": 8, "evaluations": 2, **options}
    return AdaptConfig(task="classification", method=method, method_options=OPTIONS.get(method, {}), **given)


# What learns beside the head, by a part of its name; None: all.
LEARNS: dict[str, tuple[str, ...] | None] = {
    "full": None, "lora": ("lora_",), "dora": ("lora_",), "adalora": ("lora_",), "adapters": ("bottleneck",),
    "ia3": ("ia3_",), "prefix": ("prompt_encoder",), "prompt": ("prompt_encoder",),
    "p-tuning": ("prompt_encoder",), "last-layers": (".1.", "pooler", ".norm."), "probe": (),
}  # fmt: skip


@pytest.mark.parametrize(("model", "method"), PAIRS)
def test_it_trains_its_part_and_comes_back_the_same(model: str, method: str, tmp_path: Path) -> None:
    base, rows, held = base_of(model), reviews(64), reviews(24, seed=5)
    spec, config = CLASSIFY.spec(rows, base), config_of(method)
    torch.manual_seed(config.seed)
    before = dict(prepared(CLASSIFY.build(base, spec), config, base).named_parameters())
    tuned = fine_tune(CLASSIFY, base, spec, rows, held, config)
    parts = LEARNS[method]
    for name, p in tuned.model.named_parameters():
        head = ("classifier" in name or "score" in name) and "original_module" not in name
        learns = head or parts is None or any(part in name for part in parts)
        assert p.requires_grad == (learns and "ranknum" not in name), name
        assert torch.equal(p, before[name]) != p.requires_grad, name
    assert tuned.trial.params_trained == sum(p.numel() for p in before.values() if p.requires_grad)
    made = predict_all(CLASSIFY, base, spec, tuned.model, held)
    save_adapted(tmp_path / "model", CLASSIFY, base, spec, config, tuned.model)
    assert (tmp_path / "model" / ADAPTED).exists() == (not METHODS[method].merges)
    task, read_base, read_spec, read = load_adapted(tmp_path / "model")
    again = predict_all(task, read_base, read_spec, read, held)
    np.testing.assert_allclose(np.stack(again), np.stack(made), atol=1e-6)


@pytest.mark.parametrize("method", [n for m, n in PAIRS if m == "bert" and METHODS[n].merges])
def test_what_merges_opens_without_us(method: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

    base, rows = base_of("bert"), reviews(16)
    spec, config = CLASSIFY.spec(rows, base), config_of(method)
    model = prepared(CLASSIFY.build(base, spec), config, base)
    save_adapted(tmp_path / "model", CLASSIFY, base, spec, config, model)
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert type(read) is BertForSequenceClassification
    assert read.config.id2label == {0: "bad", 1: "good"}


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("full", "probe")])
def test_methods_change_an_encoder_with_a_decoder(method: str) -> None:
    """One step moves the logits, by what the method added and no head."""
    from transformers import AutoModelForSeq2SeqLM

    base = base_of("t5")
    assert new_parameters(AutoModelForSeq2SeqLM.from_pretrained(base.folder), base.folder) == set()
    torch.manual_seed(0)
    model = prepared(AutoModelForSeq2SeqLM.from_pretrained(base.folder), config_of(method), base).eval()
    ids = torch.arange(3, 11).repeat(2, 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(**inputs).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_of_an_encoder_with_a_decoder_the_decoder_can_learn_alone() -> None:
    from transformers import AutoModelForSeq2SeqLM

    base = base_of("t5")
    model = prepared(AutoModelForSeq2SeqLM.from_pretrained(base.folder), config_of("decoder"), base)
    learns = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert learns - {"lm_head"} == {"decoder"}
    assert not model.get_input_embeddings().weight.requires_grad  # type: ignore[operator]  # both read it


def test_a_method_that_does_not_fit_says_which_do() -> None:
    base = base_of("qwen3")
    spec = CLASSIFY.spec(reviews(16), base)
    with pytest.raises(AdaptError, match=r"prompt does not fit Qwen3ForSequenceClassification") as error:
        prepared(CLASSIFY.build(base, spec), config_of("prompt"), base)
    assert "prefix" in error.value.hint
    assert "p-tuning" not in error.value.hint


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (AdaptConfig(task="classification", method="magic"), "'magic' is no method"),
        (AdaptConfig(task="classification", method="full", method_options={"r": 8}), "r is no option"),
        (AdaptConfig(task="classification", method="lora", method_options={"rang": 8}), "rang"),
        (AdaptConfig(task="classification", method="prompt", method_options={"num_virtual_tokens": 40}),
         "40 vectors before inputs of 32 tokens"),
    ],
)  # fmt: skip
def test_what_a_method_does_not_know_is_said(config: AdaptConfig, says: str) -> None:
    base = base_of("bert")
    spec = CLASSIFY.spec(reviews(16), base)
    with pytest.raises(AdaptError, match=says):
        prepared(CLASSIFY.build(base, spec), config, base)


def test_what_does_not_merge_says_so() -> None:
    base = base_of("bert")
    spec = CLASSIFY.spec(reviews(16), base)
    for method in ("adapters", "prefix"):
        with pytest.raises(AdaptError, match=r"cannot be merged|no weights of a plain model"):
            merged(prepared(CLASSIFY.build(base, spec), config_of(method), base))


def test_rates_fall_with_depth() -> None:
    base = base_of("bert")
    model = CLASSIFY.build(base, CLASSIFY.spec(reviews(16), base))
    found, top = depths(model)
    assert top == LAYERS + 1
    assert found["bert.embeddings.word_embeddings.weight"] == 0
    assert found["bert.encoder.layer.1.output.dense.weight"] == 2
    assert found["classifier.weight"] == found["bert.pooler.dense.weight"] == 3
    groups = groups_of(model, AdaptConfig(task="classification", layer_decay=0.5, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        for p in group["params"]:
            assert group["share"] == 0.5 ** (top - found[names[id(p)]])
            assert group["weight_decay"] == (0.1 if p.dim() > 1 else 0.0)


def test_blocks_of_a_decoder_lie_above_those_of_its_encoder() -> None:
    from transformers import AutoModelForSeq2SeqLM

    found, top = depths(AutoModelForSeq2SeqLM.from_pretrained(tiny_t5()))
    assert top == 2 * LAYERS + 1
    assert found["shared.weight"] == 0
    assert found["encoder.block.1.layer.0.layer_norm.weight"] == 2
    assert found["decoder.block.0.layer.0.layer_norm.weight"] == 3
    assert found["decoder.final_layer_norm.weight"] == top


def test_new_parameters_are_those_that_the_folder_lacks() -> None:
    base = base_of("qwen3")
    model = CLASSIFY.build(base, CLASSIFY.spec(reviews(16), base))
    assert new_parameters(model, base.folder) == {"score.weight"}
    bert = base_of("bert")
    model = CLASSIFY.build(bert, CLASSIFY.spec(reviews(16), bert))
    assert new_parameters(model, bert.folder) == {"classifier.weight", "classifier.bias"}


def test_a_folder_that_is_none_or_was_changed_is_told(tmp_path: Path) -> None:
    base, rows = base_of("bert"), reviews(16)
    spec, config = CLASSIFY.spec(rows, base), config_of("adapters")
    assert not is_adapted(tiny_bert())
    with pytest.raises(AdaptError, match=r"has no isoflop_task\.json"):
        load_adapted(tiny_qwen3())
    folder = tmp_path / "model"
    model = prepared(CLASSIFY.build(base, spec), config, base)
    save_adapted(folder, CLASSIFY, base, spec, config, model)
    assert is_adapted(folder)
    with pytest.raises(ProjectError, match="exists already"):
        save_adapted(folder, CLASSIFY, base, spec, config, model)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (folder / ADAPTED).write_bytes(b"cut short")
    with pytest.raises(CorruptError, match="does not have the weights of adapters"):
        load_adapted(folder)
    (folder / TASK).write_text("{}")
    with pytest.raises(CorruptError, match="is not what was written"):
        load_adapted(folder)
