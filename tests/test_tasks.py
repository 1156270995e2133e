"""Several tasks at once: exact shares of each text, every text taught by its own; noise on what is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import STDLIB

from isoflop import flops
from isoflop.continued import Past, mixture, task_corpora
from isoflop.corpus import build_corpus
from isoflop.errors import CorpusError, CorruptError, IsoflopError, TrainError
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families import find
from isoflop.progress import Silent
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig, Run, RunConfig, Task
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.teaching.divergences import Lesson
from isoflop.trainer import Batches, Trainer, noised
from isoflop.transforms import Transform, scores_of
from isoflop.transforms.distill import Subject, distill, student, verdict
from isoflop.variant import Variant

SMALL = Variant.of(
    find("isoflop"), ["batch_tokens=256", "model.context=64", "eval_tokens=2048", "warmup_tokens=1024"]
)


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process."""
    monkeypatch.setattr("isoflop.devices.cores", lambda: 1)


@pytest.fixture(scope="session")
def other(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Another text of the same tokenizer."""
    config = CorpusConfig(
        sources=(str(STDLIB / "logging"), str(STDLIB / "sqlite3"), str(STDLIB / "xml")), heldout_share=0.2,
        tokenizer=str(corpus.folder / "tokenizer.json"),
    )  # fmt: skip
    return build_corpus(config, tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="session")
def teachers(corpus: Corpus, other: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of the first text and of the other; one wide, one narrow."""
    folder = tmp_path_factory.mktemp("teachers")
    for name, text, width in (("first", corpus, 64), ("second", other, 32)):
        config = recipe(shape(width, corpus.vocab_size, n_layers=2, context=64), 40 * 512, batch_tokens=512)
        trainer = Trainer(config, text, Silent())
        for _ in range(40):
            trainer.train_step(40 * 512)
        save_pretrained(trainer.model, text, folder / name)
    return folder / "first", folder / "second"


class Numbered:
    """A text whose rows say where they are from."""

    mine, rows = slice(0, 8), 8

    def __init__(self, name: int) -> None:
        self.name = name

    def row(self, position: int) -> tuple[int, int]:
        return self.name, position

    def source(self, position: int) -> int:
        return 0


def test_every_text_has_its_share_and_its_order() -> None:
    texts = [cast("Batches", Numbered(name)) for name in range(4)]
    mixed = mixture(texts[0], [(texts[1], 0.25), (texts[2], 0.125), (texts[3], 0.5)])
    seen: list[list[int]] = [[], [], [], []]
    for position in range(800):
        name, index = cast("tuple[int, int]", mixed.row(position))
        assert mixed.source(position) == name
        seen[name].append(index)
        for found, share in zip(seen, (0.125, 0.25, 0.125, 0.5), strict=True):
            assert abs(len(found) - share * (position + 1)) < 2
    assert [len(found) for found in seen] == [100, 200, 100, 400]
    assert all(found == list(range(len(found))) for found in seen)


def test_each_text_is_taught_by_its_own(
    corpus: Corpus, other: Corpus, small: RunConfig, teachers: tuple[Path, Path]
) -> None:
    hashes = [content_hash(folder)[:HASH_DIGITS] for folder in teachers]
    task = Task(corpus=other.id, share=0.25, teacher=hashes[1])
    config = small.model_copy(update={"teachers": (hashes[0],), "teacher_weight": 0.9, "tasks": (task,)})
    trainer = Trainer(config, corpus, Silent(), Past(teachers=teachers, tasks=(other.folder,)))
    (ids, targets), sources = trainer.examples(0), trainer.sources(0, 4)
    assert sources.tolist() == [0, 0, 0, 1]
    assert torch.equal(ids[3], torch.from_numpy(Batches(other, config).row(0))[:-1])
    assert trainer.teaching is not None
    whole = trainer.teaching.loss(trainer.model, ids, targets, sources)
    parts = []
    for name, folder, rows in ((hashes[0], teachers[0], [0, 1, 2]), (hashes[1], teachers[1], [3])):
        alone = config.model_copy(update={"teachers": (name,), "tasks": ()})
        taught = Trainer(alone, corpus, Silent(), Past(teachers=(folder,))).teaching
        assert taught is not None
        nats = taught.loss(trainer.model, ids[rows], targets[rows], torch.zeros(len(rows)))
        parts.append(len(rows) / 4 * nats.item())
    assert whole.item() == pytest.approx(sum(parts), rel=1e-5)


def test_a_student_of_two_tasks(
    corpus: Corpus, other: Corpus, teachers: tuple[Path, Path], tmp_path: Path
) -> None:
    home = Project(tmp_path / "home")
    config, past = student(home, corpus, tokens=40 * 256, width=32, layers=2, variant=SMALL)
    tasks = [Subject(other.folder, teachers[1], 0.5)]
    done = distill(home, corpus, teachers[:1], config, past, tasks=tasks)
    run = home.get("run", str(done.run_id), Run)
    assert run is not None
    assert run.config.tasks == (Task(corpus=other.id, share=0.5, teacher=done.sources[1].hash),)
    after = load_pretrained(home.folder / done.model)
    assert done.measured == {f"loss on {other.folder.name}": scores_of(after, other, 2048).loss}
    asked = [flops.forward_flops_per_token(load_pretrained(folder).config) for folder in teachers]
    assert done.flops["teacher"] == pytest.approx(40 * 256 * sum(asked) / 2)
    assert run.flops_teachers == pytest.approx(done.flops["teacher"])
    assert Transform.from_json(done.to_json()) == done
    assert distill(home, corpus, teachers[:1], config, past, tasks=tasks) == done
    alone = distill(home, corpus, teachers[:1], config, past)
    learned = scores_of(load_pretrained(home.folder / alone.model), other, 2048).loss
    assert done.measured[f"loss on {other.folder.name}"] < learned
    assert verdict(home, corpus, teachers[:1], config, past, tasks=tasks).sentences == []


@pytest.mark.parametrize(
    ("share", "lesson", "says"),
    [
        (1.0, Lesson(), "the shares of the further tasks are 1"),
        (0.0, Lesson(), "the shares of the further tasks are 0"),
        (float("nan"), Lesson(), "the shares of the further tasks are nan"),
        (0.5, Lesson(features=1.0), "feature_weight does not go with several tasks"),
        (0.5, Lesson(noise=1.0), "input_noise is 1.0"),
        (0.5, Lesson(topk=8, noise=0.1), "noise makes each of them new"),
    ],
)
def test_what_no_student_can_learn(
    corpus: Corpus, other: Corpus, teachers: tuple[Path, Path], tmp_path: Path, share: float, lesson: Lesson,
    says: str,
) -> None:  # fmt: skip
    home = Project(tmp_path / "home")
    config, past = student(home, corpus, tokens=40 * 256, width=32, layers=2, variant=SMALL)
    tasks = [Subject(other.folder, teachers[1], share)]
    with pytest.raises(IsoflopError, match=says):
        distill(home, corpus, teachers[:1], config, past, lesson=lesson, tasks=tasks, cache_bytes=1e7)
    assert not home.all("run", Run)


def test_texts_that_are_no_task(
    corpus: Corpus, other: Corpus, small: RunConfig, teachers: tuple[Path, Path], sources: tuple[str, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    home = Project(tmp_path / "home")
    config, past = student(home, corpus, tokens=40 * 256, width=32, layers=2, variant=SMALL)
    foreign = build_corpus(CorpusConfig(sources=sources[3:], vocab_size=300, heldout_share=0.5), tmp_path)
    for folder, says in (
        (foreign.folder, "tokenizer of the task's corpus"),
        (tmp_path / "no", "no task's corpus"),
    ):
        with pytest.raises(CorpusError, match=says):
            distill(home, corpus, teachers[:1], config, past, tasks=[Subject(folder, teachers[1], 0.5)])
    taught: dict[str, Any] = {"teachers": ("x",), "teacher_weight": 0.5}
    wanted = small.model_copy(update={**taught, "tasks": (Task(corpus="1", share=0.5, teacher="y"),)})
    with pytest.raises(TrainError, match="1 further tasks, and the text of 0"):
        task_corpora(wanted, Past())
    with pytest.raises(CorruptError, match=f"is {other.id}, and the run began with 1"):
        task_corpora(wanted, Past(tasks=(other.folder,)))
    with pytest.raises(TrainError, match="tasks is for a run with teachers"):
        Trainer(wanted.model_copy(update={"teachers": ()}), corpus, Silent(), Past(tasks=(other.folder,)))


def test_noise_replaces_its_share_by_tokens_of_the_batch() -> None:
    ids = torch.arange(4000).view(8, 500)
    found = noised(ids, 0.2, (3, 5, 1))
    assert torch.equal(found, noised(ids, 0.2, (3, 5, 1)))
    assert not torch.equal(found, noised(ids, 0.2, (3, 6, 1)))
    assert float((found != ids).float().mean()) == pytest.approx(0.2, abs=0.02)
    assert set(found.flatten().tolist()) <= set(ids.flatten().tolist())


def test_students_and_teachers_read_the_noise_and_the_text_stays(
    corpus: Corpus, teachers: tuple[Path, Path], small: RunConfig
) -> None:
    hash = content_hash(teachers[0])[:HASH_DIGITS]
    clean = small.model_copy(update={"teachers": (hash,), "teacher_weight": 0.9})
    noisy = clean.model_copy(update={"input_noise": 0.3})
    past = Past(teachers=teachers[:1])
    (before, wanted), (read, same) = (
        Trainer(config, corpus, Silent(), past).examples(2) for config in (clean, noisy)
    )
    assert torch.equal(wanted, same)
    assert 0.2 < float((before != read).float().mean()) < 0.35
    assert noisy.model_dump() != clean.model_dump()
    assert "input_noise" not in clean.model_dump()
