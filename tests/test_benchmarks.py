"""What the benchmarks share: the score agrees with the library's own, rows are kept, intervals are right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from comparing import above, mean, ratio, score, steady, words
from keeping import NOTES, once, read, write_readme
from scipy import stats

from isoflop.evaluate import heldout
from isoflop.gpt import GPT
from isoflop.recipe import shape
from isoflop.records import Corpus


def test_the_shared_score_is_that_of_the_library(corpus: Corpus) -> None:
    torch.manual_seed(0)
    model = GPT(shape(32, corpus.vocab_size, n_layers=2, context=64))
    found = score(lambda x, y: model.token_losses(x, y).double().sum(), corpus, 64)
    known = heldout(model, corpus, eval_tokens=corpus.heldout_tokens)
    assert found["loss"] == pytest.approx(known.loss, rel=1e-6)
    assert found["bpb"] == pytest.approx(known.bpb, rel=1e-6)


def test_a_ratio_is_of_pairs_with_students_interval() -> None:
    ours, theirs = [2.0, 3.1, 4.2], [1.0, 1.5, 2.0]
    logs = np.log(np.array(ours) / theirs)
    half = stats.t.ppf(0.95, 2) * logs.std(ddof=1) / math.sqrt(3)
    found = ratio(ours, theirs)
    assert (found.value, found.low, found.high) == pytest.approx(
        tuple(np.exp(logs.mean() + half * np.array([0, -1, 1])))
    )


def test_one_pair_has_no_interval() -> None:
    found = ratio([3.0], [2.0])
    assert math.isnan(found.low)
    assert words(found) == "1.50 (one)"


def test_the_mean_over_seeds_has_students_interval() -> None:
    values = [1.26, 1.27, 1.28]
    found = mean(values)
    assert found.high == pytest.approx(1.27 + stats.t.ppf(0.95, 2) * 0.01 / math.sqrt(3))


def test_above_without_a_base_says_nothing() -> None:
    assert above([1.0, 1.1], []) == ""
    assert above([1.1, 1.2, 1.0], [0.99, 1.01, 1.0]).startswith("+10.0% [")


def test_speed_is_that_after_the_first_steps() -> None:
    slow = [(10.0 * (i + 1), 100.0 * (i + 1)) for i in range(5)]
    fast = [(50.0 + i, 500.0 + 100.0 * i) for i in range(1, 11)]
    assert steady(slow + fast) == {"start_seconds": 10.0, "tokens_per_second": 100.0, "steady_seconds": 10.0}


def test_a_row_that_is_there_is_not_measured_again(tmp_path: Path) -> None:
    first = once(tmp_path / "record", {"what": "a", "seed": 0}, lambda: {"value": 1})
    again = once(tmp_path / "record", {"what": "a", "seed": 0}, lambda: {"value": 2})
    other = once(tmp_path / "record", {"what": "a", "seed": 1}, lambda: {"value": 3})
    assert again == first
    assert read(tmp_path / "record") == json.loads(json.dumps([first, other]))
    assert {"load_before", "load_after", "cores"} <= first.keys()


def test_notes_under_the_command_outlive_a_new_readme(tmp_path: Path) -> None:
    write_readme(tmp_path, "first\n")
    with (tmp_path / "README.md").open("a") as file:
        file.write(f"\n{NOTES}x.py\n\nwhat it means\n")
    write_readme(tmp_path, "second\n")
    assert (tmp_path / "README.md").read_text() == f"second\n{NOTES}x.py\n\nwhat it means\n"
