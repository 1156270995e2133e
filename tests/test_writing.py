"""Text that a teacher writes: the same after an interruption, of any tokenizer, its cost counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop import flops
from isoflop.corpus import train_documents
from isoflop.engines.folder import opened
from isoflop.errors import CorpusError, IsoflopError, ProjectError
from isoflop.export import load_pretrained, save_pretrained
from isoflop.families import find
from isoflop.interrupt import Interrupted
from isoflop.pipeline import corpus_of
from isoflop.recipe import recipe, shape
from isoflop.records import Corpus, CorpusConfig
from isoflop.store import Project
from isoflop.train import train
from isoflop.transforms import writing
from isoflop.transforms.writing import Manner, Written, write


@pytest.fixture(scope="session")
def author(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("author")
    model = shape(32, corpus.vocab_size, n_layers=2, context=64)
    config = recipe(model, 200 * 256, batch_tokens=256, warmup_tokens=1024, eval_tokens=2048)
    train(config, corpus, folder / "run", keep=lambda m, run: save_pretrained(m, corpus, folder / "model"))
    return folder / "model"


@pytest.fixture
def home(tmp_path: Path) -> Project:
    return Project(tmp_path / "home")


def texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


def test_a_corpus_of_another_tokenizer_is_made_of_it(home: Project, author: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    made = write(home, None, author, file, Manner(6000, batch=8))
    assert made.tokens >= 6000
    assert made.documents == len(texts(file))
    assert home.get("written", made.id, Written) == made
    longest = load_pretrained(author).config
    assert 0 < made.flops <= made.documents * 64 * flops.forward_flops_per_token(longest)
    assert made.flops >= made.tokens * 2 * flops.params_matmul(longest)
    assert write(home, None, author, file, Manner(6000, batch=8)) == made
    built = corpus_of(home, CorpusConfig(sources=(str(file),), vocab_size=300, heldout_share=0.2))
    assert built.documents > 0.5 * made.documents
    assert not list(tmp_path.glob(".*"))


def test_interrupted_it_writes_the_same(
    home: Project, corpus: Corpus, author: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manner = Manner(3000, prompt_tokens=8, batch=4, seed=3)
    straight = write(home, corpus, author, tmp_path / "straight.jsonl", manner)
    file, calls = tmp_path / "cut.jsonl", []
    batch = writing._Writer.batch

    def cut(self: Any, number: int) -> Any:
        calls.append(number)
        if len(calls) == 3:
            raise Interrupted
        return batch(self, number)

    monkeypatch.setattr(writing._Writer, "batch", cut)
    home.delete("written", straight.id)
    with pytest.raises(Interrupted):
        write(home, corpus, author, file, manner)
    assert not file.exists()
    (part,) = tmp_path.glob(".cut.jsonl.*")
    part.write_text(part.read_text() + '{"text": "cut o')  # as a kill leaves it
    again = write(home, corpus, author, file, manner)
    assert calls[:4] == [0, 1, 2, 2]
    assert texts(file) == texts(tmp_path / "straight.jsonl")
    assert again.tokens == straight.tokens


def test_it_goes_on_from_training_text(home: Project, corpus: Corpus, author: Path, tmp_path: Path) -> None:
    made = write(home, corpus, author, tmp_path / "a.jsonl", Manner(500, prompt_tokens=16, batch=4))
    assert made.corpus_id == corpus.id
    documents = list(train_documents(corpus))
    for text, document in zip(texts(tmp_path / "a.jsonl"), documents, strict=False):
        assert text[:20] == document[:20]
    with pytest.raises(CorpusError, match="have no 200000 tokens more"):
        list(writing._beginnings(corpus, opened(author)[1], 200_000))


def test_a_model_of_transformers_writes_too(home: Project, corpus: Corpus, tmp_path: Path) -> None:
    family = find("gpt2")
    model = family.build(family.shape(64, corpus.vocab_size, n_layers=2, context=64), 0)
    save_pretrained(model, corpus, tmp_path / "gpt2")
    assert write(home, None, tmp_path / "gpt2", tmp_path / "a.jsonl", Manner(100, batch=2)).tokens >= 100


@pytest.mark.parametrize(
    ("manner", "says"),
    [
        (Manner(0), "--tokens is 0"),
        (Manner(9, prompt_tokens=63), "--prompt-tokens is 63, and a document has 64"),
        (Manner(9, prompt_tokens=3), "beginnings need training text"),
        (Manner(9, temperature=0.0), "a temperature of 0"),
        (Manner(9, top_p=1.5), "a top-p of 1.5"),
    ],
)
def test_values_that_cannot_be_are_refused(
    home: Project, author: Path, tmp_path: Path, manner: Manner, says: str
) -> None:
    with pytest.raises(IsoflopError, match=says):
        write(home, None, author, tmp_path / "a.jsonl", manner)
    assert not list(tmp_path.glob("*.jsonl*"))


def test_places_that_cannot_be_are_refused(
    home: Project, corpus: Corpus, author: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ProjectError, match="exists already"):
        write(home, None, author, tmp_path / "mine.txt", Manner(9))
    with pytest.raises(ProjectError, match="no folder"):
        write(home, None, author, tmp_path / "no" / "a.jsonl", Manner(9))
    with pytest.raises(ProjectError, match=r"no config\.json"):
        write(home, None, tmp_path / "nowhere", tmp_path / "a.jsonl", Manner(9))
    bert = find("bert")
    size = bert.shape(64, corpus.vocab_size + 1, n_layers=2, context=64)
    save_pretrained(bert.build(size, 0), corpus, tmp_path / "bert")
    with pytest.raises(ProjectError, match="only a causal model"):
        write(home, None, tmp_path / "bert", tmp_path / "a.jsonl", Manner(9))
