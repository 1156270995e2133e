"""The options of a run, and the average of two, as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.commands import Answer, refused

Isoflop = Callable[..., Answer]


@pytest.fixture
def home(isoflop: Isoflop, tmp_path: Path, sources: tuple[str, ...]) -> Path:
    folder = tmp_path / "p"
    assert isoflop("corpus", sources[-1], "--vocab", 400, "--heldout", 0.1, "--project", folder).code == 0
    return folder


def test_options_and_the_average_of_two_models(isoflop: Isoflop, home: Path, tmp_path: Path) -> None:
    shape = ("train", "--width", 64, "--tokens", 8_000, "--project", home)
    runs = []
    for options in (("--patience", 3), ("--precision", "bf16", "--seed", 1)):
        answer = isoflop(*shape, *options, "--accumulate", 2, "--json")
        assert answer.code == 0, answer.err
        runs.append(json.loads(answer.out))
    names = ("accumulate", "patience", "precision")
    assert [[r["config"].get(n) for n in names] for r in runs] == [[2, 3, None], [2, None, "bf16"]]
    refused(isoflop(*shape, "--accumulate", 2, "--precision", "fp16"), "fp16 is for a GPU")
    refused(isoflop(*shape, "--accumulate", 3), "rows of a batch that a rank takes are not 3 equal parts")
    refused(isoflop("train", "--project", home, "--patience", 2), "no plan")
    models = [home / run["model"] for run in runs]
    words = ("average", *models, "--project", home, "--tokens", 2048)
    made = ("--out", tmp_path / "made")
    answer = isoflop(*words, *made, "--weights", "1,3")
    assert answer.code == 0, answer.err
    assert "75%" in answer.out
    assert (tmp_path / "made" / "tokenizer.json").exists()
    assert isoflop("eval", tmp_path / "made", "--project", home).code == 0
    refused(isoflop(*words, *made), "exists already")
    new = ("--out", tmp_path / "new")
    refused(isoflop(*words, *new, "--weights", "1,x"), "--weights is '1,x', not numbers")
    refused(isoflop("average", models[0], *new, "--project", home), "two models or more")
    answer = isoflop(*words, *new, "--greedy", "--json")
    assert json.loads(answer.out)["average"]["folder"] == str(tmp_path / "new")
