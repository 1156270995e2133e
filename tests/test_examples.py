"""Columns as roles, and rows parted by their content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isoflop.errors import AdaptError
from isoflop.examples import read_examples, splits_of, with_roles
from isoflop.tasks.classification import LABEL, TEXT
from isoflop.tasks.media import image_of
from isoflop.tasks.protocol import Role

ROLES = (TEXT, LABEL)
WORDS = ["good", "bad", "dull", "fine", "long", "short", "old", "new"]


def reviews(n: int = 40) -> dict[str, list[Any]]:
    return {
        "id": list(range(n)),
        "Review": [f"{WORDS[i % 8]} and {WORDS[i // 8 % 8]}, number {i}" for i in range(n)],
        "stars": [i % 3 for i in range(n)],
    }


def test_names_are_known_whatever_their_case() -> None:
    rows, columns = with_roles(Dataset.from_dict(reviews()), ROLES)
    assert columns == {"text": "Review", "label": "stars"}
    assert rows.column_names == ["text", "label"]
    assert rows[4] == {"text": "long and good, number 4", "label": "1"}


def test_a_column_is_known_by_what_it_holds_and_that_is_said() -> None:
    made = reviews()
    data = Dataset.from_dict({"a": made["id"], "b": made["Review"], "c": made["stars"]})
    notes: list[str] = []
    rows, columns = with_roles(data, ROLES, notes=notes)
    assert columns == {"text": "b", "label": "c"}
    assert notes == [
        "text is read from the column 'b', the only one of text",
        "label is read from the column 'c', the only one of few distinct values",
    ]
    assert len(rows) == 40


def test_what_is_given_goes_before_what_is_guessed() -> None:
    data = Dataset.from_dict({**reviews(), "group": ["x", "y"] * 20, "sentiment": ["+", "-"] * 20})
    rows, columns = with_roles(data, ROLES, {"label": "stars", "region": "group"}, keep=["id"])
    assert columns == {"label": "stars", "region": "group", "text": "Review"}
    assert rows[1] == {"label": "1", "region": "y", "text": "bad and good, number 1", "id": 1}


@pytest.mark.parametrize(
    ("columns", "given", "says", "hint"),
    [
        (
            {"a": ["x 1", "y 2"], "b": ["z 3", "w 4"]},
            {},
            "text could be each of .* a and b of",
            "--map text=a",
        ),
        (
            {"text": ["x", "y"]},
            {},
            "no column of few distinct values for label; it has text",
            "--map label=COLUMN",
        ),
        ({"text": ["x"], "Text": ["y"], "label": [1]}, {}, "text could be each of .* text and Text", "--map"),
        ({"text": ["x"], "label": [1]}, {"label": "lable"}, "no column 'lable'; it has text, label", "--map"),
        ({"text": ["x"], "label": [1]}, {"label": "text", "text": "text"}, "share a column", "its own"),
        ({"text": [" ", None], "label": [1, 2]}, {}, "no row of", "other examples"),
    ],
)
def test_columns_that_no_one_can_guess(
    columns: dict[str, list[Any]], given: dict[str, str], says: str, hint: str
) -> None:
    with pytest.raises(AdaptError, match=says) as caught:
        with_roles(Dataset.from_dict(columns), ROLES, given)
    assert hint in caught.value.hint


def test_an_error_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text("what,which\nx y,1\nz w,2\n")
    with pytest.raises(
        AdaptError, match=r"reviews.csv has no column of few .* for label; it has what, which"
    ):
        with_roles(read_examples([path])["train"], (LABEL,))


def test_rows_without_text_or_label_are_counted() -> None:
    data = Dataset.from_dict({"text": ["a", "", " \n", None, "e"], "label": ["x", "x", "y", "y", None]})
    notes: list[str] = []
    rows, _ = with_roles(data, ROLES, notes=notes)
    assert rows.to_list() == [{"text": "a", "label": "x"}]
    assert notes == [
        "3 of 5 rows have no text and are left out", "1 of 5 rows have no label and are left out"
    ]  # fmt: skip


def role(holds: str, optional: bool = False) -> Role:
    return Role(holds, ("it",), holds, optional)


@pytest.mark.parametrize(
    ("holds", "values", "expected"),
    [
        ("label", [" x ", "y"], ["x", "y"]),
        ("label", [True, False], ["True", "False"]),
        ("labels", ["a, b", "c"], [["a", "b"], ["c"]]),
        ("labels", ["a|b, c", ""], [["a", "b, c"], []]),
        ("labels", [["a", "b"], []], [["a", "b"], []]),
        ("labels", [3, 4], [["3"], ["4"]]),
        ("number", ["1.5", "-2e3"], [1.5, -2000.0]),
        ("number", [1, 2], [1.0, 2.0]),
        ("tokens", ["a b", "c"], [["a", "b"], ["c"]]),
        ("tags", [["O", "B-x"], ["O"]], [["O", "B-x"], ["O"]]),
        ("answers", ["so", ""], [{"text": ["so"], "answer_start": [-1]}, {"text": [], "answer_start": []}]),
        ("answers", [["a", "b"]], [{"text": ["a", "b"], "answer_start": [-1, -1]}]),
        ("answers", [{"text": ["a"], "answer_start": [3]}], [{"text": ["a"], "answer_start": [3]}]),
        ("messages", [[{"role": "user", "content": "hi"}]], [[{"role": "user", "content": "hi"}]]),
    ],
)
def test_each_kind_has_one_form(holds: str, values: list[Any], expected: list[Any]) -> None:
    rows, _ = with_roles(Dataset.from_dict({"it": values}), (role(holds),))
    assert rows[holds] == expected


def test_numbers_of_classes_become_names() -> None:
    names = ClassLabel(names=["neg", "pos"])
    tags = Sequence(ClassLabel(names=["O", "B-x"]))
    features = Features({"text": Value("string"), "label": names, "ner_tags": tags})
    data = Dataset.from_dict(
        {"text": ["a", "b", "c"], "label": [1, 0, -1], "ner_tags": [[0, 1], [0], [1]]}, features=features
    )
    rows, _ = with_roles(data, (*ROLES, Role("tags", ("ner_tags",), "tags")))
    assert rows.to_list() == [
        {"text": "a", "label": "pos", "tags": ["O", "B-x"]}, {"text": "b", "label": "neg", "tags": ["O"]}
    ]  # fmt: skip


def test_lists_are_told_apart_by_how_many_words_they_have() -> None:
    data = Dataset.from_dict({"x": [[f"w{i}", f"v{i}"] for i in range(20)], "y": [["O", "B"]] * 20})
    wanted = (Role("tokens", ("tokens",), "tokens"), Role("tags", ("tags",), "tags"))
    assert with_roles(data, wanted)[1] == {"tokens": "x", "tags": "y"}


def test_numbers_that_are_none() -> None:
    some = Dataset.from_dict({"it": ["1"] * 19 + ["nan"]})
    notes: list[str] = []
    assert len(with_roles(some, (role("number"),), notes=notes)[0]) == 19
    assert notes == ["1 of 20 rows have no number and are left out"]
    half = Dataset.from_dict({"it": ["1", "2", "a", "b", ""]})
    with pytest.raises(AdaptError, match="no column of numbers for number; it has it"):
        with_roles(half, (role("number"),))
    with pytest.raises(AdaptError, match="the column 'it' of the data does not hold numbers"):
        with_roles(half, (role("number"),), {"number": "it"})


def test_an_optional_role_may_be_missing_or_empty() -> None:
    data = Dataset.from_dict({"text": ["a", "b"]})
    assert with_roles(data, (TEXT, role("number", optional=True)))[1] == {"text": "text"}
    data = Dataset.from_dict({"text": ["a", "b"], "it": ["", "2"]})
    both, _ = with_roles(data, (TEXT, Role("more", ("it",), "text", optional=True)))
    assert both["more"] == [None, "2"]


def parted(rows: Dataset, **options: Any) -> dict[str, Dataset]:
    return splits_of({"train": rows}, **options)


@given(st.lists(st.integers(0, 30), min_size=40, max_size=120), st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_equal_rows_lie_on_one_side(values: list[int], seed: int) -> None:
    data = Dataset.from_dict({"text": [*map(str, values), *map(str, range(100, 120))]})
    found = parted(data, seed=seed)
    sides = [set(rows["text"]) for rows in found.values()]
    assert list(found) == ["train", "validation", "test"]
    assert sum(map(len, found.values())) == len(data)
    assert len(set.union(*sides)) == sum(map(len, sides))


def test_shares_are_of_distinct_rows_and_stay_where_more_come() -> None:
    data = Dataset.from_dict(reviews(1000))
    found = parted(data, seed=3)
    assert [len(rows) for rows in found.values()] == [700, 100, 200]
    other = parted(data, seed=4)
    assert set(found["test"]["id"]) != set(other["test"]["id"])
    shuffled = parted(data.shuffle(seed=0), seed=3)
    assert set(shuffled["test"]["id"]) == set(found["test"]["id"])
    more = parted(Dataset.from_dict(reviews(1200)), seed=3)
    assert len(set(found["test"]["id"]) - set(more["test"]["id"])) < 30


def test_given_splits_stay_and_leaks_are_dropped() -> None:
    train = Dataset.from_dict({"text": [str(i) for i in range(100)]})
    validation = Dataset.from_dict({"text": ["98", "99", "x", "y"]})
    test = Dataset.from_dict({"text": ["97", "98", "y", "z"]})
    notes: list[str] = []
    found = splits_of({"train": train, "validation": validation, "test": test}, notes=notes)
    assert {name: len(rows) for name, rows in found.items()} == {"train": 97, "validation": 2, "test": 4}
    assert found["test"].to_list() == test.to_list()
    assert notes == [
        "3 rows of train equal rows that are held out, and are left out",
        "2 rows of validation equal rows that are held out, and are left out",
    ]
    two = splits_of({"train": train, "test": test})
    assert {name: len(rows) for name, rows in two.items()} == {"train": 88, "validation": 10, "test": 4}


def test_an_image_is_its_file_and_not_its_path(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        pixels = rng.integers(0, 256, (4, 4), np.uint8)
        for name in (f"{i}.png", f"{i} again.png"):
            Image.fromarray(pixels).save(tmp_path / name)
    found = parted(read_examples([tmp_path])["train"], validation=0.2)
    assert [len(rows) for rows in found.values()] == [24, 8, 8]
    content = [{image_of(image, 1).tobytes() for image in rows["image"]} for rows in found.values()]
    assert [len(side) for side in content] == [12, 4, 4]
    assert len(set.union(*content)) == 20


@pytest.mark.parametrize(
    ("n", "options", "says"),
    [
        (40, {"test": 0.9, "validation": 0.1}, "leave no training rows"),
        (40, {"test": 0.0}, "shares of 0 for test, 0.1 for validation"),
        (3, {}, "3 rows are too few: none is left for validation"),
    ],
)
def test_shares_that_leave_nothing(n: int, options: dict[str, float], says: str) -> None:
    with pytest.raises(AdaptError, match=says):
        parted(Dataset.from_dict(reviews(n)), **options)


def test_no_training_rows() -> None:
    with pytest.raises(AdaptError, match="the data has test and no training rows"):
        splits_of({"test": Dataset.from_dict(reviews())})
