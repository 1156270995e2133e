"""Baselines: label scores against plain computations, which examples are shown, and what is usual."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import base_of, batch_of, sentences
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from isoflop.adapting.likelihood import answer_ids, language_model
from isoflop.adapting.prompting import ITSELF, prompted
from isoflop.adapting.shots import chosen, in_turn, state_means, token_means
from isoflop.adapting.usual import USUAL
from isoflop.errors import AdaptError
from isoflop.tasks import TASKS, Base, Spec
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER
from isoflop.tasks.sequences import FromTextToText

KINDS = (ENCODER, DECODER, BOTH)
LABELS = ("good", "not_so_good", "bad")
TEXTS = ["the cat sleeps", "dog", "the small red bird runs", "a tree"]
TRAIN = Dataset.from_dict({
    "text": ["cat bird", "red dog", "small tree", "the house runs", "bird bird"],
    "label": ["good", "bad", "bad", "not_so_good", "good"],
})  # fmt: skip
CLASSES = TASKS["classification"]
MODELS: dict[Path, Any] = {}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: base_of(folder / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def headless(bases: dict[str, Base], tmp_path_factory: pytest.TempPathFactory) -> Base:
    """An encoder of sentences, without a head for words."""
    from isoflop.tasks import load_base

    folder = tmp_path_factory.mktemp("headless")
    AutoModel.from_pretrained(bases[ENCODER].folder).save_pretrained(folder)
    bases[ENCODER].processor.save_pretrained(folder)
    return load_base(folder)


def rows_of(texts: list[str]) -> Dataset:
    return Dataset.from_dict({"text": texts})


def opened(base: Base) -> Any:
    """The model of a base, opened once."""
    auto: Any = {ENCODER: AutoModelForMaskedLM, DECODER: AutoModelForCausalLM, BOTH: AutoModelForSeq2SeqLM}
    if base.folder not in MODELS:
        MODELS[base.folder] = auto[base.kind].from_pretrained(base.folder).eval()
    return MODELS[base.folder]


def plain_score(base: Base, before: str, text: str, label: str) -> float:
    """One label after one prompt, in a batch of its own."""
    tokenizer: Any = base.processor

    def ids(piece: str) -> list[int]:
        return list(tokenizer(piece, add_special_tokens=False)["input_ids"])

    prompt = [*ids(before), *ids(text), *ids("\nLabel:")]
    label = label.replace("_", " ")
    with torch.no_grad():
        if base.kind == BOTH:
            wanted = torch.tensor([[*ids(label), tokenizer.eos_token_id]])
            nats = opened(base)(input_ids=torch.tensor([prompt]), labels=wanted).loss.item()
            return -float(nats) * wanted.numel()
        answer = ids(f" {label}")
        if base.kind == DECODER:
            prompt = [tokenizer.bos_token_id, *prompt]
            logp = opened(base)(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
            return float(sum(logp[len(prompt) - 1 + i, token] for i, token in enumerate(answer)))
        prompt = [tokenizer.cls_token_id, *prompt]
        asked = [*prompt, *[tokenizer.mask_token_id] * len(answer), tokenizer.sep_token_id]
        logp = opened(base)(torch.tensor([asked])).logits[0].log_softmax(-1)
        return float(sum(logp[len(prompt) + i, token] for i, token in enumerate(answer))) / len(answer)


def softmax(scores: list[float]) -> np.ndarray[Any, Any]:
    return np.asarray(np.exp(scores) / np.exp(scores).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_scored_as_one_by_one(bases: dict[str, Base], kind: str) -> None:
    base = bases[kind]
    spec = CLASSES.spec(TRAIN, base)
    assert len({len(ids) for ids in answer_ids(base, ["good", "not so good", "bad"])}) > 1
    found, says = prompted(CLASSES, base, spec, TRAIN, rows_of(TEXTS), calibrated=False)
    assert says == "zero-shot: labels scored by log-probability"
    for text, probs in zip(TEXTS, found, strict=True):
        scores = [plain_score(base, "", text, label) for label in spec.labels]
        assert probs == pytest.approx(softmax(scores), rel=1e-4)
    alone = [prompted(CLASSES, base, spec, TRAIN, rows_of([text]), calibrated=False)[0][0] for text in TEXTS]
    assert np.array(alone) == pytest.approx(np.array(found), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_weighed_by_those_after_empty_texts(bases: dict[str, Base], kind: str) -> None:
    base = bases[kind]
    spec = CLASSES.spec(TRAIN, base)
    found, says = prompted(CLASSES, base, spec, TRAIN, rows_of(TEXTS[:1]))
    assert says.endswith("over that after empty texts")
    asked = [
        softmax([plain_score(base, "", text, label) for label in spec.labels])
        for text in (TEXTS[0], "N/A", "")
    ]
    wanted = asked[0] / ((asked[1] + asked[2]) / 2)
    assert found[0] == pytest.approx(wanted / wanted.sum(), rel=1e-4)


@pytest.mark.parametrize("choose", ["random", "similar"])
def test_examples_stand_before_each_text(bases: dict[str, Base], choose: str) -> None:
    base = bases[DECODER]
    spec = CLASSES.spec(TRAIN, base)
    texts = ["the house runs fast", "small tree"]
    found, says = prompted(
        CLASSES, base, spec, TRAIN, rows_of(texts), shots=1, choose=choose, calibrated=False
    )
    assert "1-shot" in says
    assert "1.0 of them fit a prompt" in says
    shown = [3, 2] if choose == "similar" else [in_turn(list(pool_labels()), 0)[0]] * 2
    for text, number, probs in zip(texts, shown, found, strict=True):
        example = TRAIN[number]
        before = f"{example['text']}\nLabel: {example['label'].replace('_', ' ')}\n\n"
        scores = [plain_score(base, before, text, label) for label in spec.labels]
        assert probs == pytest.approx(softmax(scores), rel=1e-4)


def pool_labels() -> list[str]:
    return list(TRAIN["label"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shots", [1, 3, 8])
def test_prompts_fit_the_model_whatever_they_show(bases: dict[str, Base], kind: str, shots: int) -> None:
    base = bases[kind]
    long = Dataset.from_dict({"text": ["cat " * 99, "red dog " * 99] * 8, "label": ["good", "bad"] * 8})
    found, says = prompted(
        CLASSES, base, CLASSES.spec(long, base), long, rows_of(["bird " * 99, "x"]), shots=shots
    )
    assert np.isfinite(found).all()
    assert np.sum(found, axis=1) == pytest.approx(1)
    fit = float(says.split("; ")[1].split()[0])
    assert 0 < fit <= shots


def test_examples_are_drawn_label_by_label_and_similar_ones_by_cosine(bases: dict[str, Base]) -> None:
    labels = ["a"] * 90 + ["b"] * 9 + ["c"]
    order = in_turn(labels, 0)
    assert sorted(order) == list(range(100))
    assert {labels[i] for i in order[:3]} == {"a", "b", "c"}
    assert Counter(labels[i] for i in order[:19]) == {"a": 9, "b": 9, "c": 1}
    assert in_turn(labels, 1) != order == in_turn(labels, 0)
    model = language_model(bases[DECODER])
    assert model is not None
    texts = ["cat cat dog", "house", "tree red", ""]
    vectors = token_means(model, bases[DECODER], texts)
    table = model.get_input_embeddings().weight.detach().numpy()  # type: ignore[operator]
    mean = table[bases[DECODER].processor("tree red")["input_ids"]].mean(0)
    assert vectors[2] == pytest.approx(mean / np.linalg.norm(mean), rel=1e-5)
    assert not vectors[3].any()
    asked = token_means(model, bases[DECODER], ["house house", "cat dog"])
    assert [row[-1] for row in chosen("similar", 2, vectors, asked, [], 0)] == [1, 0]
    assert chosen("random", 9, vectors, asked, texts, 0) == [in_turn(texts, 0)] * 2


def test_a_sentence_encoder_takes_the_nearest_label(headless: Base) -> None:
    assert language_model(headless) is None
    train = Dataset.from_dict(
        {"text": ["red red", "red cat", "bird", "bird tree"], "label": ["x", "x", "y", "y"]}
    )
    spec = CLASSES.spec(train, headless)
    body = AutoModel.from_pretrained(headless.folder).eval()
    vectors = state_means(body, headless, [*train["text"], "red", "bird", "x", "y"])
    with torch.no_grad():
        alone = body(**headless.processor(["red cat"], return_tensors="pt")).last_hidden_state[0].mean(0)
    assert vectors[1] == pytest.approx((alone / alone.norm()).numpy(), rel=1e-4)
    rows = rows_of(["red", "bird"])
    for shots, places in ((0, vectors[6:]), (4, np.stack([vectors[:2].mean(0), vectors[2:4].mean(0)]))):
        found, says = prompted(CLASSES, headless, spec, train, rows, shots=shots)
        places = places / np.linalg.norm(places, axis=1, keepdims=True)
        raw = np.exp(20 * vectors[4:6] @ places.T)
        assert np.array(found) == pytest.approx(raw / raw.sum(1, keepdims=True), rel=1e-3)
        assert says.endswith("nearest label by cosine of frozen mean embeddings")
    voted, says = prompted(CLASSES, headless, spec, train, rows, shots=1, choose="similar")
    nearest = [train["label"][i] for i in (vectors[4:6] @ vectors[:4].T).argmax(1)]
    assert [spec.labels[int(p.argmax())] for p in voted] == nearest
    assert np.max(voted, axis=1).tolist() == [1, 1]


def test_a_learned_translator_needs_no_prompt_and_examples_fit(
    bases: dict[str, Base], tmp_path: Path
) -> None:
    task = TASKS["translation"]
    assert isinstance(task, FromTextToText)
    train, rows = sentences(300, 0), sentences(6, 1)
    base = bases[DECODER]
    spec = task.spec(train, base)
    with torch.no_grad():
        raw = task.predict(task.build(base, spec).eval(), base, spec, batch_of(task, base, spec, rows))
    found, says = prompted(task, base, spec, train, rows)
    assert found == [text.split("\n\n")[0] for text in raw]
    assert says == "zero-shot: written by the base"
    for shots, choose in ((2, "random"), (9, "similar")):
        found, says = prompted(task, base, spec, train, rows, shots=shots, choose=choose)
        assert len(found) == len(rows)
        assert float(says.split("; ")[1].split()[0]) <= shots
    with pytest.raises(AdaptError, match="of the kind encoder"):
        prompted(task, bases[ENCODER], spec, train, rows)
    with pytest.raises(AdaptError, match="'best' is no way"):
        prompted(task, base, spec, train, rows, choose="best")
    with pytest.raises(AdaptError, match="cannot show -1 examples"):
        prompted(task, base, spec, train, rows, shots=-1)


def test_responses_are_measured_after_examples(bases: dict[str, Base]) -> None:
    task, base = TASKS["generation"], bases[DECODER]
    train = Dataset.from_dict({"prompt": ["cat"], "response": ["Katze"]})
    rows = Dataset.from_dict({"prompt": ["dog"], "response": ["Hund"]})
    spec = task.spec(train, base)
    [(nats, tokens)], says = prompted(task, base, spec, train, rows, shots=1)
    tokenizer: Any = base.processor
    pieces = ["User:\ncat\n\nAssistant:\n", "Katze", "\n\n", "User:\ndog\n\nAssistant:\n"]
    prompt = [
        tokenizer.bos_token_id,
        *tokenizer("".join(pieces[:3]))["input_ids"],
        *tokenizer(pieces[3])["input_ids"],
    ]
    wanted = [*tokenizer("Hund")["input_ids"], tokenizer.eos_token_id]
    with torch.no_grad():
        logits = (
            AutoModelForCausalLM.from_pretrained(base.folder).eval()(torch.tensor([prompt + wanted])).logits
        )
    plain = torch.nn.functional.cross_entropy(logits[0, len(prompt) - 1 : -1], torch.tensor(wanted))
    assert nats / tokens == pytest.approx(plain.item(), rel=1e-4)
    assert "1.0 of them fit" in says


def test_what_is_usual() -> None:
    rows = Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "number": [0.0, 0.0]})
    spec = Spec(task="tagging", labels=("O", "B-x"), counts=(3, 1))
    assert USUAL["tagging"](spec, rows, rows)[0] == [["O", "O"], ["O"]]
    train = Dataset.from_dict({"number": [1.0, 2.0, 6.0]})
    assert USUAL["regression"](spec, train, rows)[0] == [3.0, 3.0]
    found, _ = USUAL["multi-label"](Spec(task="multi-label", counts=(3, 1)), rows, rows)
    assert np.array(found) == pytest.approx(np.array([[1.5, 0.5]] * 2))
    asked = Dataset.from_dict({"answers": [{"text": ["x"]}, {"text": ["y", "z"]}, {"text": ["y"]}]})
    assert USUAL["question-answering"](spec, asked, rows) == (["y", "y"], "the commonest answer, 'y'")


def test_every_task_has_a_baseline() -> None:
    for name, task in TASKS.items():
        assert isinstance(task, FromTextToText) or name in (*ITSELF, *USUAL, "classification")
