"""A base that answers the task before it is trained, and stays as it is unless a training is better."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import reviews, tiny_bert

from isoflop.adapting.answer import adapt
from isoflop.adapting.methods import AS_IS, METHODS
from isoflop.adapting.records import AdaptConfig, Adapted
from isoflop.adapting.saved import load_adapted
from isoflop.adapting.work import Work
from isoflop.errors import AdaptError
from isoflop.store import Project
from isoflop.tasks import load_base, task_of

pytest.importorskip("optuna", reason="the extra isoflop[adapt] is not installed")

ASKED: dict[str, Any] = {"budget_seconds": 20.0, "set": {"lr": 1e-4, "batch": 8, "steps": 8}}


@pytest.fixture
def home(tmp_path: Path, own_time: None) -> Project:
    return Project(tmp_path / "home")


def twins(folder: Path) -> Path:
    """Texts beside themselves, which any encoder finds: nothing is better."""
    path = folder / "twins.jsonl"
    texts = sorted(set(reviews(400, seed=5)["text"]))
    path.write_text("".join(json.dumps({"query": text, "document": text}) + "\n" for text in texts))
    return path


def test_a_base_that_no_training_makes_better_is_kept(home: Project, tmp_path: Path) -> None:
    done = adapt(home, tiny_bert(), "embedding", [twins(tmp_path)], **ASKED)
    assert done.test[0].value == pytest.approx(1.0)
    assert (done.config.method, done.law) == (AS_IS.name, None)
    assert "no training was better than the base as it is, which is kept" in done.notes
    assert done.trials  # what was tried is told
    # A rank among fewer texts would be a better one.
    assert [score.examples for score in done.baseline] == [score.examples for score in done.test]
    _, _, spec, model = load_adapted(home.folder / done.model)
    plain = task_of("embedding").build(load_base(tiny_bert()), spec)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert home.get("adapted", done.id, Adapted) == done


def test_a_method_that_is_named_is_what_one_gets(home: Project, tmp_path: Path) -> None:
    done = adapt(home, tiny_bert(), "embedding", [twins(tmp_path)], method="full", law=False, **ASKED)
    assert done.config.method == "full"


def test_a_training_that_is_better_is_kept(home: Project, tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    reviews(300, seed=6).remove_columns("label").to_json(path)
    asked = {**ASKED, "set": {"lr": 3e-3, "batch": 8, "steps": 60}}
    done = adapt(home, tiny_bert(), "masked", [path], law=False, **asked)
    assert done.config.method != AS_IS.name
    assert done.test[0].value < done.baseline[0].value  # perplexity, as it is


def test_what_has_no_time_for_a_search_has_it_for_one_training(
    home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reviews.jsonl"
    reviews(200, seed=8).to_json(path)
    monkeypatch.setattr("isoflop.adapting.answer.SHARE", 1e-9)  # of the budget, for the search
    done = adapt(home, tiny_bert(), "classification", [path], law=False, **ASKED)
    assert len(done.trials) == 1
    assert done.trials[0].curve
    assert "the time is too short to compare: the likeliest configuration has all of it" in done.notes


def test_time_that_would_not_do_for_a_law_is_trained(
    home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reviews.jsonl"
    reviews(400, seed=9).to_json(path)
    lefts: list[float] = []
    train = Work.train

    def watched(work: Work, config: AdaptConfig, seconds: float) -> None:
        lefts.append(seconds)
        train(work, config, seconds)

    monkeypatch.setattr(Work, "train", watched)
    monkeypatch.setattr("isoflop.adapting.answer.law_of_task", lambda *_: None)
    for share in (0.2, 0.9):  # of the budget, for the law
        monkeypatch.setattr("isoflop.adapting.answer.LAW", share)
        monkeypatch.setattr("isoflop.adapting.answer.law_is_paid", lambda *_: share > 0.5)  # noqa: B023
        adapt(home, tiny_bert(), "classification", [path], seed=int(10 * share), **ASKED)
    assert lefts[0] > ASKED["budget_seconds"] / 4
    assert all(left < lefts[0] / 4 for left in lefts[1:])


def test_a_base_under_a_new_head_has_to_learn(home: Project, tmp_path: Path) -> None:
    path = tmp_path / "reviews.jsonl"
    reviews(200, seed=7).to_json(path)
    done = adapt(home, tiny_bert(), "classification", [path], law=False, **ASKED)
    assert done.config.method in METHODS
    with pytest.raises(AdaptError, match="the method as-is does not fit"):
        adapt(home, tiny_bert(), "classification", [path], method=AS_IS.name, law=False, **ASKED)


def test_trials_that_turn_out_too_short_leave_the_time_to_one_training(
    home: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "reviews.jsonl"
    reviews(200, seed=8).to_json(path)
    monkeypatch.setattr("isoflop.adapting.answer.trial_seconds", lambda *_: 1e-6)
    done = adapt(home, tiny_bert(), "classification", [path], law=False, **ASKED)
    assert len(done.trials) == 1
    assert math.isfinite(done.trials[0].score)
