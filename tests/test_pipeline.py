"""The main job on a small budget, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from finished import BUDGET, LADDER_SHARE

from isoflop import run
from isoflop.budget import Budget
from isoflop.errors import CorruptError, ProjectError
from isoflop.laws import Fit
from isoflop.pipeline import (
    corpus_of,
    fit_runs,
    make_plan,
    train_model,
)
from isoflop.progress import Silent
from isoflop.records import CorpusConfig, Gain, Plan, Result, Run
from isoflop.starting import chosen_config
from isoflop.store import Project
from isoflop.using import evaluate_model, sample


def test_the_job_keeps_its_contract(project: tuple[Path, Result]) -> None:
    folder, result = project
    home = Project(folder)
    runs = home.all("run", Run)
    final = home.get("run", result.run_id, Run)
    plan = home.get("plan", result.plan_id, Plan)
    assert final is not None
    assert plan is not None
    assert result.loss == final.loss < min(r.loss for r in runs if r.role == "ladder") * 1.1
    assert (plan.loss.low, plan.loss.high) == result.interval
    assert plan.tokens == result.tokens
    assert result.flops_total > result.flops
    assert result.flops_total == pytest.approx(1e12, rel=0.1)
    assert result.doublings.low <= result.doublings.value <= result.doublings.high
    assert result.doublings_total.value < result.doublings.value
    assert {"corpus", "ladder", "plan", "train", "evaluate", "total"} <= set(result.seconds)
    assert len(home.all("gain", Gain)) == 2
    assert home.get("fit", result.fit_id, Fit) is not None
    assert Path(result.report).stat().st_size > 50_000
    assert Result.from_json(result.to_json()) == result
    json.loads(result.to_json())


def test_transformers_opens_and_continues(project: tuple[Path, Result]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = project[1].model
    model, tok = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tok("import ", return_tensors="pt").input_ids
    out = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert out.shape[1] > ids.shape[1]


def test_done_once_it_is_not_done_again(project: tuple[Path, Result], sources: tuple[str, ...]) -> None:
    folder, result = project
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file() and "ledger" not in p.name}
    config = CorpusConfig(vocab_size=512, heldout_share=0.1)
    again = run(sources, budget=BUDGET, project=folder, ladder_share=LADDER_SHARE, corpus_config=config)
    assert again == result
    changed = [p for p, t in before.items() if p.exists() and p.stat().st_mtime_ns != t]
    assert not [p for p in changed if ".lock" not in p.name]


def test_the_parts_work_on_the_same_project(project: tuple[Path, Result]) -> None:
    home = Project(project[0])
    corpus = corpus_of(home)
    fit_id, fitted = fit_runs(home, corpus)
    plan = make_plan(home, corpus, fitted, fit_id, Budget(flops=5e12), key="bigger")
    assert plan.flops == pytest.approx(5e12, rel=0.02)
    assert plan.loss.value < project[1].predicted
    assert plan.loss.low < plan.loss.value < plan.loss.high
    assert plan.doubling_loss.value < plan.loss.value
    scores = evaluate_model(Path(project[1].model), corpus, eval_tokens=4096)
    assert scores.loss == pytest.approx(project[1].loss, rel=0.1)
    texts = sample(Path(project[1].model), corpus, ["def "], tokens=5)
    assert texts == sample(Path(project[1].model), corpus, ["def "], tokens=5)


def test_a_seconds_budget_is_planned_from_measured_speed(project: tuple[Path, Result]) -> None:
    home = Project(project[0])
    corpus = corpus_of(home)
    fit_id, fitted = fit_runs(home, corpus)
    plan = make_plan(home, corpus, fitted, fit_id, Budget(seconds=20), key="seconds")
    assert plan.seconds <= 20
    assert 0.4 * plan.seconds < plan.tokens / plan.tokens_per_second <= plan.seconds  # evaluation is the rest


def test_a_chosen_shape_trains(project: tuple[Path, Result]) -> None:
    home = Project(project[0])
    corpus = corpus_of(home)
    config = chosen_config(home, corpus, width=32, layers=2, tokens=50_000, lr_scale=0.5, seed=3)
    trained = train_model(home, corpus, config)
    assert trained.config.model.n_layers == 2
    assert trained.config.lr_matrix == pytest.approx(0.02)
    assert trained.model is not None
    assert train_model(home, corpus, config, progress=Silent()) == trained
    with pytest.raises(ProjectError, match="--width and --tokens"):
        chosen_config(home, corpus, width=32, layers=None, tokens=None, lr_scale=1.0, seed=0)


def test_a_plan_is_trained_with_its_seed_or_the_one_given(project: tuple[Path, Result]) -> None:
    home = Project(project[0])
    corpus = corpus_of(home)
    fit_id, fitted = fit_runs(home, corpus)
    plan = make_plan(home, corpus, fitted, fit_id, Budget(flops=1e12), key="seeded", seed=4)
    for seed, wanted in ((None, 4), (0, 0), (7, 7)):
        config = chosen_config(home, corpus, width=None, layers=None, tokens=None, lr_scale=1.0, seed=seed)
        assert config == plan.config.model_copy(update={"seed": wanted})


def test_a_model_of_another_tokenizer_is_refused(project: tuple[Path, Result], tmp_path: Path) -> None:
    home = Project(tmp_path / "other")
    other = corpus_of(
        home, CorpusConfig(vocab_size=400, heldout_share=0.1, sources=(str(Path(json.__file__).parent),))
    )
    with pytest.raises(CorruptError, match="tokenizer"):
        evaluate_model(Path(project[1].model), other, eval_tokens=4096)


def test_damaged_token_files_are_named(project: tuple[Path, Result], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(project[0], copy)
    target = next((copy / "corpora").glob("*/train.bin"))
    data = bytearray(target.read_bytes())
    data[100] ^= 1
    target.write_bytes(data)
    with pytest.raises(CorruptError, match=r"train\.bin"):
        corpus_of(Project(copy))
