"""`distill` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from e2e.commands import refused
from isoflop.records import Result, Run
from isoflop.transforms import Transform
from isoflop.transforms.writing import Written

Job = tuple[Path, Result]


def test_a_student_of_the_projects_model(isoflop, project: Job) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    words = ("distill", result.model, "--width", 64, "--tokens", 8192, "--project", folder)
    runs = isoflop("ls", "--json", "--project", folder).out
    before = isoflop(*words, "--dry-run")
    assert before.code == 0, before.err
    assert "which cost as much" in before.out
    assert "taught, the distillation law of busbridge-2025 expects" in before.out
    told = json.loads(isoflop(*words, "--dry-run", "--json").out)
    assert told["verdict"] in before.out
    assert isoflop("ls", "--json", "--project", folder).out == runs
    plain = isoflop(*words)
    assert plain.code == 0, plain.err
    assert "Transform" in plain.out
    assert "foretold plain, equal FLOPs" in plain.out
    assert told["verdict"] in plain.out
    assert "FLOPs (training" in plain.out
    assert "teacher model-" in plain.out
    made = Transform.model_validate(json.loads(isoflop(*words, "--json").out))
    assert f"Transform {made.id}" in plain.out
    assert {name: p.model_dump(mode="json") for name, p in made.predicted.items()} == told["losses"]
    assert (folder / made.model / "config.json").exists()
    shown = json.loads(isoflop("show", made.run_id, "--project", folder).out)
    assert Run.model_validate(shown).config.teachers == (made.sources[0].hash,)
    on = isoflop(
        "distill", result.model, "--from", folder / made.model, "--tokens", 4096, "--cache", "2MB",
        "--project", folder,
    )  # fmt: skip
    assert on.code == 0, on.err
    assert "probability left out" in on.out
    assert "change of loss, nats a token" in on.out


def test_a_teacher_writes(isoflop, project: Job, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    file = tmp_path / "text.jsonl"
    words = ("write", result.model, "--out", file, "--tokens", 50, "--batch", 2, "--project", folder)
    plain = isoflop(*words)
    assert plain.code == 0, plain.err
    assert "tokens a second" in plain.out
    made = Written.model_validate(json.loads(isoflop(*words, "--json").out))
    assert made.documents == len(file.read_text().splitlines())
    refused(isoflop(*words[:5], 60, *words[6:]), f"{file} exists already")
    refused(isoflop("write", "/no/model", *words[2:]), "/no/model has no config.json")
    refused(isoflop(*words[:3], tmp_path / "b", "--tokens", 0, "--project", folder), "--tokens is 0")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/no/such/model --width 64 --tokens 100", "/no/such/model has no config.json"),
        ("/no/such/model --tokens 100", "/no/such/model has no config.json"),
        ("MODEL --tokens 100", "needs --width or --from"),
        ("MODEL --width 64 --from MODEL --tokens 100", "needs --width or --from"),
        ("MODEL --from MODEL --layers 2 --tokens 100", "is its own"),
        ("MODEL --width 64", "--tokens above zero"),
        ("MODEL --width 64 --tokens 100 --weight 2", "teacher_weight is 2"),
        ("MODEL --width 64 --tokens 100 --temperature 0", "temperature is 0"),
        ("MODEL --width 64 --tokens 100 --divergence wasserstein", "no divergence 'wasserstein'"),
        ("MODEL --width 64 --tokens 100 --cache 10", "do not hold one window"),
        ("MODEL --width 64 --tokens 100 --cache lots", "--cache is 'lots'"),
        ("MODEL --width 64 --tokens 100 --set temperature=2", "decided elsewhere"),
        ("MODEL --width 64 --tokens 100 --task here", "--task 'here' is not PROJECT=TEACHER:SHARE"),
        ("MODEL --width 64 --tokens 100 --task /no=MODEL:0.5", "MODEL has no config.json"),
        ("MODEL --width 64 --tokens 100 --noise 2", "input_noise is 2.0"),
        ("MODEL --width 64 --tokens many", "--tokens is 'many'"),
    ],
)
def test_what_cannot_be_distilled(isoflop, project: Job, line: str, says: str) -> None:  # type: ignore[no-untyped-def]
    folder, result = project
    places = {"MODEL": result.model}
    typed = [places.get(word, word) for word in line.split()]
    refused(isoflop("distill", *typed, "--project", folder), says)
