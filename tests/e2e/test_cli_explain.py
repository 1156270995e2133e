"""`explain` and `adapt-sequence` as a user types them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny import reviews, tiny_bert

from e2e.commands import Answer, refused
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import load_adapted, save_adapted
from isoflop.tasks import load_base, task_of

Isoflop = Callable[..., Answer]


def written(path: Path, count: int, seed: int, towns: int = 2) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label", "town"])
        for i, row in enumerate(reviews(count, seed)):
            table.writerow([row["text"], row["label"], f"t{i % towns}"])
    return path


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that has learned the reviews."""
    folder = tmp_path_factory.mktemp("adapted") / "reviews"
    task, base, rows = task_of("classification"), load_base(tiny_bert()), reviews(300, 1)
    spec = task.spec(rows, base)
    config = AdaptConfig(task=task.name, lr=3e-3, steps=60, dropout=0.0, evaluations=2)
    tuned = fine_tune(task, base, spec, rows, reviews(60, 2), config)
    save_adapted(folder, task, base, spec, config, tuned.model)
    return folder


def test_tables_a_card_and_pictures(isoflop: Isoflop, adapted: Path, tmp_path: Path) -> None:
    data = written(tmp_path / "test.csv", 120, 3)
    words = ("explain", adapted, "--data", data, "--group", "town", "--examples", 3)
    plain = isoflop(*words)
    assert plain.code == 0, plain.err
    for said in ("macro_f1", "slices", "typos", "true-positive rate of good", "taken out", "README.md"):
        assert said in plain.out
    assert {p.name for p in adapted.glob("*.png")} == {"attributions.png", "reliability.png"}
    found = json.loads(isoflop(*words, "--json", "--out", tmp_path / "card").out)
    assert found["scores"][0]["value"] > 0.9
    assert len(found["attributions"]) == 3
    assert found["fairness"]["groups"] == {"t0": 60, "t1": 60}
    card = ModelCard.load(tmp_path / "card" / "README.md")
    values = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert values["macro_f1"] == pytest.approx(found["scores"][0]["value"], abs=1e-6)
    assert load_adapted(adapted)[0].name == "classification"  # with a card beside its weights


def test_one_text(isoflop: Isoflop, adapted: Path) -> None:
    answer = isoflop("explain", adapted, "--text", "the day was cruel and a long walk", "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert found["output"] == "bad"
    assert max(found["words"], key=lambda word: word["attribution"])["text"] == "cruel"
    assert "cruel" in isoflop("explain", adapted, "--text", "the day was cruel").out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("ADAPTED", "takes examples or one text"),
        ("ADAPTED --data DATA --text x", "takes examples or one text"),
        ("ADAPTED --data DATA --group country", "no column 'country'"),
        ("ADAPTED --data DATA --map text", "--map text has no ="),
        ("ADAPTED --data DATA --group text", "have 30 examples or more"),
        ("/no/such/model --data DATA", "/no/such/model is no adapted model"),
        ("/no/such/model --text hello", "/no/such/model has no isoflop_task.json"),
    ],
)
def test_what_cannot_be_explained(
    isoflop: Isoflop, adapted: Path, tmp_path: Path, line: str, says: str
) -> None:
    names = {"ADAPTED": adapted, "DATA": tmp_path / "test.csv"}
    written(tmp_path / "test.csv", 40, 3)
    answer = isoflop("explain", *(names.get(word, word) for word in line.split()), "--out", tmp_path / "out")
    refused(answer, says)


def test_data_sets_in_order(isoflop: Isoflop, tmp_path: Path) -> None:
    data = [written(tmp_path / f"{name}.csv", 80, seed) for name, seed in (("first", 5), ("second", 6))]
    words = ("adapt-sequence", tiny_bert(), "--task", "classification", "--epochs", 1, "--lr", "3e-3")
    both = (*words, "--data", data[0], "--data", data[1])
    answer = isoflop(*both, "--replay", 0.25, "--out", tmp_path / "both")
    assert answer.code == 0, answer.err
    for said in ("after first", "after second", "backward transfer", "forward transfer"):
        assert said in answer.out
    assert (tmp_path / "both" / "sequence.png").exists()
    assert load_adapted(tmp_path / "both" / "model")[2].labels == ("bad", "good")
    refused(isoflop(*both, "--out", tmp_path / "both"), "exists already")
    apart = isoflop(*both, "--per-task", "--json", "--out", tmp_path / "apart")
    assert apart.code == 0, apart.err
    found = json.loads(apart.out)
    assert found["backward"]["value"] == found["forward"]["value"] == 0
    assert {p.name for p in (tmp_path / "apart").iterdir()} == {"first", "second", "sequence.png"}
    refused(isoflop(*both, "--per-task", "--ewc", 1, "--out", tmp_path / "no"), "forgets nothing")
    refused(isoflop(*both, "--replay", 1.5, "--out", tmp_path / "no"), "is no share of a batch")
    refused(isoflop(*words, "--data", data[0], "--out", tmp_path / "no"), "two data sets or more")
