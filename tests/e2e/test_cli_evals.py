"""Questions to models, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.commands import Answer, refused
from isoflop.records import Result

Isoflop = Callable[..., Answer]
Finished = tuple[Path, Result]


def test_one_model_answers_all_questions_and_once(project: Finished, isoflop: Isoflop) -> None:
    folder, result = project
    words = (
        "eval", result.model, "--by-document", "--completions", 4, "--new-tokens", 16, "--robust",
        "--rate", 0.5, "--tokens", 1024, "--project", folder,
    )  # fmt: skip
    answer = isoflop(*words, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["loss"] == pytest.approx(result.loss, rel=0.3)
    assert len(found["completions"]["cases"]) == 4
    assert [s["rate"] for s in found["robustness"]["shifts"]] == [0.5] * 3
    assert found["documents"]["scored"][0]["perplexity"] > 1
    shown = isoflop(*words)
    for part in ("loss", "documents", "completions", "robustness"):
        assert f"{part}: measured before, read from the ledger" in shown.err
    for told in ("most surprising first", "text of another document", "truncation", f"{found['loss']:.4f}"):
        assert told in shown.out


def test_several_models_side_by_side(project: Finished, isoflop: Isoflop) -> None:
    folder, result = project
    words = ("eval", result.model, result.model, "--tokens", "0.5k", "--ensemble", "--project", folder)
    shown = isoflop(*words)
    assert shown.code == 0, shown.err
    assert "over the best" in shown.out
    assert "ensemble" in shown.out
    found = json.loads(isoflop(*words, "--json").out)
    assert found["comparison"]["ensemble"]["loss"] == pytest.approx(found["comparison"]["members"][0]["loss"])
    assert [one["model"] for one in found["models"]] == [result.model] * 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--tokens", "0.5"), "--tokens is 0.5, not an integer of 1 or more"),
        (("--tokens", "few"), "--tokens is 'few', not a number"),
        (("--ensemble",), "an ensemble needs two models or more"),
        (("--rate", "0"), "a rate of 0 is no share"),
        (("--completions", 2, "--new-tokens", 100_000), "100000 new tokens do not fit"),
    ],
)
def test_what_cannot_be_asked_is_told(
    project: Finished, isoflop: Isoflop, words: tuple[object, ...], told: str
) -> None:
    refused(isoflop("eval", project[1].model, "--tokens", 512, "--project", project[0], *words), told)
