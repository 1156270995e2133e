"""Tasks that write text: what a model reads, where its loss lies, and what it learns to write."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from datasets import Dataset
from sacrebleu import corpus_chrf
from tiny import WINDOW, base_of, batch_of, features_of, learned, sentences
from torch import nn

from isoflop.adapting.backtranslation import back_translated
from isoflop.adapting.teaching import Teacher, written_texts
from isoflop.errors import AdaptError
from isoflop.model import IGNORE
from isoflop.tasks import TASKS, Base, LossOptions, Spec
from isoflop.tasks.code import parted
from isoflop.tasks.protocol import BOTH, DECODER, ENCODER
from isoflop.tasks.sequences import FromTextToText

KINDS = (BOTH, DECODER)
STEPS = {BOTH: 240, DECODER: 200}
Learned = tuple[FromTextToText, Base, Spec, nn.Module]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: base_of(folder / kind, kind) for kind in (BOTH, DECODER, ENCODER)}


@pytest.fixture(scope="module")
def translators(bases: dict[str, Base]) -> dict[str, Learned]:
    """Both kinds, each after some seconds of training."""
    made: dict[str, Learned] = {}
    for kind in KINDS:
        task, spec = task_of("translation", bases[kind], train := sentences(3000, 0))
        made[kind] = (task, bases[kind], spec, learned(task, bases[kind], spec, train, STEPS[kind]))
    return made


def task_of(name: str, base: Base, rows: Dataset) -> tuple[FromTextToText, Spec]:
    task = TASKS[name]
    assert isinstance(task, FromTextToText)
    return task, task.spec(rows, base)


@torch.no_grad()
def predicted(made: Learned, rows: Dataset) -> list[Any]:
    task, base, spec, model = made
    return task.predict(model, base, spec, batch_of(task, base, spec, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_for_word_translation_is_learned(translators: dict[str, Learned], kind: str) -> None:
    task, base, spec, _ = made = translators[kind]
    test = sentences(64, 1)
    found = predicted(made, test)
    assert corpus_chrf(found, [task.references(spec, test)]).score > 90
    assert predicted(made, test.remove_columns("target")) == found
    one_by_one = [predicted(made, test.select([i]))[0] for i in range(12)]
    assert one_by_one == found[:12]
    beams = spec.model_copy(update={"extra": {**spec.extra, "beams": 3}})
    by_beam = predicted((task, base, beams, made[3]), test)
    assert corpus_chrf(by_beam, [test["target"]]).score > 90
    short = spec.model_copy(update={"extra": {**spec.extra, "new_tokens": 1}})
    assert max(map(len, predicted((task, base, short, made[3]), test))) < 8


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_means_over_targets_and_padding_changes_none(bases: dict[str, Base], kind: str) -> None:
    base, rows = bases[kind], sentences(8, 2)
    task, spec = task_of("translation", base, rows)
    model = task.build(base, spec).eval()
    with torch.no_grad():
        batch = batch_of(task, base, spec, rows)
        losses = task.loss(task.logits(model, batch), batch, LossOptions())
        for i, row in enumerate(rows):
            tokenizer: Any = base.processor
            source, target = (tokenizer(row[name])["input_ids"] for name in ("source", "target"))
            wanted, network = [*target, tokenizer.eos_token_id], model
            if kind == BOTH:
                plain: Any = network(input_ids=torch.tensor([source]), labels=torch.tensor([wanted])).loss
            else:
                prompt = [tokenizer.bos_token_id, *source, *tokenizer("\n\nTranslation:\n")["input_ids"]]
                logits = network(torch.tensor([prompt + wanted])).logits[0, len(prompt) - 1 : -1]
                plain = nn.functional.cross_entropy(logits, torch.tensor(wanted))
            assert losses[i].item() == pytest.approx(plain.item(), rel=1e-4)
            alone = batch_of(task, base, spec, rows.select([i]))
            again = task.loss(task.logits(model, alone), alone, LossOptions())
            assert losses[i].item() == pytest.approx(again.item(), rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_longer_than_the_model_is_cut_and_counted(bases: dict[str, Base], kind: str) -> None:
    base = bases[kind]
    long = Dataset.from_dict({
        "document": ["cat", "cat " * 100, "dog " * 100], "summary": ["dog", "dog dog", "bird " * 90],
    })  # fmt: skip
    task, spec = task_of("summarisation", base, long.select([0, 1]))
    assert spec.extra["new_tokens"] <= WINDOW // 2
    features = features_of(task, base, spec, long)
    assert [f["cut"] for f in features] == [False, True, True]
    end = base.processor.eos_token_id
    for f in features:
        assert max(len(f["input_ids"]), len(f["labels"])) <= WINDOW
        assert f["labels"][-1] == end
        if kind == DECODER:
            assert len(f["input_ids"]) == len(f["labels"])
            prompt = f["input_ids"][: f["labels"].count(IGNORE) + 1]
            assert base.processor.decode(prompt).endswith("\n\nSummary:\n")
            assert len(prompt) <= WINDOW - spec.extra["new_tokens"]


def test_the_last_reply_of_a_chat_is_learned_after_the_chat_template(bases: dict[str, Base]) -> None:
    base = bases[DECODER]
    chats = [
        [{"role": "user", "content": "cat"}, {"role": "assistant", "content": "dog bird"}],
        [{"role": "system", "content": "the"}, {"role": "user", "content": "red"},
         {"role": "assistant", "content": "tree"}, {"role": "user", "content": "small"},
         {"role": "assistant", "content": "house"}],
    ]  # fmt: skip
    rows = Dataset.from_dict({"messages": chats})
    task, spec = task_of("generation", base, rows)
    assert [told(base, f) for f in features_of(task, base, spec, rows)] == [
        ("<|end|>User:\ncat\n\nAssistant:\n", "dog bird<|end|>"),
        ("<|end|>System:\nthe\n\nUser:\nred\n\nAssistant:\ntree\n\nUser:\nsmall\n\nAssistant:\n",
         "house<|end|>"),
    ]  # fmt: skip
    assert task.references(spec, rows) == ["dog bird", "house"]
    flat = Dataset.from_dict({"prompt": ["cat"], "response": ["dog bird"]})
    assert features_of(task, base, spec, flat)[0] == features_of(task, base, spec, rows)[0]
    template = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    try:
        base.processor.chat_template = template + "{% if add_generation_prompt %}<assistant>{% endif %}"
        task, spec = task_of("generation", base, rows)
        asked = features_of(task, base, spec, rows)
        assert told(base, asked[0]) == ("<|end|><user>cat<assistant>", "dog bird<|end|>")
        base.processor.chat_template = "{{ raise_exception('no') }}"
        with pytest.raises(AdaptError, match="refuses a chat: no"):
            task.encode(base, spec, rows[:])
    finally:
        base.processor.chat_template = None


def told(base: Base, features: dict[str, Any]) -> tuple[str, str]:
    """The prompt and the target of a decoder's features."""
    labels = features["labels"]
    prompt = features["input_ids"][: labels.count(IGNORE) + 1]
    return base.processor.decode(prompt), base.processor.decode([i for i in labels if i != IGNORE])


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_is_measured_and_a_prompt_alone_is_answered(bases: dict[str, Base], kind: str) -> None:
    base = bases[kind]
    rows = Dataset.from_dict({"prompt": ["cat", "the dog runs"], "response": ["Katze", "der Hund rennt"]})
    task, spec = task_of("generation", base, rows)
    model = task.build(base, spec).eval()
    found = predicted((task, base, spec, model), rows)
    with torch.no_grad():
        batch = batch_of(task, base, spec, rows)
        losses = task.loss(task.logits(model, batch), batch, LossOptions()).tolist()
    lengths = [len(base.processor(text)["input_ids"]) + 1 for text in rows["response"]]
    assert [tokens for _, tokens in found] == lengths
    assert [nats / tokens for nats, tokens in found] == pytest.approx(losses, rel=1e-5)
    written = predicted((task, base, spec, model), rows.remove_columns("response"))
    assert all(isinstance(text, str) for text in written)


SOURCE = '''
import os

class Shape:
    def area(self):
        return 0

    @property
    def sides(self):
        """How many."""
        n = 4
        return n
'''


def test_code_is_parted_after_the_docstring() -> None:
    prompt, body = parted(SOURCE)
    assert prompt == '@property\ndef sides(self):\n    """How many."""\n'
    assert body == "    n = 4\n    return n"
    ast.parse(prompt + body)
    assert parted("x = 1\ny = 2\nz = 3\n") == ("x = 1\ny = 2\n", "z = 3")
    assert parted("def f(:\n  pass") == ("def f(:\n", "  pass")
    assert parted("") == ("", "")
    assert parted("x = 1\n\f\n" + SOURCE) == (prompt, body)


def test_code_of_either_form_is_the_same_and_references_parse(bases: dict[str, Base]) -> None:
    base, texts = bases[DECODER], Dataset.from_dict({"text": [SOURCE]})
    prompt, body = parted(SOURCE)
    pairs = Dataset.from_dict({"prompt": [prompt], "completion": [body]})
    task, spec = task_of("code", base, texts)
    assert features_of(task, base, spec, texts) == features_of(task, base, spec, pairs)
    assert told(base, features_of(task, base, spec, pairs)[0])[1] == body + "<|end|>"
    assert task.references(spec, texts) == task.references(spec, pairs) == [dedent(body)]
    ast.parse(task.references(spec, texts)[0])
    with pytest.raises(AdaptError, match="neither a text nor a prompt"):
        task.encode(base, spec, {"other": ["x"]})


def test_what_cannot_be_learned(bases: dict[str, Base], tmp_path: Path) -> None:
    task = TASKS["translation"]
    rows = sentences(4, 0)
    empty = Dataset.from_dict({"source": ["cat"], "target": [""]})
    with pytest.raises(AdaptError, match="no target to learn translation from"):
        task.spec(empty, bases[BOTH])
    with pytest.raises(AdaptError, match="is of the kind encoder, and translation takes"):
        task.build(bases[ENCODER], task.spec(rows, bases[DECODER]))
    with pytest.raises(AdaptError, match="names no end token"):
        task.spec(rows, bases[ENCODER])
    mixed = {"prompt": ["a"], "response": ["b"]}
    generation, spec = task_of("generation", bases[DECODER], Dataset.from_dict(mixed))
    chats = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
             [{"role": "user", "content": "a"}]]  # fmt: skip
    with pytest.raises(AdaptError, match="example 2 of 2 has no target"):
        generation.encode(bases[DECODER], spec, {"messages": chats})
    half: dict[str, Any] = {"source": ["cat", "dog"], "target": ["Katze", None]}
    with pytest.raises(AdaptError, match="example 2 of 2 has no target"):
        task.encode(bases[DECODER], task.spec(rows, bases[DECODER]), half)
    with pytest.raises(AdaptError, match="neither messages nor a prompt"):
        generation.encode(bases[DECODER], spec, {"response": ["b"]})


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_writes_the_targets_and_tells_its_logits(
    translators: dict[str, Learned], bases: dict[str, Base], kind: str
) -> None:
    task, base, spec, model = made = translators[kind]
    rows = sentences(20, 3)
    taught = task.answered(rows, written_texts(task, base, spec, model, rows, batch=8))
    assert taught["source"] == rows["source"]
    assert taught["target"] == predicted(made, rows)
    teacher, batch = Teacher(task, base, spec, model), batch_of(task, base, spec, rows)
    logits = teacher.logits(batch)
    assert not logits.requires_grad
    wanted = batch["labels"] != IGNORE
    right = (logits.argmax(-1) == batch["labels"])[wanted].float().mean()
    assert right > 0.9
    teacher.check(task, bases[ENCODER], spec)  # a student of other tokens learns its texts
    with pytest.raises(AdaptError, match="was adapted to translation, not to summarisation"):
        teacher.check(TASKS["summarisation"], base, spec)


def test_taught_rows_of_chats_and_code(bases: dict[str, Base]) -> None:
    base = bases[DECODER]
    for name, rows, column in (
        ("generation", {"prompt": ["cat"], "response": ["dog"]}, "messages"),
        ("code", {"text": [SOURCE]}, "prompt"),
    ):
        given = Dataset.from_dict(rows)
        task, spec = task_of(name, base, given)
        spec = spec.model_copy(update={"extra": {**spec.extra, "new_tokens": 3}})
        taught = task.answered(given, written_texts(task, base, spec, task.build(base, spec), given))
        assert column in taught.column_names
        before = [told(base, f)[0] for f in features_of(task, base, spec, given)]
        assert [told(base, f)[0] for f in features_of(task, base, spec, taught)] == before
        assert task.references(spec, taught) != task.references(spec, given)


def test_texts_are_said_otherwise(
    translators: dict[str, Learned], bases: dict[str, Base], tmp_path: Path
) -> None:
    _, base, _, model = translators[BOTH]
    saved: Any = model
    saved.save_pretrained(tmp_path)
    base.processor.save_pretrained(tmp_path)
    rows = sentences(20, 4)
    there = predicted(translators[BOTH], rows)
    twice = predicted(translators[BOTH], Dataset.from_dict({"source": there}))
    back = back_translated(rows["source"], tmp_path, tmp_path)
    agreement = sum(a == b[: len(a)] or a[: len(b)] == b for a, b in zip(twice, back, strict=True))
    assert agreement == len(rows)  # but for how long they may be
    drawn = [back_translated(rows["source"][:4], tmp_path, tmp_path, sampled=True, seed=s) for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(AdaptError, match="is of the kind decoder, and back-translation takes"):
        back_translated(["cat"], tmp_path, bases[DECODER].folder)


def test_room_for_what_is_written_follows_the_targets(bases: dict[str, Base]) -> None:
    rows = Dataset.from_dict({"source": ["cat"] * 21, "target": ["Katze Hund"] * 20 + ["Katze " * 50]})
    tokens = len(bases[BOTH].processor("Katze Hund")["input_ids"]) + 1
    for kind in KINDS:
        _, spec = task_of("translation", bases[kind], rows)
        assert spec.extra["new_tokens"] == math.ceil(1.5 * tokens)
