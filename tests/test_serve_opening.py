"""Which engine serves an artifact, and which artifact of a model is served."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from judged import served, verdict_records
from test_plots import ladder_fit
from tiny import base_of, encoder_in, reviews, tiny_bert, tiny_qwen3
from tiny_media import tiny_whisper

from isoflop.adapting.applied import predictions
from isoflop.adapting.loop import fine_tune
from isoflop.adapting.records import AdaptConfig
from isoflop.adapting.saved import save_adapted
from isoflop.engines.speed import disk_bytes
from isoflop.errors import CorruptError, IsoflopError, ProjectError
from isoflop.export import save_pretrained
from isoflop.export.adapted import export_adapted
from isoflop.export.gated import Export, export
from isoflop.families import OWN
from isoflop.pipeline import corpus_of
from isoflop.recipe import shape
from isoflop.records import Corpus, CorpusConfig
from isoflop.serve.engines.adapted import Classifier
from isoflop.serve.engines.choosing import Choice, Standing, choose
from isoflop.serve.engines.embedding import Embedder
from isoflop.serve.engines.opening import URL, opened_engine
from isoflop.serve.engines.stepping import Stepping
from isoflop.serve.engines.whisper import Whisper
from isoflop.serve.protocol import Ending, Engine, Generation, Label
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.tasks import load_base, task_of
from isoflop.tasks.protocol import BOTH
from isoflop.throughput import machine

Home = tuple[Project, Corpus, Path]
KINDS = {"gguf": "q8_0", "onnx": "f32"}


async def text_of(path: Path) -> str:
    engine: Any = await opened_engine(path, threads=1)
    try:
        pieces = [piece async for piece in engine.generate(Generation("def f(", 12, temperature=0))]
        return "".join(piece.text for piece in pieces if not isinstance(piece, Ending))
    finally:
        await engine.close()


def kind_of(path: Path | str) -> type[Engine]:
    async def work() -> type[Engine]:
        engine = await opened_engine(path, threads=1)
        assert await engine.alive()
        await engine.close()
        assert not await engine.alive()
        return type(engine)

    return asyncio.run(work())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A project with a model that nobody has trained, and exports of it."""
    for package in ("gguf", "xllamacpp", "onnx", "onnxruntime"):
        pytest.importorskip(package, reason="the extras isoflop[gguf,onnx] are not installed")
    project = Project(tmp_path_factory.mktemp("home"))
    source = str(Path(json.__file__).parent)
    corpus = corpus_of(project, CorpusConfig(sources=(source,), vocab_size=400, heldout_share=0.2))
    model = OWN.build(shape(32, corpus.vocab_size, n_layers=2, context=64), 0)
    folder = project.folder / project.add_artifact("model", lambda to: save_pretrained(model, corpus, to))
    for format, kind in KINDS.items():
        export(project, corpus, folder, to=format, kind=kind)
    return project, corpus, folder


@pytest.fixture
def copied(home: Home, tmp_path: Path) -> Home:
    """The same, to be changed."""
    shutil.copytree(home[0].folder, tmp_path / "home")
    return Project(tmp_path / "home"), home[1], tmp_path / "home" / "artifacts" / home[2].name


def exports(project: Project) -> dict[str, Path]:
    return {done.format: project.folder / done.path for done in project.all("export", Export)}


def measured(project: Project, corpus: Corpus, path: Path, *, loss: float, ms: float) -> None:
    """A row of the ledger, as `isoflop verdict` leaves it."""
    row = served(path.name, loss, disk_bytes(path), ms)
    hash = content_hash(path)[:HASH_DIGITS]
    changed = {"hash": hash, "machine": machine(), "corpus_id": corpus.id}
    project.put("served", row.model_copy(update=changed))


def known(home: Home, *, gguf: float = 1.0, onnx: float = 1.0, ms: float = 2.0) -> None:
    """Of all artifacts: losses of exports, and milliseconds of ONNX Runtime."""
    project, corpus, folder = home
    found = exports(project)
    measured(project, corpus, folder, loss=1.0, ms=4.0)
    measured(project, corpus, found["gguf"], loss=gguf, ms=1.0)
    measured(project, corpus, found["onnx"], loss=onnx, ms=ms)


def chosen(home: Home, choice: Choice) -> Path:
    return home[0].folder / choice.path


def test_the_fastest_here_is_chosen_and_served(home: Home) -> None:
    project, _, folder = home
    first = choose(project, folder, threads=1)
    assert {offer.path for offer in first.offers} == {
        path.relative_to(project.folder).as_posix() for path in (folder, *exports(project).values())
    }
    assert not any(offer.refused for offer in first.offers)
    assert first.offer.seconds == min(offer.seconds or 0.0 for offer in first.offers) > 0
    assert all(abs(offer.change or 0.0) < 0.01 for offer in first.offers)
    assert f"tokens a second in {first.offer.engine}" in first.why
    assert choose(project, folder, threads=1) == first  # nothing is measured twice


def test_a_folder_and_its_graph_write_the_same(home: Home) -> None:
    graph = exports(home[0])["onnx"]
    one, other = (asyncio.run(text_of(path)) for path in (home[2], graph))
    assert one == other
    assert len(one) > 3


def test_speeds_of_the_ledger_are_taken(copied: Home) -> None:
    known(copied)
    choice = choose(copied[0], copied[2], threads=1)
    assert chosen(copied, choice) == exports(copied[0])["gguf"]
    assert [offer.seconds for offer in choice.offers] == pytest.approx([0.004, 0.001, 0.002])
    assert "1,000 tokens a second in llama.cpp" in choice.why


def test_limits_are_kept(copied: Home) -> None:
    known(copied, gguf=1.05)
    choice = choose(copied[0], copied[2], threads=1)
    assert chosen(copied, choice) == exports(copied[0])["onnx"]
    assert "its loss is +5.00% of the model's, and +1.00% is allowed" in choice.offers[1].refused
    freely = choose(copied[0], copied[2], threads=1, max_loss_increase=0.1)
    assert chosen(copied, freely) == exports(copied[0])["gguf"]
    most = disk_bytes(exports(copied[0])["gguf"])
    small = choose(copied[0], copied[2], threads=1, max_bytes=most)
    assert chosen(copied, small) == exports(copied[0])["gguf"]
    assert small.why == "It is the only artifact within the limits."
    with pytest.raises(ProjectError, match=r"is not served: it has .* bytes, and 100 are allowed") as caught:
        choose(copied[0], copied[2], threads=1, max_bytes=100)
    assert "--max-bytes" in caught.value.hint


def test_what_a_verdict_is_against_is_not_served(copied: Home) -> None:
    project, _, folder = copied
    known(copied)
    against = next(v for v in verdict_records(ladder_fit()) if not v.accepted)
    name = exports(project)["gguf"].relative_to(project.folder).as_posix()
    project.put("verdict", against.model_copy(update={"id": "1", "path": name}))
    assert chosen(copied, choose(project, folder, threads=1)) == exports(project)["onnx"]
    with pytest.raises(ProjectError, match=f"the verdict on {name} is against it") as caught:
        choose(project, exports(project)["gguf"])
    assert "--force" in caught.value.hint
    forced = choose(project, exports(project)["gguf"], force=True)
    assert chosen(copied, forced) == exports(project)["gguf"]
    assert "It was forced: the verdict on" in forced.why


def test_a_verdict_on_a_model_is_on_its_exports(copied: Home) -> None:
    project, _, folder = copied
    against = next(v for v in verdict_records(ladder_fit()) if not v.accepted)
    name = folder.relative_to(project.folder).as_posix()
    project.put("verdict", against.model_copy(update={"id": "1", "path": name}))
    assert all(
        "is against it" in Standing(project).doubt(path) for path in (folder, *exports(project).values())
    )
    with pytest.raises(ProjectError, match="is not served"):
        choose(project, folder, threads=1)
    onnx = exports(project)["onnx"].relative_to(project.folder).as_posix()
    project.put("verdict", against.model_copy(update={"id": "2", "path": onnx, "accepted": True}))
    assert choose(project, folder, threads=1).path == onnx


def test_an_export_that_passed_no_gate_is_not_served(copied: Home) -> None:
    project = copied[0]
    path = exports(project)["gguf"]
    other = path.with_name("other.gguf")
    path.rename(other)
    with pytest.raises(ProjectError, match="no row of it, by which it would have passed a gate"):
        choose(project, other)


def test_a_damaged_artifact_is_not_served(copied: Home) -> None:
    known(copied)
    path = exports(copied[0])["gguf"]
    path.with_name("more.txt").write_text("more")
    with pytest.raises(CorruptError, match="is damaged"):
        choose(copied[0], copied[2], threads=1, force=True)


def test_an_adapted_model_is_served_as_its_graph_where_that_is_faster(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(package, reason="the extra isoflop[onnx] is not installed")
    project, rows, texts = Project(tmp_path / "home"), reviews(40, seed=2), ["a warm day", "it was grim"]
    task, base = task_of("classification"), load_base(tiny_bert())
    spec, config = task.spec(rows, base), AdaptConfig(task="classification", lr=3e-3, epochs=1, evaluations=1)
    model = fine_tune(task, base, spec, rows, rows, config).model
    save_adapted(tmp_path / "model", task, base, spec, config, model)
    rows.to_json(tmp_path / "rows.jsonl")
    done = export_adapted(project, tmp_path / "model", [tmp_path / "rows.jsonl"])
    choice = choose(project, tmp_path / "model", threads=1)
    assert [offer.engine for offer in choice.offers] == ["torch", "ONNX Runtime"]
    assert choice.offer.seconds == min(offer.seconds or 0.0 for offer in choice.offers) > 0
    assert "texts a second" in choice.why

    async def work() -> list[list[Label]]:
        engine = await opened_engine(project.folder / done.path, threads=1)
        assert isinstance(engine, Classifier)
        assert engine.name == "ONNX Runtime"
        labels, _ = await engine.classify(texts)
        await engine.close()
        return labels

    said = predictions(tmp_path / "model", [], texts=texts)
    for labels, row in zip(asyncio.run(work()), said, strict=True):
        assert dict(labels) == pytest.approx(row["probabilities"], abs=1e-4)


# -- engines ---------------------------------------------------------------------------------------------


def test_the_engine_is_of_the_kind_of_the_model(tmp_path: Path) -> None:
    assert kind_of(tiny_qwen3()) is Stepping
    assert kind_of(tiny_bert()) is Embedder
    assert kind_of(tiny_whisper(tmp_path / "whisper")) is Whisper


def test_what_is_not_served_says_what_is(tmp_path: Path) -> None:
    writes = base_of(tmp_path / "t5", BOTH).folder
    bare = encoder_in(tmp_path / "bare", ["a day"])
    (bare / "model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    for path, words in (
        (writes, "is a model of the kind encoder-decoder, which is not served"),
        (bare, "has no weights"),
        (tmp_path / "empty", r"has no config\.json"),
        (tmp_path / "none", "there is no artifact"),
    ):
        with pytest.raises(ProjectError, match=words):
            kind_of(path)
    (bare / "config.json").write_text("{")
    (bare / "model.safetensors").touch()
    with pytest.raises(CorruptError, match="is no JSON"):
        kind_of(bare)
    (bare / "config.json").write_text(json.dumps({"model_type": "none"}))
    with pytest.raises(IsoflopError, match="which no task knows"):
        kind_of(bare)


@pytest.mark.parametrize("name", ["http://127.0.0.1:8001", "https://gpu.example/v1"])
def test_a_url_is_one_as_a_path_too(name: str) -> None:
    assert [URL.sub(r"\1://", said) for said in (name, str(Path(name)))] == [name, name]
    assert not URL.match("models/http")
