"""`adapt`, `apply` and `score` as a user types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import reviews, tiny_bert

from e2e.commands import refused
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.records import Adapted
from isoflop.adapting.work import KIND, Adapting
from isoflop.store import Project

for extra in ("optuna", "peft", "sklearn.linear_model"):  # here: to import them is no part of a budget
    pytest.importorskip(extra, reason="the extra isoflop[adapt] is not installed")


pytestmark = pytest.mark.usefixtures("own_time")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of reviews whose columns have other names, one label in ten wrong."""
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = reviews(600, seed=3)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "review", "verdict"])
        for number, row in enumerate(rows):
            wrong = number % 10 == 0
            label = {"good": "bad", "bad": "good"}[row["label"]] if wrong else row["label"]
            writer.writerow([number, f"{row['text']} {number}", label])
    return path


def words(data: Path, project: Path, *more: object) -> tuple[object, ...]:
    return (
        "adapt", tiny_bert(), "--task", "classification", "--data", data, "--map", "label=verdict",
        "--project", project, *more,
    )  # fmt: skip


def test_adapted_applied_and_scored(  # type: ignore[no-untyped-def]
    isoflop, data: Path, tmp_path: Path
) -> None:
    asked = words(data, tmp_path / "home", "--budget", "10s", "--set", "lr=3e-3")
    answer = isoflop(*asked, "--json")
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    folder = Path(found.pop("folder"))
    done = Adapted.model_validate(found)
    assert done.columns == {"label": "verdict", "text": "review"}
    assert sum(done.examples.values()) == 600
    assert done.config in [trial.config for trial in done.trials]
    assert {s.metric for s in done.test} >= {"macro_f1", "accuracy"}
    assert done.test[1].value > done.baseline[1].value
    assert done.few_shot_says.startswith("4-shot")
    assert [s.metric for s in done.few_shot] == [s.metric for s in done.baseline]
    assert done.law is not None
    assert done.law.sentences
    assert done.peer is not None
    assert [c.second for c in done.peer.apart] == [s.value for s in done.test]

    again = isoflop(*asked)
    assert "nothing to do" in again.err
    assert again.out.strip().endswith(str(folder))
    assert "label is the column 'verdict'" in again.out
    assert "Scores on test examples" in again.out
    assert "few-shot" in again.out
    assert "Above a linear model of n-grams of characters" in again.out
    assert all(sentence in again.out for sentence in done.law.sentences)

    said = isoflop("apply", folder, "--text", "the day was bright", "--text", "a cruel walk")
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [sum(line["probabilities"].values()) for line in lines] == pytest.approx([1.0, 1.0])
    assert {line["prediction"] for line in lines} <= {"good", "bad"}
    assert len(isoflop("apply", folder, "--data", data).out.splitlines()) == 600

    compared = isoflop(
        "score", folder, "--data", data, "--map", "label=verdict", "--against", folder, "--json"
    )
    scores = json.loads(compared.out)
    assert scores["scores"][0]["examples"] == 600
    assert {c["difference"] for c in scores["comparisons"]} == {0.0}
    assert "90% interval" in isoflop("score", folder, "--data", data, "--map", "label=verdict").out


def test_interrupted_it_goes_on(  # type: ignore[no-untyped-def]
    isoflop, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = words(data, tmp_path / "home", "--budget", "15s", "--no-law", "--set", "batch=8", "--json")
    calls: list[Any] = []
    real = fine_tune

    def broken(*args: Any, **more: Any) -> Any:
        calls.append(args[5])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr("isoflop.adapting.work.fine_tune", broken)
    assert isoflop(*asked).code == 130
    kept = Project(tmp_path / "home").all(KIND, Adapting)[0].trials
    assert [t.config for t in kept] == calls[:1]

    answer = isoflop(*asked)
    assert answer.code == 0, answer.err
    done = json.loads(answer.out)
    assert done["trials"][0] == json.loads(kept[0].to_json())
    assert calls[0] not in calls[2:] or calls[2:].index(calls[0]) == len(calls) - 3
    assert done["law"] is None
    home = Project(tmp_path / "home")
    assert not home.all(KIND, Adapting)
    assert not list((home.folder / KIND).iterdir())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--task", "juggling"), "'juggling' is no task"),
        (("--method", "magic"), "'magic' is no method"),
        (("--map", "text=essay"), "has no column 'essay'"),
        (("--map", "text"), "--map text has no ="),
        (("--map", "label=same"), "one label only, 'x'"),
        (("--task", "translation", "--map", "source=review"), "is of the kind encoder"),
        (("--set", "speed=1"), "'speed' is no value of an adaptation"),
        (("--set", "lr=fast"), "lr is 'fast'"),
        (("--max-length", "9000"), "inputs of 9000 tokens do not fit"),
        (("--budget", "0.001s"), "one trial needs about"),
        (("--budget", "1e15flops"), "is no time"),
        (("--data", "nowhere.csv"), "nowhere.csv does not exist"),
    ],
)
def test_what_cannot_be_adapted(  # type: ignore[no-untyped-def]
    isoflop, data: Path, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    table = tmp_path / "table.csv"
    lines = data.read_text().splitlines()[:60]
    table.write_text("\n".join(f"{line},{'same' if at == 0 else 'x'}" for at, line in enumerate(lines)))
    asked = ["adapt", tiny_bert(), "--project", tmp_path / "home"]
    for name, value in (("--task", "classification"), ("--data", table), ("--map", "label=verdict")):
        if name not in more or (name == "--map" and not any(m.startswith("label") for m in more)):
            asked += (
                [name, value] if "translation" not in more or name != "--map" else ["--map", "target=verdict"]
            )
    refused(isoflop(*asked, *more), says)


def test_what_cannot_be_applied(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    refused(isoflop("apply", tiny_bert(), "--text", "a day"), "isoflop_task.json")
    refused(isoflop("apply", tiny_bert()), "nothing to predict")
    refused(isoflop("score", tmp_path, "--data", "x.csv"), "isoflop_task.json")
