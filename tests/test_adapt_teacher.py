"""Students of adapted models, and smaller bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import END, reviews, tiny_bert, tiny_qwen3, tiny_t5

from isoflop.adapting.answer import adapt
from isoflop.adapting.batches import Rows
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import save_adapted
from isoflop.adapting.smaller import kept_layers, smaller
from isoflop.adapting.teaching import Teacher, told_rows
from isoflop.errors import AdaptError
from isoflop.store import Project
from isoflop.tasks import load_base, task_of

pytest.importorskip("peft", reason="the extra isoflop[adapt] is not installed")

LONG = AdaptConfig(task="classification", lr=3e-3, epochs=4, evaluations=1, seed=1)
SHORT = LONG.model_copy(update={"epochs": 40, "teacher_weight": 1.0})  # alone it grows too sure


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    """Of many examples, one label in eight wrong, so that it is unsure."""
    task, base = task_of("classification"), load_base(tiny_bert())
    rows = reviews(600, seed=3)
    labels = [{"good": "bad", "bad": "good"}[x] if i % 8 == 0 else x for i, x in enumerate(rows["label"])]
    rows = rows.remove_columns("label").add_column("label", labels)
    spec = task.spec(rows, base)
    return Teacher(task, base, spec, fine_tune(task, base, spec, rows, rows.select(range(50)), LONG).model)


def mean_kl(teacher: Teacher, model: Any, base: Any, rows: Dataset, folder: Path) -> float:
    """Nats by which a student's probabilities of rows differ from the teacher's."""
    theirs = Rows(teacher.task, teacher.base, teacher.spec, rows, folder, "the teacher")
    own = Rows(teacher.task, base, teacher.spec, rows, folder, "the student")
    logp_bc, logq_bc = (
        x.task.logits(m, x.collated(x.features_of(range(len(rows))))).detach().log_softmax(-1)
        for x, m in ((theirs, teacher.model), (own, model))
    )
    return float((logp_bc.exp() * (logp_bc - logq_bc)).sum(1).mean())


@pytest.mark.parametrize("student", [tiny_bert, tiny_qwen3])
def test_a_taught_student_is_nearer_to_its_teacher(teacher: Teacher, tmp_path: Path, student: Any) -> None:
    task, base = teacher.task, load_base(student())
    few, validation, held = reviews(48, seed=7), reviews(30, seed=8), reviews(80, seed=9)
    spec = task.spec(few, base)
    teacher.check(task, base, spec)
    told, flops = told_rows(teacher, base, spec, few, tmp_path)
    assert flops > 0
    near = {
        name: mean_kl(
            teacher, fine_tune(task, base, spec, few, validation, SHORT, teacher=asked).model, base, held,
            tmp_path,
        )
        for name, asked in (("taught", told), ("alone", None))
    }  # fmt: skip
    assert near["taught"] < near["alone"]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers answer in float32, whatever the machine is fast in."""
    monkeypatch.setattr("isoflop.adapting.teaching.preferred_precision", lambda: "float32")


@pytest.mark.usefixtures("exact")
def test_told_logits_are_the_teachers_whatever_the_batch(teacher: Teacher, tmp_path: Path) -> None:
    rows = reviews(40, seed=5)
    base = load_base(tiny_qwen3())
    told, _ = told_rows(teacher, base, teacher.spec, rows, tmp_path)
    own = Rows(teacher.task, base, teacher.spec, rows, tmp_path, "the student")
    theirs = Rows(teacher.task, teacher.base, teacher.spec, rows, tmp_path, "the teacher")
    numbers = [31, 2, 17]
    wanted = teacher.logits(theirs.collated(theirs.features_of(numbers)))
    torch.testing.assert_close(told(own.collated(own.features_of(numbers))), wanted, atol=1e-5, rtol=1e-4)
    again, _ = told_rows(teacher, base, teacher.spec, rows, tmp_path)  # from the folder
    assert np.array_equal(again.logits_pc, told.logits_pc)
    strange = own.collated(own.features_of(numbers))
    strange["input_ids"] += 1
    with pytest.raises(AdaptError, match="was not asked about a text"):
        told(strange)


def tagged(count: int, seed: int) -> Dataset:
    """Good and bad words are entities; some rows are longer than a window."""
    return Dataset.from_list([
        {"tokens": text.split() * times, "tags": ["B-X" if i % 3 == 0 else "O" for i in range(n * times)]}
        for number, text in enumerate(reviews(count, seed=seed)["text"])
        for n in [len(text.split())] for times in [12 if number % 5 == 0 else 1]
    ])  # fmt: skip


@pytest.mark.usefixtures("exact")
def test_a_tagger_tells_logits_of_tokens(tmp_path: Path) -> None:
    task, base, rows = task_of("tagging"), load_base(tiny_bert()), tagged(20, 1)
    spec = task.spec(rows, base)
    teacher = Teacher(task, base, spec, task.build(base, spec))
    teacher.check(task, base, spec)
    told, _ = told_rows(teacher, base, spec, rows, tmp_path)
    own = Rows(task, base, spec, rows, tmp_path, "the student")
    batch = own.collated(own.features_of([3, 5, 0]))
    assert len(batch["input_ids"]) > 3  # windows
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(told(batch)[real], teacher.logits(batch)[real], atol=1e-5, rtol=1e-4)
    with pytest.raises(AdaptError, match="reads other tokens"):
        teacher.check(task, load_base(tiny_qwen3()), spec)
    short = Teacher(task, load_base(tiny_bert(), max_length=16), spec, teacher.model)
    with pytest.raises(AdaptError, match="reads 16 tokens"):
        short.check(task, base, spec)


def test_labels_of_another_order_are_refused(teacher: Teacher) -> None:
    spec = teacher.spec.model_copy(update={"labels": teacher.spec.labels[::-1]})
    with pytest.raises(AdaptError, match="knows the labels bad, good, and the training examples have good"):
        teacher.check(teacher.task, teacher.base, spec)
    with pytest.raises(AdaptError, match="adapted to classification, not to tagging"):
        teacher.check(task_of("tagging"), teacher.base, spec)
    image = Teacher(task_of("image-classification"), teacher.base, spec, teacher.model)
    with pytest.raises(AdaptError, match="a teacher of image-classification is not known"):
        image.check(image.task, teacher.base, spec)


def test_the_layers_that_stay() -> None:
    assert [kept_layers(n, 6) for n in (1, 2, 3, 4)] == [[5], [2, 5], [1, 3, 5], [0, 2, 3, 5]]


@pytest.mark.parametrize("kind", [tiny_bert, tiny_qwen3])
def test_a_smaller_base_has_the_layers_of_the_larger(tmp_path: Path, kind: Any) -> None:
    from transformers import AutoModel, AutoModelForCausalLM

    home = Project(tmp_path / "home")
    folder = smaller(home, kind(), 1)
    auto: Any = AutoModel if kind is tiny_bert else AutoModelForCausalLM
    large, small = auto.from_pretrained(kind()).state_dict(), auto.from_pretrained(folder).state_dict()
    layers = ("encoder.layer.", "model.layers.")
    assert sum(name.startswith(layers) for name in large) == 2 * sum(
        name.startswith(layers) for name in small
    )
    for name, weight in small.items():
        source = name
        for stack in layers:
            source = source.replace(f"{stack}0.", f"{stack}1.")
        assert torch.equal(weight, large[source]), name
    assert load_base(folder).processor.get_vocab() == load_base(kind()).processor.get_vocab()
    assert smaller(home, kind(), 1) == folder
    for layers_asked in (0, 2):
        with pytest.raises(AdaptError, match=f"has 2 layers, of which {layers_asked} cannot be kept"):
            smaller(home, kind(), layers_asked)


def test_two_stacks_are_not_made_smaller(tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="is not one stack of layers"):
        smaller(Project(tmp_path / "home"), tiny_t5(), 1)


def test_adapting_with_a_teacher_says_how_far_the_student_is_from_it(
    teacher: Teacher, tmp_path: Path, own_time: None
) -> None:
    pytest.importorskip("optuna", reason="the extra isoflop[adapt] is not installed")
    folder, data = tmp_path / "teacher", tmp_path / "reviews.jsonl"
    save_adapted(folder, teacher.task, teacher.base, teacher.spec, LONG, teacher.model)
    reviews(300, seed=3).to_json(data)
    home = Project(tmp_path / "home")
    asked: dict[str, Any] = {"budget_seconds": 15.0, "law": False, "set": {"lr": 3e-3, "batch": 16}}
    done = adapt(
        home, tiny_bert(), "classification", [data], teacher=folder, keep_layers=1, method="full", **asked
    )
    assert done.taught is not None
    assert done.taught.path == str(folder)
    assert done.taught.flops > 0
    assert done.flops == pytest.approx(sum(t.flops for t in done.trials) + done.taught.flops)
    assert [s.metric for s in done.taught.test] == [s.metric for s in done.test]
    for theirs, own, apart in zip(done.taught.test, done.test, done.taught.apart, strict=True):
        assert apart.first == theirs.value
        assert apart.second == own.value
    assert load_base(home.folder / done.model).config.num_hidden_layers == 1
    with pytest.raises(AdaptError, match="compares models without a teacher"):
        adapt(home, tiny_bert(), "classification", [data], teacher=folder, also=[tiny_qwen3()], **asked)


def test_a_teacher_that_writes_gives_the_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.adapting import taught

    task, base = task_of("translation"), load_base(tiny_qwen3())
    rows = Dataset.from_dict({"source": ["the day", "a walk home"], "target": ["cold", "warm"]})
    spec = task.spec(rows, base)
    spec = spec.model_copy(update={"extra": {**spec.extra, "new_tokens": 3}})
    folder = tmp_path / "teacher"
    save_adapted(folder, task, base, spec, AdaptConfig(task=task.name), task.build(base, spec))
    from isoflop.adapting.work import Adapting, Work
    from isoflop.progress import Silent

    work = Work(
        Project(tmp_path / "home"), Adapting(id="x"), task, base, spec, {"train": rows, "test": rows}, 9.0, 0,
        [], Silent(),
    )  # fmt: skip
    lesson = taught.learned_from(work, folder)
    assert work.rows["train"]["source"] == rows["source"]
    assert work.rows["train"]["target"] != rows["target"]
    assert work.rows["train"]["target"] == [text.removesuffix(END) for text in lesson.predictions]
    assert work.teacher is None
    assert lesson.flops > 0
