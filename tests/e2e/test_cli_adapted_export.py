"""`export` of an adapted model and `score` of what it wrote, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import reviews, tiny_bert

from e2e.commands import refused
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import save_adapted
from isoflop.store import Project
from isoflop.tasks import load_base, task_of

for package in ("onnx", "onnxruntime", "onnxscript", "peft"):
    pytest.importorskip(package, reason="the extras isoflop[adapt,onnx] are not installed")


def test_exported_in_eight_bits_and_scored(isoflop, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    task, base, rows = task_of("classification"), load_base(tiny_bert()), reviews(60, seed=2)
    spec, config = task.spec(rows, base), AdaptConfig(task="classification", lr=3e-3, evaluations=1)
    folder, data, home = tmp_path / "model", tmp_path / "rows.jsonl", tmp_path / "home"
    save_adapted(folder, task, base, spec, config, fine_tune(task, base, spec, rows, rows, config).model)
    rows.to_json(data)
    Project(home)
    words = ("export", folder, "--to", "onnx", "--type", "int8", "--project", home)
    refused(isoflop(*words), "no examples to check the export on")
    shown = isoflop(*words, "--data", data)
    assert shown.code == 0, shown.err
    assert "the same labels" in shown.out
    path = Path(shown.out.strip().splitlines()[-1])
    done = json.loads(isoflop(*words, "--data", data, "--json").out)
    assert home / done["path"] == path

    raced = isoflop("score", path, "--data", data, "--against", folder, "--speed")
    assert raced.code == 0, raced.err
    assert "Examples a second" in raced.out
    assert "x smaller" in raced.out
