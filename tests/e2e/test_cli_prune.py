"""`prune` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.commands import refused
from isoflop.export import load_pretrained
from isoflop.records import Result

Job = tuple[Path, Result]


def test_a_smaller_model_and_what_it_cost(isoflop, project: Job) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    words = (
        "prune", result.model, "--keep-ff", 96, "--heal-tokens", 8192, "--calibrate", 2048, "--eval-tokens",
        4096, "--project", folder,
    )  # fmt: skip
    plain = isoflop(*words)
    assert plain.code == 0, plain.err
    assert [word for word in ("before", "prune", "distill") if word not in plain.out] == []
    made = json.loads(isoflop(*words, "--json").out)
    assert made["bytes_after"] < made["bytes_before"]
    assert made["flops"] == sum(sum(t["flops"].values()) for t in made["transforms"])
    assert load_pretrained(Path(made["model"])).config.d_ff == 96


def test_a_mask_says_what_it_does_not_save(isoflop, project: Job) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    answer = isoflop(
        "prune", result.model, "--two-four", "--by", "magnitude", "--eval-tokens", 4096, "--project", folder
    )
    assert answer.code == 0, answer.err
    assert "no engine is faster" in answer.out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/no/such/model --keep-layers 1", "/no/such/model has no config.json"),
        ("MODEL", "nothing to prune to"),
        ("MODEL --keep-layers 99", "--keep-layers is 99, and the model has layers"),
        ("MODEL --keep-width 40", "not a multiple of 32"),
        ("MODEL --params-share 2", "is not between 0 and 1"),
        ("MODEL --params-share nan", "is not between 0 and 1"),
        ("MODEL --params-share 0.001", "no smaller shape"),
        ("MODEL --keep-layers 1 --steps 0", "0 steps"),
        ("MODEL --keep-layers 1 --heal-tokens 9999 --lr-scale 0", "learning rates times 0 train nothing"),
        ("MODEL --keep-layers 1 --by magic", "--by magic is no importance"),
        ("MODEL --keep-layers 1 --calibrate 0", "0 tokens are no text to calibrate on"),
        ("MODEL --keep-layers 1 --calibrate many", "--calibrate is 'many'"),
        ("MODEL --unstructured 1", "is not between 0 and 1"),
        ("MODEL --unstructured 0.5 --two-four", "are two masks"),
        ("MODEL --two-four --keep-layers 1", "keeps the model's shape"),
        ("MODEL --two-four --by taylor", "--by taylor is no rule"),
        ("MODEL --two-four --calibrate 0", "0 tokens are no text to calibrate on"),
    ],
)
def test_what_cannot_be_pruned(isoflop, project: Job, line: str, says: str) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    typed = [result.model if word == "MODEL" else word for word in line.split()]
    refused(isoflop("prune", *typed, "--project", folder), says)
