"""Adapted models behind the server: they say what they say without it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encoder_in, reviews, tiny_bert, tiny_qwen3

from isoflop.adapting.applied import predictions
from isoflop.adapting.joined import save_peer
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.ngrams import NGrams
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import load_adapted, save_adapted
from isoflop.errors import AdaptError, ProjectError
from isoflop.serve.engines.adapted import Classifier, Tagger, spans_of, words_of
from isoflop.serve.engines.embedding import Embedder
from isoflop.serve.protocol import Classifies, Embeds, EngineError, RequestError, Span, Tags
from isoflop.tasks import load_base, task_of

T = TypeVar("T")
E = TypeVar("E", Classifier, Tagger, Embedder)
TEXTS = ["the day was bright and we saw a bird", "cruel", "a long walk by the river home was warm and calm"]
CITIES = ("Bonn", "Paris", "北京", "上海")


def adapted(folder: Path, name: str, base_folder: Path, rows: Dataset, **changes: Any) -> Path:
    task, base = task_of(name), load_base(base_folder)
    spec, config = task.spec(rows, base), AdaptConfig(task=name, lr=3e-3, epochs=3, evaluations=1, **changes)
    save_adapted(
        folder, task, base, spec, config, fine_tune(task, base, spec, rows, rows, config).model
    )  # fmt: skip
    return folder


@asynccontextmanager
async def started(engine: E) -> Any:
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def asked(engine: E, work: Callable[[E], Awaitable[T]]) -> T:
    async def whole() -> T:
        async with started(engine):
            return await work(engine)

    return asyncio.run(whole())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    return adapted(folder / "model", "classification", tiny_bert(), reviews(60, seed=2))


def check_labels(path: Path) -> None:
    """Three requests at once, and one of three texts, say what `isoflop predict` says."""
    engine = Classifier(path, threads=1)
    assert isinstance(engine, Classifies)

    async def work(engine: Classifier) -> Any:
        assert await engine.alive()
        found = await asyncio.gather(*(engine.classify([text]) for text in TEXTS))
        together, _ = await engine.classify(TEXTS)
        assert engine.batches[len(TEXTS)] > 0
        assert [[label for label, _ in labels] for labels in together] == [
            [label for label, _ in labels] for (labels,), _ in found
        ]
        return [labels for (labels,), _ in found], sum(tokens for _, tokens in found)

    labels, tokens = asked(engine, work)
    for said, known in zip(labels, predictions(path, [], texts=TEXTS), strict=True):
        assert dict(said) == pytest.approx(known["probabilities"], abs=1e-5)
        assert [p for _, p in said] == sorted((p for _, p in said), reverse=True)
    assert tokens > len(TEXTS)


def test_labels_of_a_folder(classifier: Path) -> None:
    check_labels(classifier)


def test_a_peer_answers_here_too(classifier: Path, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra isoflop[adapt] is not installed")
    both, rows = tmp_path / "model", reviews(60, seed=2)
    shutil.copytree(classifier, both)
    task, base, spec, _ = load_adapted(classifier)
    save_peer(both, NGrams.learn(task, base, spec, rows), 0.5)
    check_labels(both)
    alone, joined = (predictions(path, [], texts=TEXTS)[0]["probabilities"] for path in (classifier, both))
    assert alone != pytest.approx(joined, abs=1e-3)


def test_several_labels_of_parts_beside_a_decoder(tmp_path: Path) -> None:
    rows = reviews(60, seed=2).map(lambda row: {"labels": [row["label"]] * (len(row["text"]) % 2)})
    rows = rows.remove_columns("label")
    check_labels(adapted(tmp_path / "model", "multi-label", tiny_qwen3(), rows, method="adapters"))


def test_a_long_text_is_cut_as_in_training_and_an_empty_one_refused(classifier: Path) -> None:
    async def work(engine: Classifier) -> tuple[int, int]:
        _, tokens = await engine.classify(["warm " * 1000])
        assert await engine.classify([]) == ([], 0)
        return tokens, engine.context

    tokens, context = asked(Classifier(classifier, threads=1), work)
    assert tokens == context


def test_one_bad_text_does_not_spoil_the_batch(classifier: Path) -> None:
    class Choosy(Classifier):
        """Fails where a text has the word."""

        def _compute(self, items: Any) -> Any:
            word = self._base.processor.convert_tokens_to_ids("grim")
            if any(word in f["input_ids"] for f in items):
                raise IndexError("index out of range")
            return super()._compute(items)

    async def work(engine: Classifier) -> None:
        bad, good = await asyncio.gather(
            engine.classify(["a grim day"]), engine.classify(["a warm day"]), return_exceptions=True
        )
        assert isinstance(bad, EngineError)
        assert "torch failed: index out of range" in str(bad)
        assert not isinstance(good, BaseException)
        assert len(good[0][0]) == 2

    asked(Choosy(classifier, threads=1), work)


def test_what_is_closed_says_so(classifier: Path) -> None:
    async def work() -> None:
        engine = Classifier(classifier, threads=1)
        async with started(engine):
            pass
        assert not await engine.alive()
        with pytest.raises(EngineError, match="closed"):
            await engine.classify(["warm"])

    asyncio.run(work())


def test_a_folder_that_is_not_adapted_is_told() -> None:
    async def nothing(engine: Classifier) -> None: ...

    with pytest.raises(AdaptError, match="has no isoflop_task"):
        asked(Classifier(tiny_bert(), threads=1), nothing)


# -- tags ------------------------------------------------------------------------------------------------


def places(count: int) -> Dataset:
    """Cities among plain words, and among Chinese characters."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        city, word = rng.choice(CITIES[:2] if i % 2 else CITIES[2:]), rng.choice(["walk", "day"])
        before = [str(w) for w in rng.choice(["a", "walk", "day", "."], rng.integers(0, 12))]
        words = [*before, *(["a", word, "in", city, "."] if i % 2 else [*"我在", *city, *"走路"])]
        inside = {city} if i % 2 else set(city)
        tags, within = [], False
        for token in words:
            tags.append("O" if token not in inside else "I-PLACE" if within else "B-PLACE")
            within = token in inside
        rows.append({"tokens": words, "tags": tags})
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagger")
    rows = places(200)
    base = encoder_in(folder / "base", [" ".join(tokens) for tokens in rows["tokens"]], positions=24)
    return adapted(folder / "model", "tagging", base, rows)


def test_tags_are_of_characters_with_spaces_and_without(tagger: Path) -> None:
    engine = Tagger(tagger, threads=1)
    assert isinstance(engine, Tags)
    texts = ["a  day in Bonn.", "我在上海走路", " \n", "a walk in Paris. " * 5]
    spans, tokens = asked(engine, lambda engine: engine.tag(texts))
    assert spans[0] == [Span("PLACE", 10, 14)]
    assert spans[1] == [Span("PLACE", 2, 4)]
    assert spans[2] == []
    assert [texts[3][start:end] for _, start, end in spans[3]] == ["Paris"] * 5  # in several windows
    assert tokens > 40


def test_words_of_a_text() -> None:
    text = "Dr. Müller's 3rd\tvisit: 北京2008年!"
    words = ["Dr", ".", "Müller", "'", "s", "3rd", "visit", ":", "北", "京", "2008", "年", "!"]
    assert [text[start:end] for start, end in words_of(text)] == words


@settings(deadline=None, max_examples=40)
@given(text=st.text(max_size=30))
def test_words_are_all_of_a_text_but_its_spaces(text: str) -> None:
    words = words_of(text)
    assert "".join(text[start:end] for start, end in words) == "".join(text.split())
    assert all(a[1] <= b[0] for a, b in pairwise(words))


def test_spans_of_tags() -> None:
    words = [(0, 2), (3, 5), (6, 8), (9, 11)]
    assert spans_of(["B-A", "I-A", "B-A", "O"], words) == [Span("A", 0, 5), Span("A", 6, 8)]
    assert spans_of(["I-A", "I-B", "O", "I-B"], words) == [
        Span("A", 0, 2), Span("B", 3, 5), Span("B", 9, 11),
    ]  # fmt: skip


# -- vectors ---------------------------------------------------------------------------------------------


def vectors(path: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    engine = Embedder(path, threads=1)
    assert isinstance(engine, Embeds)
    found, tokens = asked(engine, lambda engine: engine.embed(texts))
    assert tokens > len(texts)
    return np.array(found)


def test_a_vector_is_the_mean_of_hidden_states() -> None:
    from transformers import AutoModel

    base, model = load_base(tiny_bert()), AutoModel.from_pretrained(tiny_bert()).eval()
    found = vectors(tiny_bert(), TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        with torch.no_grad():
            mean = model(**base.processor(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        assert vector == pytest.approx((mean / mean.norm()).numpy(), abs=1e-5)


def test_vectors_of_an_adapted_model_are_its_own(tmp_path: Path) -> None:
    rows = Dataset.from_list(
        [{"first": f"a {word} day", "second": f"we saw {word}"} for word in ("warm", "cold", "fine", "grim")]
    )
    path = adapted(tmp_path / "model", "embedding", tiny_bert(), rows)
    known = predictions_of_pairs(path, rows)
    assert vectors(path, list(rows["first"])) == pytest.approx(known[:, 0], abs=1e-5)
    assert vectors(path, list(rows["second"])) == pytest.approx(known[:, 1], abs=1e-5)


def predictions_of_pairs(path: Path, rows: Dataset) -> np.ndarray[Any, Any]:
    from isoflop.adapting.loop import predict_all
    from isoflop.adapting.saved import load_adapted

    task, base, spec, model = load_adapted(path)
    return np.array(predict_all(task, base, spec, model, rows))


def test_a_folder_says_how_it_pools_and_how_much_it_reads(tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = encoder_in(tmp_path / "base", TEXTS)
    (folder / "1_Pooling").mkdir()
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))
    base, model = load_base(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        first = model(**base.processor("cruel", return_tensors="pt")).last_hidden_state[0, 0]
    assert vectors(folder, ["cruel"])[0] == pytest.approx((first / first.norm()).numpy(), abs=1e-5)
    with pytest.raises(RequestError, match=r"text 2 has \d+ tokens, and the model reads 12") as caught:
        vectors(folder, ["cruel", "day " * 20])
    assert caught.value.code == "context_length_exceeded"
    pooling.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ProjectError, match="pools by max"):
        vectors(folder, ["cruel"])


def test_a_text_without_tokens_has_no_vector() -> None:
    with pytest.raises(RequestError, match="text 2 has no tokens"):
        vectors(tiny_qwen3(), ["warm", ""])
