"""Peers beside a model: what they learn, from how much, what is said of them, and how they answer with it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import tiny_bert, tiny_t5

pytest.importorskip("sklearn", reason="the extra isoflop[adapt] is not installed")

from isoflop.adapting import ngrams, peers
from isoflop.adapting.answer import adapt
from isoflop.adapting.applied import predictions
from isoflop.adapting.contexts import Contexts
from isoflop.adapting.joined import FOLDER, SAYS, Joined, save_peer, with_peer
from isoflop.adapting.loop import predict_all
from isoflop.adapting.memory import EXAMPLES, Memory
from isoflop.adapting.ngrams import NGrams
from isoflop.adapting.peer_law import law_of_peer
from isoflop.adapting.peers import Learned, Learner, beside, best_step, learned
from isoflop.adapting.saved import load_adapted
from isoflop.errors import CorruptError
from isoflop.metrics import METRICS, scored
from isoflop.store import Project
from isoflop.tasks import load_base, task_of
from isoflop.tasks.protocol import Spec

WORDS = ("bright", "dull", "plain")
FILL = (
    "the", "of", "and", "in", "to", "a", "is", "that", "it", "for", "was", "on", "are", "with", "as", "at",
)  # fmt: skip
NO_BASE: Any = SimpleNamespace(max_length=16)


def texts(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Long texts, near whose end stand the words that decide; and these words."""
    rng = random.Random(seed)
    said = [rng.sample(WORDS, rng.randint(1, 2)) for _ in range(count)]
    return [" ".join([*rng.choices(FILL, k=200), *words, "end"]) for words in said], said


def rows_of(task: str, count: int, seed: int) -> Dataset:
    made, said = texts(count, seed)
    if task == "regression":
        return Dataset.from_dict({"text": made, "number": [100.0 * len(words) + 7 for words in said]})
    if task == "multi-label":
        return Dataset.from_dict({"text": made, "labels": said})
    return Dataset.from_dict({"text": made, "label": [min(words) for words in said]})


def spec_of(name: str, train: Dataset) -> Spec:
    return task_of(name).spec(train, NO_BASE)


def at_work(name: str, train: Dataset, rows: Dataset, base: Any = NO_BASE, spec: Spec | None = None) -> Any:
    """What peers ask of an adaptation's work."""
    task = task_of(name)
    spec = spec or task.spec(train, base)
    metric = METRICS[task.metrics[0]]
    return SimpleNamespace(
        task=task, base=base, spec=spec, rows={"train": train, "validation": rows, "test": rows}, seed=0,
        notes=[], part=lambda _: nullcontext(), metric=metric,
        scores=lambda made, some: (scored(metric, made, task.references(spec, some)),),
    )  # fmt: skip


def learn(work: Any, seconds: float = 60.0) -> Learned:
    found = learned(work, seconds)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "least"), [("classification", 0.97), ("multi-label", 0.97), ("regression", 0.9)]
)
def test_whole_texts_are_learned(name: str, least: float, tmp_path: Path) -> None:
    work = at_work(name, rows_of(name, 700, 0), rows_of(name, 200, 1))
    found = learn(work)
    assert found.examples == 700
    (score,) = work.scores(found.alone("test"), work.rows["test"])
    assert score.value > least
    found.peer.save(tmp_path)
    again = NGrams.load(tmp_path).answers(work.task, NO_BASE, work.spec, work.rows["test"][:])
    assert np.allclose(again, found.answers["test"], atol=1e-5)


def test_two_labels_are_one_question() -> None:
    train, rows = (
        rows_of("classification", n, n).filter(lambda row: row["label"] != "plain") for n in (300, 100)
    )
    work = at_work("classification", train, rows)
    made = learn(work).alone("test")
    assert np.allclose(np.sum(made, 1), 1)
    references = work.task.references(work.spec, rows)
    assert scored(METRICS["accuracy"], made, references).value > 0.97


def test_without_time_it_learns_from_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one text it knows one label, and says no other."""
    monkeypatch.setattr(peers, "FIRST", 1)
    work = at_work("classification", rows_of("classification", 64, 0), rows_of("classification", 20, 1))
    found = learn(work, 0.0)
    assert found.examples == 1
    made = found.alone("test")
    assert all(sorted(said) == [0, 0, 1] for said in made)
    assert len({int(np.argmax(said)) for said in made}) == 1
    assert learn(work).examples == 64


def test_texts_that_fill_the_memory_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "FIRST", 8)
    train = rows_of("classification", 64, 0)
    monkeypatch.setattr(ngrams, "HELD", 2 * sum(len(text) for text in train[:16]["text"]))
    assert learn(at_work("classification", train, train)).examples < 64


@pytest.mark.parametrize("better", [True, False])
def test_who_is_beaten_is_told(better: bool) -> None:
    """A model that knows nothing is; one that knows all is not."""
    work = at_work("classification", rows_of("classification", 300, 0), rows_of("classification", 80, 1))
    right = np.eye(3)[work.task.references(work.spec, work.rows["test"])]
    peer = beside(work, learn(work), list(np.full((80, 3), 1 / 3) if better else right), 0.0)
    assert (peer.examples, peer.step, peer.gain) == (300, None, ())
    assert (peer.apart[0].difference < 0) is better
    assert len(work.notes) == better
    assert not better or "is better on the test examples" in work.notes[0]


def test_a_peer_says_as_much_as_helps() -> None:
    """Beside a model that knows nothing all; beside one that knows all nothing."""
    work = at_work("classification", rows_of("classification", 300, 0), rows_of("classification", 80, 1))
    found = learn(work)
    right = np.eye(3)[work.task.references(work.spec, work.rows["test"])]
    wrong = list(np.roll(right, 1, 1))
    assert best_step(work, found, list(right)) == 0
    step = best_step(work, found, wrong)
    assert step > 0.5
    peer = beside(work, found, wrong, step)
    assert peer.step == step
    assert peer.gain[0].difference > 0.5
    assert abs(peer.apart[0].difference) < 0.1


def test_other_tasks_have_none() -> None:
    assert learned(SimpleNamespace(task=task_of("embedding")), 1.0) is None  # type: ignore[arg-type]


# -- tokens around ------------------------------------------------------------------------------------


def places(count: int, seed: int) -> Dataset:
    """What comes after "in" is a place, whatever it is; and what looks like one."""
    rng = random.Random(seed)
    tokens, tags = list[list[str]](), list[list[str]]()
    for _ in range(count):
        name, other = (f"{rng.choice('abc')}{rng.randrange(10_000)}" for _ in range(2))
        tokens.append([*rng.choices(FILL[6:12], k=4), "in", name, "was", other, f"{rng.randrange(900)}burg"])
        tags.append([*["O"] * 5, "B-X", "O", "O", "B-Y"])
    return Dataset.from_dict({"tokens": tokens, "tags": tags})


def test_tags_are_of_the_tokens_around(tmp_path: Path) -> None:
    work = at_work("tagging", places(200, 0), places(50, 1), load_base(tiny_bert()))
    found = learn(work)
    (score,) = work.scores(found.alone("test"), work.rows["test"])
    assert score.value > 0.95
    assert found.together("test", [["own"]] * 50, 0.0) == [["own"]] * 50
    found.peer.save(tmp_path)
    again = Contexts.load(tmp_path)
    answers = again.answers(work.task, work.base, work.spec, work.rows["test"][:])
    assert all(np.array_equal(a, b) for a, b in zip(answers, found.answers["test"], strict=True))


def test_a_tag_that_was_not_drawn_is_not_said() -> None:
    train = places(60, 0)
    work = at_work("tagging", train, places(20, 1), load_base(tiny_bert()))
    few = train.map(lambda row: {"tags": ["O" if tag == "B-Y" else tag for tag in row["tags"]]})
    peer = Contexts.learn(work.task, work.base, work.spec, few)
    said = peer.answers(work.task, work.base, work.spec, work.rows["test"][:])
    assert {peer.labels[int(n)] for answer_k in said for n in answer_k} == {"O", "B-X"}


# -- a memory -----------------------------------------------------------------------------------------

SOURCES = ["open the file", "close the window", "save all changes now", "undo"]
TARGETS = ["Datei", "Fenster", "Alles sichern", "Zurück"]


def asked(sources: Sequence[str]) -> list[tuple[float, str]]:
    """Cosines, and the answers of a memory."""
    memory, task = Memory(SOURCES, TARGETS), task_of("translation")
    answers = memory.answers(task, NO_BASE, Spec(task="translation", source="{}"), {"source": sources})
    return [(float(a[0]), memory.together(None, a, memory.steps[-1])) for a in answers]


def test_a_memory_answers_as_its_most_alike_example() -> None:
    (same, first), (alike, second), (unlike, _) = asked(["undo", "close this window", "zzz"])
    assert (first, second) == ("Zurück", "Fenster")
    assert same == pytest.approx(1)
    assert 0.3 < alike < 0.95
    assert unlike < alike


def test_a_memory_says_what_is_alike_enough() -> None:
    memory = Memory(SOURCES, TARGETS)
    for cosine, step, answers in ((1.0, 0.0, True), (0.8, 0.0, False), (0.8, 0.2, True), (1.0, -1.0, False)):
        answer = np.array([cosine, 1.0])
        assert memory.asks(answer, step) is not answers
        assert memory.together("own", answer, step) == ("Fenster" if answers else "own")


def pairs(count: int, seed: int) -> Dataset:
    """Sources of which there are but few, with a number that does not matter."""
    rng = random.Random(seed)
    numbers = [rng.randrange(len(SOURCES)) for _ in range(count)]
    return Dataset.from_dict(
        {
            "source": [f"{SOURCES[n]} {rng.randrange(10_000)}" for n in numbers],
            "target": [TARGETS[n] for n in numbers],
        }
    )


MUTE = torch.nn.Linear(1, 1)  # a model that is not asked


@pytest.fixture
def joined(tmp_path: Path) -> tuple[Any, Any, Spec]:
    """A task with a memory that answers all that is exactly known."""
    base, task = load_base(tiny_t5()), task_of("translation")
    spec = task.spec(pairs(20, 0), base)
    save_peer(tmp_path, Memory(SOURCES, TARGETS), 0.0)
    return with_peer(task, tmp_path), base, spec


def test_the_model_is_asked_for_the_rest_alone(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, base, spec = joined
    seen: list[int] = []

    def predict(model: Any, base: Any, spec: Any, batch: Any) -> list[str]:
        assert set(batch) == {"input_ids", "attention_mask"}
        seen.append(len(batch["input_ids"]))
        return ["own"] * len(batch["input_ids"])

    monkeypatch.setattr(task.task, "predict", predict)
    rows = Dataset.from_dict({"source": ["undo", "what is new", "close the window"]})
    assert predict_all(task, base, spec, MUTE, rows) == ["Zurück", "own", "Fenster"]
    known = rows.select([0, 2])
    assert predict_all(task, base, spec, MUTE, known) == ["Zurück", "Fenster"]
    assert seen == [1]


def test_what_did_not_go_through_it_is_the_models_alone(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task, base, spec = joined
    monkeypatch.setattr(task.task, "predict", lambda *_: ["own"])
    features = task.task.encode(base, spec, {"source": ["undo"]})
    batch = task.collate(base, spec, [{"input_ids": features["input_ids"][0]}])
    assert task.predict(MUTE, base, spec, batch) == ["own"]


@pytest.mark.parametrize("file", [SAYS, EXAMPLES])
def test_a_damaged_peer_is_named(file: str, tmp_path: Path) -> None:
    save_peer(tmp_path, Memory(SOURCES, TARGETS), 0.0)
    (tmp_path / FOLDER / file).write_bytes(b"\x00")
    with pytest.raises(CorruptError, match=FOLDER):
        with_peer(task_of("translation"), tmp_path)


# -- what twice the labels would buy ------------------------------------------------------------------


def phrases(count: int, seed: int) -> Dataset:
    """Two words of a hundred each, in another language: the more are known, the more alike is one."""
    rng = random.Random(seed)
    both = [(rng.randrange(100), rng.randrange(100)) for _ in range(count)]
    return Dataset.from_dict(
        {
            "source": [f"{a * 7919:07d} {b * 6007:07d}" for a, b in both],
            "target": [f"{a * 104_729:09d} {b * 15_485:09d}" for a, b in both],
        }
    )


def test_a_peer_has_a_law_too() -> None:
    work = at_work("translation", phrases(1600, 0), phrases(300, 1), load_base(tiny_t5()))
    law = law_of_peer(work, learn(work), 60.0)
    assert law is not None
    assert law.twice_labels is not None
    assert sorted({(p.examples, p.seed) for p in law.points}) == [
        (200, 0), (200, 1), (200, 2), (400, 0), (400, 1), (400, 2), (800, 0), (800, 1), (1600, 0)
    ]  # fmt: skip
    assert all(sentence.startswith("Of the peer alone: ") for sentence in law.sentences)
    assert "each seen once" in law.sentences[0]
    assert law.now is not None
    assert law.now < law.twice_labels.value < law.twice_labels.high


def test_no_time_no_law() -> None:
    work = at_work("translation", pairs(100, 0), pairs(20, 1), load_base(tiny_t5()))
    assert law_of_peer(work, learn(work), 0.0) is None


# -- kept with a model --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classification", "tagging", "translation"])
def test_a_peer_that_is_better_answers_with_the_model(name: str, tmp_path: Path, own_time: None) -> None:
    made: Any = {"tagging": places, "translation": pairs}.get(name, partial(rows_of, name))
    pytest.importorskip("optuna", reason="the extra isoflop[adapt] is not installed")
    base = tiny_t5() if name == "translation" else tiny_bert()
    data, rows, held = tmp_path / "rows.jsonl", made(200, 3), made(12, 4)
    rows.to_json(data)
    home = Project(tmp_path / "home")
    wanted: dict[str, Any] = {
        "budget_seconds": 30.0, "law": False, "set": {"lr": 1e-6, "batch": 8, "steps": 4}
    }  # fmt: skip
    done = adapt(home, base, name, [data], **wanted)
    assert done.peer is not None
    assert done.peer.step is not None
    assert done.peer.gain[0].difference > 0.3
    assert done.peer.gain[0].second == pytest.approx(done.test[0].value)
    assert done.test[0].value > (90 if name == "translation" else 0.9)
    folder = home.folder / done.model
    task, *_ = load_adapted(folder)
    assert isinstance(task, Joined)
    peer: Learner = task.peer
    assert peer.says == done.peer.says
    assert not isinstance(load_adapted(folder, alone=True)[0], Joined)
    held.remove_columns(held.column_names[1]).to_json(tmp_path / "held.jsonl")
    said = [row["prediction"] for row in predictions(folder, [tmp_path / "held.jsonl"])]
    right = held[held.column_names[1]]
    assert sum(a == b for a, b in zip(said, right, strict=True)) >= 10
    alone = adapt(home, base, name, [data], peer=False, **wanted)
    assert alone.peer is not None
    assert (alone.peer.step, alone.peer.gain) == (None, ())
    assert not (home.folder / alone.model / FOLDER).exists()
