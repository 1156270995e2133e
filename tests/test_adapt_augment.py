"""Texts as they might also have been: how much of them changes, and by what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import reviews, tiny_bert, tiny_qwen3

from isoflop.adapting.augment import (
    TEXTS,
    augment_for,
    delete,
    insert,
    nearest_words,
    replace,
    swap,
    words_of_file,
)
from isoflop.errors import AdaptError
from isoflop.tasks import load_base, task_of

TEXT = "one two three four five six seven eight nine ten " * 20
TASK = task_of("classification")
CHANGES = {"swap": swap, "delete": delete, "insert": insert}


@pytest.mark.parametrize("name", CHANGES)
def test_a_seed_says_all(name: str) -> None:
    made = [CHANGES[name](TEXT, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert made[0] == made[1] != TEXT
    assert made[1] != made[2]


def test_about_a_tenth_of_the_words_changes() -> None:
    rng = np.random.default_rng(0)
    words = TEXT.split()
    swapped = swap(TEXT, rng).split()
    assert Counter(swapped) == Counter(words)
    assert 10 <= sum(a != b for a, b in zip(words, swapped, strict=True)) <= 40
    assert len(delete(TEXT, rng).split()) == pytest.approx(180, abs=15)
    longer = Counter(insert(TEXT, rng).split())
    assert longer.total() == 220
    assert set(longer) == set(words)
    renamed = replace(TEXT, rng, synonyms=lambda word: ("X",)).split()
    assert renamed.count("X") == 20


@given(st.text(), st.sampled_from(sorted(CHANGES)), st.integers(0, 9))
def test_any_text_can_be_changed(text: str, name: str, seed: int) -> None:
    made = CHANGES[name](text, np.random.default_rng(seed))
    assert set(made) <= set(text) | {" "}
    assert bool(made.strip()) == bool(text.strip())


def test_a_chinese_character_is_a_word() -> None:
    text = "今天天气很好我们去公园散步"
    swapped = swap(text, np.random.default_rng(3))
    assert swapped != text
    assert sorted(swapped) == sorted(text)
    assert " " not in insert(text, np.random.default_rng(0))


def test_words_of_a_file_stand_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("big, large, great\nsmall,little\nalone\n", encoding="utf-8")
    synonyms = words_of_file(path)
    assert sorted(synonyms("big")) == ["great", "large"]
    assert list(synonyms("little")) == ["small"]
    assert list(synonyms("alone")) == list(synonyms("other")) == []
    assert replace("Little dog", np.random.default_rng(0), synonyms=synonyms) == "small dog"
    path.write_text("alone\n", encoding="utf-8")
    with pytest.raises(AdaptError, match="no line of two words"):
        words_of_file(path)
    with pytest.raises(AdaptError, match="cannot be read"):
        words_of_file(tmp_path / "missing.txt")


@pytest.mark.parametrize("folder", [tiny_bert, tiny_qwen3])
def test_near_words_are_near_in_the_table(
    folder: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    base = load_base(folder())
    model = AutoModel.from_pretrained(base.folder)
    mark = "" if folder is tiny_bert else "\u0120"
    river, bird, walk = (
        base.processor.convert_tokens_to_ids(f"{mark}{word}") for word in ("river", "bird", "walk")
    )
    table = model.get_input_embeddings().weight.data
    table[bird] = 2 * table[river]
    table[walk] = -table[river]
    monkeypatch.setattr(AutoModel, "from_pretrained", lambda folder: model)
    near = nearest_words(base)
    assert "bird" in near("river")
    assert "river" in near("bird")
    assert "walk" not in near("river")
    assert near("unheard") == ()


def test_half_of_the_examples_are_changed_and_no_column_but_the_input() -> None:
    rows = reviews(400)
    augment = augment_for(TASK, load_base(tiny_bert()), ["swap"])
    made = augment.rows(rows[:], np.random.default_rng(0))
    assert made["label"] == rows["label"]
    changed = np.mean([a != b for a, b in zip(made["text"], rows["text"], strict=True)])
    assert 0.35 < changed <= 0.55
    assert augment.features([{"input_ids": [1]}], np.random.default_rng(0)) == [{"input_ids": [1]}]


def test_a_transcript_is_never_changed() -> None:
    speech = task_of("speech")
    base = load_base(tiny_bert())
    assert augment_for(speech, base, ["noise"]).texts == ()
    assert augment_for(speech, base, ["noise"]).media == ("noise",)
    with pytest.raises(AdaptError, match="swap changes text, and speech reads none"):
        augment_for(speech, base, ["swap"])


def test_every_name_gives_a_change(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("river, stream\n", encoding="utf-8")
    base = load_base(tiny_bert())
    for name in TEXTS:
        change = TEXTS[name](base, str(path) if name == "synonyms" else "")
        assert change("we saw the river by the home " * 4, np.random.default_rng(1))
