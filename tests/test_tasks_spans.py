"""Tags of tokens, and answers in a context: alignment with tokenizers, windows, and learning both."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny import adapted, decoder_in, encoder_in, features_of, predicted, scores
from transformers.utils import ModelOutput

from isoflop.errors import AdaptError
from isoflop.tasks import Base, LossOptions, load_base
from isoflop.tasks.iob2 import iob2, is_plain
from isoflop.tasks.labels import unseen_labels
from isoflop.tasks.question_answering import QuestionAnswering, located
from isoflop.tasks.tagging import Tagging, spaced
from isoflop.tasks.windows import mean_by_row

WHO, WHERE = ("ann", "bob", "eve"), ("rome", "oslo", "new york")
TEXTS = [f"{who} lives in {where} , says {other}" for who, where, other in product(WHO, WHERE, WHO)]
CHINESE = ["江泽民在北京说，一九九七年。", "他们在北京"]
TAGS = {"ann": "B-PER", "bob": "B-PER", "eve": "B-PER", "rome": "B-LOC", "oslo": "B-LOC", "new": "B-LOC",
        "york": "I-LOC"}  # fmt: skip
ROWS = Dataset.from_dict({
    "tokens": [t.split() for t in TEXTS], "tags": [[TAGS.get(w, "O") for w in t.split()] for t in TEXTS],
})  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "encoder": load_base(encoder_in(folder / "bert", [*TEXTS, *CHINESE], vocabulary=110)),
        "decoder": load_base(decoder_in(folder / "decoder", [*TEXTS, *CHINESE])),
    }


@pytest.fixture(params=["encoder", "decoder"])
def base(request: pytest.FixtureRequest, bases: dict[str, Base]) -> Base:
    return bases[request.param]


class Says(torch.nn.Module):
    """A model that gives the same whatever it is asked."""

    def __init__(self, **outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = ModelOutput(**outputs)

    def forward(self, **_: torch.Tensor) -> ModelOutput:
        return self.outputs


@pytest.mark.parametrize(("given", "plain", "expected"), [
    ("B-A I-A O B-A B-A", False, "B-A I-A O B-A B-A"),
    ("I-A I-A O I-B I-A", False, "B-A I-A O B-B B-A"),  # IOB1
    ("B-A I-A E-A S-A", False, "B-A I-A I-A B-A"),  # BIOES
    ("B-A L-A U-A O", False, "B-A I-A B-A O"),  # BILOU
    ("B-A M-A E-A", False, "B-A I-A I-A"),  # BMES
    ("A A O A B", True, "B-A I-A O B-A B-B"),
    ("B-A X O", False, "B-A B-X O"),  # a tag that training had not
])  # fmt: skip
def test_schemes_become_iob2(given: str, plain: bool, expected: str) -> None:
    assert iob2(given.split(), plain=plain) == expected.split()


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"])))
def test_iob2_stays_as_it_is(tags: list[str]) -> None:
    once = iob2(tags, plain=False)
    assert iob2(once, plain=False) == once
    assert not is_plain(once)


def test_spaces_stand_where_a_text_has_them() -> None:
    assert (
        "".join(spaced(["Ann", "lives", "in", "北", "京", "，", "she", "says"]))
        == "Ann lives in北京，she says"
    )
    assert spaced([]) == []


def test_tags_are_learned(base: Base) -> None:
    task = Tagging()
    model, spec, losses = adapted(task, base, ROWS, steps=60, lr=5e-3)
    assert spec.labels == ("O", "B-LOC", "I-LOC", "B-PER")
    assert spec.counts[0] == sum(tags.count("O") for tags in ROWS["tags"])
    assert losses[-1] < losses[0] / 5
    entities, tokens = scores(task, predicted(task, base, spec, model, ROWS), task.references(spec, ROWS))
    assert entities > 0.95
    assert tokens > 0.95


def test_the_first_sub_token_carries_the_tag(base: Base) -> None:
    """Whatever the pieces are, in windows of 8 tokens and in one."""
    task = Tagging()
    tokens = ["ann", "lives", "in", *"北京，", "newyorkoslo", "says", "eve"]
    tags = ["B-PER", "O", "O", "B-LOC", "I-LOC", "O", "B-LOC", "O", "B-PER"]
    rows = Dataset.from_dict({"tokens": [tokens, ["bob"]], "tags": [tags, ["B-PER"]]})
    whole = task.spec(rows, base)
    for spec, several in ((whole, False), (whole.model_copy(update={"max_length": 8}), True)):
        features = features_of(task, base, spec, rows)
        assert (len(features[0]["input_ids"]) > 1) == several
        assert all(len(window) <= spec.max_length for window in features[0]["input_ids"])
        batch = task.collate(base, spec, features)
        found = [
            [(base.processor.convert_ids_to_tokens(i), spec.labels[label])
             for i, label in zip(ids, labels, strict=True) if label >= 0]
            for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True)
        ]  # fmt: skip
        flat = [pair for window in found for pair in window]
        assert [tag for _, tag in flat] == [*tags, "B-PER"]
        assert all(
            token.startswith(piece.lstrip("Ġ")) or not piece.isascii() or not token.isascii()
            for token, (piece, _) in zip([*tokens, "bob"], flat, strict=True)
        )


def test_windows_give_each_token_its_tag_and_each_row_its_mean(base: Base) -> None:
    task = Tagging()
    rows = Dataset.from_dict({
        "tokens": [TEXTS[0].split() * 20, ["ann"]], "tags": [ROWS["tags"][0] * 20, ["B-PER"]],
    })  # fmt: skip
    spec = task.spec(ROWS, base)
    batch = task.collate(base, spec, features_of(task, base, spec, rows))
    windows = batch["example"].tolist().count(0)
    assert windows > 1
    assert len(batch["input_ids"]) == windows + 1
    targets = batch["labels"]
    logits = torch.nn.functional.one_hot(targets.clamp(min=0), len(spec.labels)).float() * 20
    assert task.predict(Says(logits=logits), base, spec, batch) == task.references(spec, rows)
    flat = task.loss(torch.zeros_like(logits), batch, LossOptions())
    assert flat.tolist() == pytest.approx([math.log(len(spec.labels))] * 2)


def test_mean_by_row_by_hand() -> None:
    nats = torch.tensor([[1.0, 2.0], [3.0, 9.0], [5.0, 9.0]])
    targets = torch.tensor([[True, True], [True, False], [False, False]])
    assert mean_by_row(nats, targets, torch.tensor([0, 0, 1])).tolist() == [2.0, 0.0]


def test_plain_tags_are_said_to_be_made_iob2_and_unseen_ones_counted(base: Base) -> None:
    task = Tagging()
    plain = Dataset.from_dict({"tokens": [["ann", "lives"]], "tags": [["PER", "O"]]})
    spec = task.spec(plain, base)
    assert spec.labels == ("O", "B-PER")
    assert "IOB2" in spec.notes[0]
    rows = Dataset.from_dict({"tokens": [["ann", "rome", "oslo"]], "tags": [["PER", "LOC", "LOC"]]})
    assert task.references(spec, rows) == [["B-PER", "B-LOC", "I-LOC"]]
    assert unseen_labels(spec, rows) == {"B-LOC": 1, "I-LOC": 1}
    features = features_of(task, base, spec, rows)
    assert [label for label in features[0]["labels"][0] if label >= 0] == [1]


def test_what_cannot_be_tagged(base: Base) -> None:
    with pytest.raises(AdaptError, match="one tag only, 'O'"):
        Tagging().spec(Dataset.from_dict({"tokens": [["a"]], "tags": [["O"]]}), base)
    spec = Tagging().spec(ROWS, base)
    with pytest.raises(AdaptError, match="2 tokens and 1 tags"):
        Tagging().encode(base, spec, {"tokens": [["a", "b"]], "tags": [["O"]]})


def answered(*, none: bool) -> Dataset:
    """Where somebody lives; of no answer, where the text has no place."""
    places = [text.split(" in ")[1].split(" ,")[0] for text in TEXTS]
    answers = [{"text": [p], "answer_start": [t.index(p)]} for t, p in zip(TEXTS, places, strict=True)]
    silent = [text.split(" , ")[1] for text in TEXTS[::3]] if none else []
    contexts = [*TEXTS, *silent]
    return Dataset.from_dict({
        "question": ["where ?"] * len(contexts), "context": contexts,
        "answers": [*answers, *[{"text": [], "answer_start": []}] * len(silent)],
    }).shuffle(seed=0)  # fmt: skip


@pytest.mark.parametrize("none", [False, True])
def test_answers_are_learned(base: Base, none: bool) -> None:
    task, rows = QuestionAnswering(), answered(none=none)
    model, spec, losses = adapted(task, base, rows, steps=50, lr=5e-3)
    assert losses[-1] < losses[0] / 3
    found = predicted(task, base, spec, model, rows)
    words, exact = scores(task, found, task.references(spec, rows))
    assert words >= exact > 0.9


def test_an_answer_is_found_in_whatever_window_it_lies(base: Base) -> None:
    """Logits that point to the targets give the answers back."""
    task = QuestionAnswering()
    filler = " ".join(["she", "says", "he", "is", "not", "there"] * 20)
    contexts = [f"{filler} in new york , {filler}", f"Bob’s in Rome, {filler}", f"{filler} 北京"]
    answers = [["new york"], ["Rome"], []]
    rows = Dataset.from_dict({
        "question": ["where is ann ?"] * 3, "context": contexts,
        "answers": [{"text": a, "answer_start": [-1] * len(a)} for a in answers],
    })  # fmt: skip
    spec = task.spec(rows, base)
    assert spec.extra["unanswerable"] == 1
    features = features_of(task, base, spec, rows)
    batch = task.collate(base, spec, features)
    assert batch["example"].tolist().count(0) > 2
    assert batch["input_ids"].shape[1] <= 64
    t = batch["input_ids"].shape[1]
    logits = torch.nn.functional.one_hot(batch["labels"], t).float() * 9
    assert (task.loss(logits, batch, LossOptions()) < 0.05).all()
    assert task.predict(Says(logits=logits.transpose(1, 2)), base, spec, batch) == ["new york", "Rome", ""]


def test_where_answers_are() -> None:
    context = "a cat and a cat"
    assert located({"text": ["cat"], "answer_start": [12]}, context) == (12, 15)
    assert located({"text": ["cat"], "answer_start": [-1]}, context) == (2, 5)
    assert located({"text": ["cat"], "answer_start": [7]}, context) == (2, 5)  # a wrong place
    assert located({"text": ["dog", "and"], "answer_start": [-1, -1]}, context) == (6, 9)
    assert located({"text": [], "answer_start": []}, context) is None


def test_answers_that_are_not_in_their_contexts_are_left_out_and_said(base: Base) -> None:
    task = QuestionAnswering()
    rows = Dataset.from_dict({
        "question": ["who ?", "who ?"], "context": ["ann lives", "bob lives"],
        "answers": [{"text": [text], "answer_start": [-1]} for text in ("ann", "eve")],
    })  # fmt: skip
    spec = task.spec(rows, base)
    assert spec.notes == ("1 training answers are not in their contexts, and are left out of the loss",)
    batch = task.collate(base, spec, features_of(task, base, spec, rows))
    loss = task.loss(torch.zeros(2, 2, batch["input_ids"].shape[1]), batch, LossOptions())
    assert loss[0] > 0
    assert loss[1] == 0
    with pytest.raises(AdaptError, match="no training example has an answer"):
        task.spec(rows.select([1]), base)


def test_a_question_longer_than_a_window_is_cut_and_counted(base: Base) -> None:
    task = QuestionAnswering()
    rows = Dataset.from_dict({
        "question": ["where " * 200, "where ?"], "context": [TEXTS[0]] * 2,
        "answers": [{"text": ["rome"], "answer_start": [-1]}] * 2,
    })  # fmt: skip
    features = features_of(task, base, task.spec(rows, base), rows)
    assert [f["cut"] for f in features] == [True, False]
    assert all(len(window) <= 64 for f in features for window in f["input_ids"])
