"""Disturbed text: how much of it, and the same again with the same seed."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.perturb import PERTURBATIONS, case, truncation, typos

TEXT = "The quick brown fox jumps over the lazy dog.\n" * 200


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_seed_says_all(name: str) -> None:
    made = [PERTURBATIONS[name](TEXT, 0.3, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert made[0] == made[1] != TEXT
    assert (made[1] == made[2]) == (name == "truncation")


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_rate_is_the_share_of_the_words(rate: float) -> None:
    before = TEXT.split()
    for change in (case, typos):
        after = change(TEXT, rate, np.random.default_rng(0)).split()
        changed = [a != b for a, b in zip(before, after, strict=True)]
        assert np.mean(changed) == pytest.approx(rate, abs=0.04)
    assert len(truncation(TEXT, rate, np.random.default_rng(0))) == pytest.approx(
        (1 - rate) * len(TEXT), abs=1
    )


@given(st.text(), st.integers(0, 99))
def test_typos_leave_all_but_words_alone(text: str, seed: int) -> None:
    made = typos(text, 1.0, np.random.default_rng(seed))
    words = r"[^\W_]+"
    assert re.sub(words, "", made) == re.sub(words, "", text)
    for before, after in zip(re.findall(words, text), re.findall(words, made), strict=True):
        assert abs(len(before) - len(after)) <= 1


def test_case_twice_is_the_text() -> None:
    once = case(TEXT, 1.0, np.random.default_rng(0))
    assert once != TEXT
    assert case(once, 1.0, np.random.default_rng(0)) == TEXT
