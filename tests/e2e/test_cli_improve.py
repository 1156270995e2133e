"""`improve` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from e2e.commands import refused
from isoflop.budget import Budget
from isoflop.improving.answer import answered
from isoflop.improving.records import BUDGET, Candidate, Figures, Improvement, Limits, Refused, Step, Tried
from isoflop.records import Result
from isoflop.transforms import Source

Job = tuple[Path, Result]


def found(budget: Budget, limits: Limits) -> Improvement:
    """A search that ended."""
    trials = tuple(
        Tried(
            candidate=Candidate(format="gguf", kind=kind),
            engine="llama.cpp",
            path=f"artifacts/{kind}",
            steps=(Step(kind="export", id="i", path="p", words=f"gguf {kind}"),),
            change=loss - 2.0,
            figures=Figures(loss=loss, bytes=size, seconds=size / 1e9),
            quiet=kind != "q4_0",
        )
        for kind, loss, size in (("f32", 2.0, 4e6), ("q8_0", 2.001, 1e6), ("q4_0", 2.1, 6e5))
    )
    left_out = Refused(
        candidate=Candidate(shape={"d_model": 32}, format="gguf", kind="f32"), because=BUDGET, why="it costs",
        figures=Figures(loss=2.0, bytes=1.0, seconds=1.0),
    )  # fmt: skip
    record = Improvement(
        id="i", corpus_id="c", source=Source(role="model", hash="h", path="p"), limits=limits, budget=budget,
        heal_tokens=0, eval_tokens=1, seed=0, trials=trials, refused=(left_out,), seconds={"engines": 3.0},
    )  # fmt: skip
    return record.model_copy(update=answered(record))


def test_a_table_a_recommendation_and_a_record(  # type: ignore[no-untyped-def]
    isoflop, project: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna", reason="the extra isoflop[tune] is not installed")
    asked: dict[str, Any] = {}

    def search(home: object, corpus: object, model: Path, limits: Limits, budget: Budget, **more: Any) -> Any:
        asked.update(more, limits=limits, budget=budget)
        return found(budget, limits)

    monkeypatch.setattr("isoflop.improving.improve", search)
    folder, result = project
    words = (
        "improve", result.model, "--max-bytes", "1.5MB", "--max-ms-per-token", "2", "--max-loss-increase",
        "2%", "--budget", "20m", "--engine", "gguf", "--heal-tokens", "2K", "--project", folder,
    )  # fmt: skip
    plain = isoflop(*words)
    assert plain.code == 0, plain.err
    assert asked["limits"] == Limits(bytes=1.5e6, seconds=0.002, loss_increase=0.02)
    assert asked["budget"] == Budget(seconds=1200)
    assert (asked["formats"], asked["heal_tokens"]) == (["gguf"], 2000)
    said = " ".join(plain.out.split())
    for part in (
        "3 of 3 measured models are the front", "* whole; gguf q8_0", "whole; gguf f32 (input)", "+5.00%",
        "Recommended: whole; gguf q8_0, in llama.cpp", "4.0 times fewer bytes", "Steps: gguf q8_0.",
        "Not built, by estimate: 1 (the budget).", "Spent 3 s (engines 3 s)", "not quiet while 1 of them",
        "artifacts/q8_0",
    ):  # fmt: skip
        assert part in said
    made = json.loads(isoflop(*words, "--json").out)
    assert made["best"] == 1
    assert made["verdicts"] == []
    assert made["refused"][0]["why"] == "it costs"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("MODEL --max-bytes lots", "--max-bytes is 'lots', not a number of bytes"),
        ("MODEL --max-ms-per-token 1h", "--max-ms-per-token is '1h'"),
        ("MODEL --max-loss-increase -1%", "loss increase means nothing"),
        ("MODEL --budget soon", "'soon' is not a budget"),
        ("MODEL --max-bytes 100", "no model of this search has 100 bytes or fewer"),
        ("MODEL --engine tflite", "there is no format 'tflite'"),
        ("nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_searched(isoflop, project: Job, line: str, says: str) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    typed = [result.model if word == "MODEL" else word for word in line.split()]
    refused(isoflop("improve", *typed, "--project", folder), says)
