"""Adapted models as graphs: the gate, eight bits, and what reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import reviews, tiny_bert, tiny_qwen3, tiny_t5

from isoflop.adapting.answer import adapt
from isoflop.adapting.applied import predictions, scores
from isoflop.adapting.joined import save_peer
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.ngrams import NGrams
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import load_adapted, save_adapted
from isoflop.engines.adapted import Served
from isoflop.errors import AdaptError, CorruptError
from isoflop.export import adapted as exporting
from isoflop.export.adapted import AdaptedExport, export_adapted
from isoflop.store import Project
from isoflop.tasks import load_base, task_of

for package in ("onnx", "onnxruntime", "onnxscript"):
    pytest.importorskip(package, reason="the extra isoflop[onnx] is not installed")

CONFIG = AdaptConfig(task="classification", lr=3e-3, epochs=3, evaluations=1)


def rows_of(task: str) -> Dataset:
    """Some rows of each task, of 3 to 13 words."""
    texts, labels = list(reviews(60, seed=2)["text"]), list(reviews(60, seed=2)["label"])
    several = [[x, "long"] if len(text) > 40 else [x] for text, x in zip(texts, labels, strict=True)]
    targets: dict[str, dict[str, list[Any]]] = {
        "classification": {"text": texts, "label": labels},
        "multi-label": {"text": texts, "labels": several},
        "regression": {"text": texts, "number": [float(len(text)) for text in texts]},
        "tagging": {
            "tokens": [text.split() for text in texts],
            "tags": [["B-X" if len(word) > 4 else "O" for word in text.split()] for text in texts],
        },
    }  # fmt: skip
    return Dataset.from_dict(targets[task])


def adapted(folder: Path, name: str, base_folder: Path) -> tuple[Path, Path]:
    """An adapted model, and its data."""
    task, base, rows = task_of(name), load_base(base_folder), rows_of(name)
    spec = task.spec(rows, base)
    config = CONFIG.model_copy(update={"task": name})
    model = fine_tune(task, base, spec, rows, rows, config).model
    save_adapted(folder / "model", task, base, spec, config, model)
    rows.to_json(folder / "rows.jsonl")
    return folder / "model", folder / "rows.jsonl"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return adapted(tmp_path_factory.mktemp("classifier"), "classification", tiny_bert())


@pytest.fixture(scope="module")
def exported(
    classifier: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Project, AdaptedExport]:
    """The classifier's graph of floats."""
    home = Project(tmp_path_factory.mktemp("exported") / "home")
    return home, export_adapted(home, classifier[0], [classifier[1]])


def test_a_graph_has_the_peer_of_its_model(classifier: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra isoflop[adapt] is not installed")
    folder, data = classifier
    shutil.copytree(folder, tmp_path / "model")
    task, base, spec, _ = load_adapted(folder)
    save_peer(tmp_path / "model", NGrams.learn(task, base, spec, rows_of("classification")), 0.75)
    home = Project(tmp_path / "home")
    done = export_adapted(home, tmp_path / "model", [data])
    paths = (home.folder / done.path, tmp_path / "model", folder)
    served, both, alone = (predictions(path, [data])[0]["probabilities"] for path in paths)
    assert served == pytest.approx(both, abs=1e-4)
    assert served != pytest.approx(alone, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("multi-label", tiny_bert), ("regression", tiny_bert), ("tagging", tiny_bert),
        ("classification", tiny_qwen3),
    ],
)  # fmt: skip
def test_the_graph_says_what_the_model_says(name: str, base: Any, tmp_path: Path) -> None:
    folder, data = adapted(tmp_path, name, base())
    home = Project(tmp_path / "home")
    done = export_adapted(home, folder, [data])
    assert done.deviation <= 1e-4
    assert done.alike == (None if name == "regression" else 1.0)
    plain, served = predictions(folder, [data]), predictions(home.folder / done.path, [data])
    if name == "tagging":
        assert served == plain
    else:
        for ours, theirs in zip(plain, served, strict=True):
            wanted = ours.get("probabilities", {"": ours["prediction"]})
            assert theirs.get("probabilities", {"": theirs["prediction"]}) == pytest.approx(wanted, abs=1e-4)


def test_eight_bits_are_smaller_and_scored_beside_the_original(
    classifier: tuple[Path, Path], exported: tuple[Project, AdaptedExport]
) -> None:
    import onnx

    folder, data = classifier
    home, f32 = exported
    int8 = export_adapted(home, folder, [data], kind="int8")
    assert export_adapted(home, folder, [data]) == f32  # it was written before
    assert f32.deviation <= 1e-4 < int8.deviation <= int8.tolerance
    assert int8.bytes < f32.bytes
    assert int8.alike is not None
    assert home.all("adapted-export", AdaptedExport) == [f32, int8]
    graph = onnx.load(str(home.folder / int8.path / "model.onnx")).graph
    vocab = load_base(folder).config.vocab_size
    tables = [t for t in graph.initializer if t.dims and t.dims[0] == vocab]
    assert tables
    assert {t.data_type for t in tables} <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}

    found = scores(home.folder / int8.path, [data], against=folder, timed=True)
    assert found.scores[0].examples == 60
    assert [speed.engine for speed in found.speeds] == ["torch", "ONNX Runtime"]
    assert found.speeds[1].bytes == int8.bytes
    assert all(rate.low <= rate.median <= rate.high for s in found.speeds for rate in s.rates.values())


def test_a_planted_error_leaves_nothing(
    classifier: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = exporting.write_graph

    def wrong(model: Any, *args: Any, **more: Any) -> None:
        with torch.no_grad():
            weight = model.bert.encoder.layer[1].output.dense.weight
            weight += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
            write(model, *args, **more)
            weight.copy_(before)

    folder, data = classifier
    before = load_adapted(folder)[3].bert.encoder.layer[1].output.dense.weight  # type: ignore[union-attr, index]
    monkeypatch.setattr(exporting, "write_graph", wrong)
    home = Project(tmp_path / "home")
    with pytest.raises(CorruptError, match="logits of the int8 graph differ"):
        export_adapted(home, folder, [data], kind="int8")
    assert not list((home.folder / "artifacts").iterdir())
    assert not home.all("adapted-export", AdaptedExport)


def test_what_cannot_be_exported(
    classifier: tuple[Path, Path], exported: tuple[Project, AdaptedExport], tmp_path: Path
) -> None:
    folder, data = classifier
    home, done = exported
    with pytest.raises(AdaptError, match="as gguf of the type f32"):
        export_adapted(home, folder, [data], to="gguf")
    with pytest.raises(AdaptError, match="no examples to check"):
        export_adapted(home, folder, [])
    with pytest.raises(AdaptError, match="isoflop_task"):
        export_adapted(home, tiny_bert(), [data])
    task, base = task_of("translation"), load_base(tiny_t5())
    spec = task.spec(Dataset.from_dict({"source": ["a"], "target": ["day"]}), base)
    save_adapted(tmp_path / "t5", task, base, spec, AdaptConfig(task="translation"), task.build(base, spec))
    with pytest.raises(AdaptError, match="is adapted to translation, and exported are"):
        export_adapted(home, tmp_path / "t5", [data])
    with pytest.raises(AdaptError, match="is an export"):
        export_adapted(home, home.folder / done.path, [data])
    with pytest.raises(AdaptError, match="cannot be trained"):
        adapt(home, home.folder / done.path, "classification", [data], budget_seconds=9.0)
    graph = tmp_path / "damaged"
    graph.mkdir()
    (graph / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(CorruptError, match="ONNX Runtime cannot open"):
        Served(graph)


def test_batches_of_any_size(classifier: tuple[Path, Path], exported: tuple[Project, AdaptedExport]) -> None:
    home, done = exported
    served = Served(home.folder / done.path)
    model: Any = load_adapted(classifier[0])[3]
    for b, t in ((1, 2), (5, 31)):
        ids = torch.randint(5, 50, (b, t), generator=torch.Generator().manual_seed(b))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if "token_type_ids" in served.names:
            batch["token_type_ids"] = torch.zeros_like(ids)
        with torch.no_grad():
            wanted = model(**batch).logits
        assert np.allclose(served(**batch, more=ids).logits, wanted, atol=1e-4)
