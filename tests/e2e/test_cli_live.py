"""`eval --live`: a server that serves what the ledger says, and servers that serve something else."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import reviews, tiny_bert

pytest.importorskip("fastapi", reason="the extra isoflop[serve] is not installed")

from serving import on_a_socket

from e2e.commands import refused
from isoflop.adapting.answer import ADAPTED
from isoflop.adapting.inputs import TEST, TRAIN, Sources
from isoflop.adapting.loop import fine_tune, predict_all, scores_of
from isoflop.adapting.records import AdaptConfig, Adapted
from isoflop.adapting.saved import save_adapted
from isoflop.export import load_pretrained, save_pretrained
from isoflop.pipeline import corpus_of
from isoflop.progress import Silent
from isoflop.records import Result
from isoflop.serve.app import build_app
from isoflop.serve.engines.adapted import Classifier
from isoflop.serve.engines.stepping import Stepping
from isoflop.serve.gateway import Gateway, Model
from isoflop.serve.keys import Keys
from isoflop.serve.live import KIND, Live
from isoflop.serve.masking import Masker
from isoflop.serve.protocol import Engine
from isoflop.serve.settings import Settings
from isoflop.store import HASH_DIGITS, Project, content_hash
from isoflop.tasks import load_base, task_of


def hash_of(path: Path) -> str:
    return content_hash(path)[:HASH_DIGITS]


@pytest.fixture(scope="module")
def folder(project: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished project."""
    copy = tmp_path_factory.mktemp("live") / "project"
    shutil.copytree(project[0], copy)
    return copy


@pytest.fixture(scope="module")
def model(project: tuple[Path, Result], folder: Path) -> Path:
    return folder / "artifacts" / Path(project[1].model).name


@pytest.fixture(scope="module")
def worse(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with some noise in its weights."""
    found, path = load_pretrained(model), tmp_path_factory.mktemp("worse") / "model"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in found.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(0.5 * weight.std(unbiased=False) * noise)
    save_pretrained(found, corpus_of(Project(folder)), path)
    return path


@contextmanager
def served(
    engine: Engine, hash: str, *, keys: Keys | None = None, name: str = "mine", **settings: Any
) -> Iterator[str]:
    """A server of one model, which it says has this content."""
    asyncio.run(engine.start())
    limits = Settings(open=keys is None, **settings)
    gateway = Gateway({name: Model(name, engine, hash)}, limits, keys, masker=Masker)
    try:
        with on_a_socket(build_app(gateway), limits) as url:
            yield url
    finally:
        asyncio.run(engine.close())


def test_what_is_served_is_compared_with_the_ledger(  # type: ignore[no-untyped-def]
    isoflop, folder: Path, model: Path, worse: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, keys = ("--project", folder), Keys(Project(folder))
    scored = json.loads(isoflop("eval", model, *at, "--tokens", "4k", "--json").out)
    asked = ("eval", "--windows", 40, *at, "--live")
    monkeypatch.setenv("ISOFLOP_API_KEY", keys.new("checker", rpm=30)[0])
    with served(Stepping(model, threads=1), hash_of(model), keys=keys) as url:
        answer = isoflop(*asked, url, "--json")
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
        assert found["same"]
        assert abs(found["difference"]["value"]) < 1e-4
        assert found["row_bits"]["value"] == scored["bpb"]
        assert found["bits"]["low"] < found["bits"]["value"] < found["bits"]["high"]
        assert (found["share"], found["served_hash"], found["url"]) == (1.0, hash_of(model), url)
        assert [row.id for row in Project(folder).all(KIND, Live)] == [found["id"]]
        shown = isoflop(*asked, url + "#mine", model)
        assert shown.code == 0
        assert "same: the same within the interval" in shown.out
        refused(isoflop(*asked, url + "#other"), "has these models: mine")
        assert isoflop("eval", worse, *at, "--tokens", "4k").code == 0
        other = isoflop(*asked, url, worse)
        assert other.code == 1
        assert f"the server runs the model {hash_of(model)}" in other.out
        monkeypatch.setenv("ISOFLOP_API_KEY", "isk_wrong_key")
        answer = isoflop(*asked, url)
        refused(answer, "refuses the key")
        assert "ISOFLOP_API_KEY" in answer.err
        assert "isk_wrong_key" not in answer.err


def test_a_server_that_says_what_is_not_so_is_found_out(  # type: ignore[no-untyped-def]
    isoflop, folder: Path, model: Path, worse: Path
) -> None:
    at = ("--project", folder)
    assert isoflop("eval", model, *at, "--tokens", "4k").code == 0
    asked = ("eval", *at, "--live")
    with served(Stepping(worse, threads=1), hash_of(model)) as url:
        answer = isoflop(*asked, url, "--json")
        assert answer.code == 1, answer.err
        found = json.loads(answer.out)
        assert found["difference"]["low"] > found["tolerance"]
        assert "worse than the row" in found["why"]
        assert isoflop(*asked, url, "--tolerance", "900%").code == 0


def test_a_context_that_is_too_short_or_a_little(  # type: ignore[no-untyped-def]
    isoflop, folder: Path, model: Path
) -> None:
    at = ("--project", folder)
    assert isoflop("eval", model, *at, "--tokens", "4k").code == 0
    whole = load_pretrained(model).config.context
    asked = ("eval", *at, "--json", "--live")
    with served(Stepping(model, threads=1, context=whole - 2), hash_of(model)) as url:
        found = json.loads(isoflop(*asked, url).out)
        assert found["same"]
        assert found["share"] == pytest.approx((whole - 2) / whole)
    with served(Stepping(model, threads=1, context=whole // 2), hash_of(model)) as url:
        refused(isoflop(*asked, url), f"a context of {whole // 2} tokens")


def test_what_cannot_be_compared_is_told(  # type: ignore[no-untyped-def]
    isoflop, folder: Path, model: Path, worse: Path, tmp_path: Path
) -> None:
    asked = ("eval", "--project", folder, "--live")
    refused(isoflop("eval", "--project", folder), "no model to score")
    refused(isoflop(*asked, "http://127.0.0.1:9"), "127.0.0.1:9 does not answer")
    refused(isoflop(*asked, "127.0.0.1:9"), "127.0.0.1:9")
    refused(isoflop(*asked, "http://127.0.0.1:9", model, worse), "with one artifact")
    refused(isoflop(*asked, "http://127.0.0.1:9", "--tolerance", "much"), "--tolerance")
    with served(Stepping(worse, threads=1), "0123456789abcdef") as url:
        refused(isoflop(*asked, url), "no score of the artifact 0123456789abcdef")
        answer = isoflop(*asked, url, "--data", tmp_path / "none.csv")
        refused(answer, "no adapted model of the content 0123456789abcdef")
    with served(Stepping(worse, threads=1), "") as url:
        refused(isoflop(*asked, url), "does not say which model it runs")
    assert isoflop("eval", model, "--project", folder, "--tokens", "4k").code == 0
    with served(Stepping(model, threads=1), hash_of(model), mask=("email",)) as url:
        refused(isoflop(*asked, url), "what is masked")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A project that has an adapted classifier, its file of examples, and another classifier."""
    folder = tmp_path_factory.mktemp("adapted")
    file, home = folder / "reviews.jsonl", Project(folder / "project")
    reviews(300, seed=3).to_json(file)
    task, base, sources = task_of("classification"), load_base(tiny_bert()), Sources([file])
    rows, names = sources.read(task, {}, 0, [], Silent())
    spec = task.spec(rows[TRAIN], base)
    configs = [AdaptConfig(task=task.name, lr=lr, epochs=2, evaluations=1) for lr in (3e-3, 1e-5)]
    models = [fine_tune(task, base, spec, rows[TRAIN], rows[TEST], config).model for config in configs]
    for name, config, found in zip(("model", "other"), configs, models, strict=True):
        save_adapted(folder / name, task, base, spec, config, found)
    made = home.add_artifact(
        "adapted", lambda target: shutil.copytree(folder / "model", target, dirs_exist_ok=True)
    )
    scores = scores_of(
        task, predict_all(task, base, spec, models[0], rows[TEST]), task.references(spec, rows[TEST])
    )
    home.put(ADAPTED, Adapted(
        id="a", task=task.name, base="b", base_path=str(tiny_bert()), data=sources.digests(), columns=names,
        examples={split: len(part) for split, part in rows.items()}, spec=spec, config=configs[0], trials=(),
        validation=(), test=tuple(scores), seconds={}, flops=0.0, model=made,
    ))  # fmt: skip
    return home.folder, file, folder / "other"


def test_labels_are_compared_with_the_artifact(  # type: ignore[no-untyped-def]
    isoflop, adapted: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, file, other = adapted
    (model,) = (folder / "artifacts").glob("adapted-*")
    asked = ("eval", "--project", folder, "--json", "--live")
    with served(Classifier(model, threads=1), hash_of(model)) as url:
        answer = isoflop(*asked, url, "--data", file)
        assert answer.code == 0, answer.err
        found = json.loads(answer.out)
        assert (found["same"], found["differing"]["value"], found["apart"]["difference"]) == (True, 0, 0)
        assert found["score"]["value"] == pytest.approx(found["row_score"]["value"])
        assert found["score"]["examples"] == found["row_score"]["examples"]
        (tmp_path / "else.jsonl").write_text('{"text": "warm", "label": "good"}\n')
        answer = isoflop(*asked, url, "--data", tmp_path / "else.jsonl")
        refused(answer, "not the examples that the ledger's score is of")
        refused(isoflop(*asked, url), "no corpus")
    with served(Classifier(other, threads=1), hash_of(model)) as url:
        answer = isoflop("eval", "--project", folder, "--live", url, "--data", file)
        assert answer.code == 1, answer.err
        assert "of its labels are not the artifact's" in answer.out
