"""Tasks that understand text: each learns what is plainly there, with an encoder and with a decoder."""

from __future__ import annotations

import json
import math
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import adapted, decoder_in, encoder_in, features_of, predicted, scores
from transformers import AutoModel

from isoflop.errors import AdaptError
from isoflop.metrics import METRICS
from isoflop.tasks import TASKS, Base, LossOptions, fits, load_base
from isoflop.tasks.classification import Classification
from isoflop.tasks.labels import UNSEEN, unseen_labels
from isoflop.tasks.masked import Masked
from isoflop.tasks.multi_label import MultiLabel
from isoflop.tasks.regression import Regression
from isoflop.tasks.similarity import Embedding, Similarity

FRUIT, BEAST, PLACE = ("apple", "pear", "plum"), ("dog", "cat", "cow"), ("house", "garden", "river")
TEXTS = [f"the {b} by the {p} has a {f}" for b, p, f in product(BEAST, PLACE, FRUIT)]
LONG = " ".join(TEXTS)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "encoder": load_base(encoder_in(folder / "bert", TEXTS)),
        "decoder": load_base(decoder_in(folder / "decoder", TEXTS)),
    }


@pytest.fixture(params=["encoder", "decoder"])
def base(request: pytest.FixtureRequest, bases: dict[str, Base]) -> Base:
    return bases[request.param]


def halves(losses: list[float]) -> tuple[float, float]:
    return float(np.mean(losses[:3])), float(np.mean(losses[-3:]))


def test_classification_of_a_padded_batch_is_that_of_each_text_alone(base: Base, tmp_path: Path) -> None:
    rows = Dataset.from_dict({
        "text": [*TEXTS, *(f"now {t}" for t in TEXTS)], "label": [t.split()[1] for t in TEXTS] * 2,
    })  # fmt: skip
    task = Classification()
    model, spec, losses = adapted(task, base, rows)
    assert halves(losses)[1] < halves(losses)[0] / 2
    together = predicted(task, base, spec, model, rows)
    assert scores(task, together, task.references(spec, rows)) == [1, 1]
    alone = predicted(task, base, spec, model, rows, batch=1)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    base.processor.save_pretrained(tmp_path)
    again = load_base(tmp_path)
    reloaded = predicted(task, again, spec, task.build(again, spec).eval(), rows)
    np.testing.assert_allclose(together, reloaded, atol=1e-6)


def test_a_label_that_training_had_not_is_an_error_of_the_model_not_of_the_program(base: Base) -> None:
    task = Classification()
    spec = task.spec(Dataset.from_dict({"text": TEXTS[:2], "label": ["a", "b"]}), base)
    rows = Dataset.from_dict({"text": TEXTS[:3], "label": ["b", "z", "z"]})
    assert task.references(spec, rows) == [1, UNSEEN, UNSEEN]
    assert unseen_labels(spec, rows) == {"z": 2}
    batch = task.collate(base, spec, features_of(task, base, spec, rows))
    loss = task.loss(torch.zeros(3, 2), batch, LossOptions(label_smoothing=0.1))
    assert loss.tolist() == pytest.approx([math.log(2), 0, 0])


def test_many_labels(base: Base) -> None:
    rows = Dataset.from_dict({
        "text": TEXTS,
        "labels": [[w for w in ("dog", "river", "plum") if w in text.split()] for text in TEXTS],
    })  # fmt: skip
    task = MultiLabel()
    model, spec, losses = adapted(task, base, rows, steps=60, lr=5e-3)
    assert spec.labels == ("dog", "plum", "river")
    assert spec.counts == (9, 9, 9)
    assert halves(losses)[0] == pytest.approx(math.log(2), abs=0.25)
    assert scores(task, predicted(task, base, spec, model, rows), task.references(spec, rows)) == [1, 1]
    assert model.config.problem_type == "multi_label_classification"  # type: ignore[union-attr]


def test_many_labels_by_hand(base: Base) -> None:
    task = MultiLabel()
    rows = Dataset.from_dict({"text": TEXTS[:2], "labels": [["a"], ["b", "z"]]})
    spec = task.spec(rows, base).model_copy(update={"labels": ("a", "b")})
    assert [list(r) for r in task.references(spec, rows)] == [[1, 0, 0], [0, 1, 1]]
    assert [list(r) for r in task.references(spec, rows.select([0]))] == [[1, 0]]
    assert unseen_labels(spec, rows) == {"z": 1}
    batch = task.collate(base, spec, features_of(task, base, spec, rows))
    logits = torch.tensor([[1.0, -1.0], [2.0, 0.0]])
    plain = task.loss(logits, batch, LossOptions())
    expected = [
        [math.log(1 + math.exp(-1)), math.log(1 + math.exp(-1))],
        [math.log(1 + math.exp(2)), math.log(2)],
    ]
    assert plain.tolist() == pytest.approx([sum(e) / 2 for e in expected])
    weighed = task.loss(logits, batch, LossOptions(label_weights=torch.tensor([2.0, 0.0])))
    assert weighed.tolist() == pytest.approx([e[0] for e in expected])
    smooth = task.loss(torch.zeros(2, 2), batch, LossOptions(label_smoothing=0.2))
    assert smooth.tolist() == pytest.approx([math.log(2)] * 2)


def test_a_number(base: Base) -> None:
    value = {"dog": 10.0, "cat": 20.0, "cow": 45.0}
    rows = Dataset.from_dict({"text": TEXTS, "number": [value[t.split()[1]] for t in TEXTS]})
    task = Regression()
    model, spec, losses = adapted(task, base, rows, steps=60)
    assert spec.extra == {"mean": 25.0, "deviation": pytest.approx(np.std([10, 20, 45]))}
    assert halves(losses)[1] < halves(losses)[0] / 10
    found = predicted(task, base, spec, model, rows)
    pearson, rmse, spearman = scores(task, found, task.references(spec, rows))
    assert pearson > 0.95
    assert rmse < 4
    assert spearman > 0.9
    assert type(spec).from_json(spec.to_json()) == spec


def test_masked_tokens(bases: dict[str, Base]) -> None:
    base, task = bases["encoder"], Masked()
    rows = Dataset.from_dict({"text": TEXTS})
    model, spec, _ = adapted(task, base, rows, steps=60, lr=5e-3)
    before = predicted(task, base, spec, task.build(base, spec).eval(), rows)
    after = predicted(task, base, spec, model, rows, batch=27)
    assert [n for _, n in before] == [n for _, n in after] == [1] * 27  # 15% of 8 words
    first, last = (scores(task, found, task.references(spec, rows))[0] for found in (before, after))
    assert last < first / 5
    one = predicted(task, base, spec, model, Dataset.from_dict({"text": [TEXTS[3], LONG]}))
    assert one[0] == pytest.approx(after[3])  # whatever is beside it
    assert one[1][1] == round(0.15 * 62)


def test_masks_of_training_are_drawn_anew_and_hide_no_special_token(bases: dict[str, Base]) -> None:
    base, task = bases["encoder"], Masked()
    rows = Dataset.from_dict({"text": TEXTS[:4]})
    spec = task.spec(rows, base)
    features = features_of(task, base, spec, rows)
    torch.manual_seed(1)
    first, second = (task.collate(base, spec, features) for _ in range(2))
    torch.manual_seed(1)
    again = task.collate(base, spec, features)
    assert torch.equal(first["labels"], again["labels"])
    assert not torch.equal(first["labels"], second["labels"])
    targets = first["labels"][first["labels"] != -100]
    assert len(targets) == 4
    assert not set(targets.tolist()) & set(base.processor.all_special_ids)


def test_similarity_learns_numbers(base: Base) -> None:
    words = [*FRUIT, *BEAST]
    pairs = list(product(words, words))
    same = [3.0 if (a in FRUIT) == (b in FRUIT) else 1.0 for a, b in pairs]
    rows = Dataset.from_dict(
        {"first": [a for a, _ in pairs], "second": [b for _, b in pairs], "number": same}
    )
    task = Similarity()
    model, spec, losses = adapted(task, base, rows, steps=60)
    assert spec.extra == {"low": 0, "high": 3}
    assert len(spec.notes) == 1
    assert halves(losses)[1] < halves(losses)[0] / 2
    found = predicted(task, base, spec, model, rows)
    spearman, pearson = scores(task, found, task.references(spec, rows))
    assert min(spearman, pearson) > 0.8
    assert 0 < min(found) < max(found) < 3.5


def test_embedding_finds_the_other_half_of_a_pair(base: Base) -> None:
    rows = Dataset.from_dict({
        "first": [f"the {w}" for w in (*FRUIT, *BEAST, *PLACE)],
        "second": [f"by a {w}" for w in (*BEAST, *PLACE, *FRUIT)],
    })  # fmt: skip
    task = Embedding()
    model, spec, losses = adapted(task, base, rows, steps=120, lr=3e-3)
    assert halves(losses)[1] < halves(losses)[0] / 2
    found = predicted(task, base, spec, model, rows)
    assert scores(task, found, task.references(spec, rows)) == [1, 1]
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


def test_equal_seconds_are_all_right(base: Base) -> None:
    rows = Dataset.from_dict({"first": TEXTS[:3], "second": ["dog", "cat", "dog"]})
    task = Embedding()
    spec = task.spec(rows, base)
    batch = task.collate(base, spec, features_of(task, base, spec, rows))
    names = task.references(spec, rows)
    assert names[0] == names[2] != names[1]
    alike = torch.ones(3, 2, 4) / 2
    assert task.loss(alike, batch, LossOptions()).tolist() == pytest.approx(
        [math.log(3 / 2), math.log(3), math.log(3 / 2)]
    )


@pytest.mark.parametrize(("task", "columns"), [
    (MultiLabel(), {"labels": [["dog"], ["cat"]]}), (Regression(), {"number": [1.0, 2.0]}),
    (Classification(), {"label": ["a", "b"]}), (Masked(), {}),
])  # fmt: skip
def test_what_is_longer_than_the_model_is_cut_and_counted(
    task: Any, columns: dict[str, Any], bases: dict[str, Base]
) -> None:
    rows = Dataset.from_dict({"text": [TEXTS[0], LONG], **columns})
    spec = task.spec(rows, bases["encoder"])
    features = task.encode(bases["encoder"], spec, rows[:])
    assert features["cut"] == [False, True]
    whole = bases["encoder"].processor(LONG)["input_ids"]
    kept = whole[:63] + whole[-1:] if task.name == "masked" else whole[:32] + whole[-32:]
    assert features["input_ids"][1] == kept  # a label is of the whole text, whose ends tell most
    assert features["attention_mask"][1] == [1] * 64


@pytest.mark.parametrize(("task", "columns", "says"), [
    (MultiLabel(), {"labels": [["a"], ["a"]]}, "same labels, a"),
    (MultiLabel(), {"labels": [[], []]}, "same labels, none"),
    (Regression(), {"number": [2.5, 2.5]}, "2.5"),
    (Regression(), {"number": [1.0, math.inf]}, "inf"),
    (Similarity(), {"first": ["a", "b"], "second": ["a", "b"], "number": [1.0, 1.0]}, "is 1"),
    (Embedding(), {"first": ["a", "b"], "second": ["c", "c"]}, "the same"),
])  # fmt: skip
def test_examples_that_teach_nothing(
    task: Any, columns: dict[str, Any], says: str, bases: dict[str, Base]
) -> None:
    with pytest.raises(AdaptError, match=says):
        task.spec(Dataset.from_dict({"text": TEXTS[:2], **columns}), bases["encoder"])


def test_a_base_of_the_wrong_kind_is_told_what_it_fits(bases: dict[str, Base]) -> None:
    decoder, task = bases["decoder"], Masked()
    assert {"classification", "tagging", "embedding"} <= set(fits(decoder))
    assert "masked" in set(fits(bases["encoder"])) - set(fits(decoder))
    rows = Dataset.from_dict({"text": TEXTS})
    with pytest.raises(AdaptError, match="no mask token"):
        task.spec(rows, decoder)
    with pytest.raises(AdaptError, match="decoder, and masked takes encoder") as caught:
        task.build(decoder, task.spec(rows, bases["encoder"]))
    assert "multi-label" in caught.value.hint


@pytest.mark.parametrize("name", [name for name in TASKS if name != "image-text"])  # see test_tasks_media.py
def test_a_saved_model_opens_as_it_was(name: str, base: Base, tmp_path: Path) -> None:
    """Whatever its head, and with none of the base's weights lost on the way."""
    task = TASKS[name]
    if base.kind not in task.kinds:
        pytest.skip("another kind of base")
    known = [{"text": ["dog"], "answer_start": [4]}, {"text": ["cat"], "answer_start": [-1]}]
    rows = Dataset.from_dict({
        "text": TEXTS[8:10], "label": ["a", "b"], "labels": [["a"], ["b"]], "number": [1.0, 2.0],
        "tokens": [["a", "dog"], ["cat"]], "tags": [["O", "B-X"], ["O"]], "question": ["which ?"] * 2,
        "context": TEXTS[8:10], "answers": known, "first": TEXTS[:2], "second": TEXTS[2:4],
        "source": TEXTS[:2], "target": TEXTS[2:4], "document": TEXTS[:2], "summary": TEXTS[2:4],
        "prompt": TEXTS[:2], "response": TEXTS[2:4], "completion": TEXTS[2:4],
    })  # fmt: skip
    spec = task.spec(rows, base)
    built: Any = task.build(base, spec)
    own = {weight.sum().item() for weight in AutoModel.from_pretrained(base.folder).parameters()}
    assert len(own - {weight.sum().item() for weight in built.parameters()}) <= 1  # of a pooler, which is new
    built.save_pretrained(tmp_path)
    base.processor.save_pretrained(tmp_path)
    again = load_base(tmp_path)
    assert again.kind == base.kind
    first = predicted(task, base, spec, built.eval(), rows)
    second = predicted(task, again, spec, task.build(again, spec).eval(), rows)
    if isinstance(first[0], str | list):
        assert first == second
    else:
        np.testing.assert_allclose(first, second, rtol=1e-4)


def test_a_tokenizer_that_cannot_pad(bases: dict[str, Base], tmp_path: Path) -> None:
    shutil.copytree(bases["decoder"].folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer_config.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in said.items() if k not in ("bos_token", "eos_token")}))
    with pytest.raises(AdaptError, match="neither a pad token nor an end token"):
        load_base(tmp_path)


def test_every_task_names_metrics_that_there_are() -> None:
    assert all(metric in METRICS for task in TASKS.values() for metric in task.metrics)
