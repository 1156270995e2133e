"""Pictures: the data behind them on a study with a known law, and that every drawing draws."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from judged import dense_records, verdict_records
from matplotlib.figure import Figure

from isoflop import plots
from isoflop.errors import FitError, ProjectError
from isoflop.gain import gain
from isoflop.laws import Fit, Observations, fit
from isoflop.laws.design import next_run
from isoflop.plots import Scene
from isoflop.records import (
    Corpus,
    CorpusConfig,
    CurvePoint,
    Interval,
    ModelConfig,
    Plan,
    Record,
    Result,
    Run,
    RunConfig,
    Sample,
)
from isoflop.store import Project

SIZES, TOKENS = (100_000, 200_000, 400_000, 800_000), (300_000, 1_100_000, 4_000_000)
SPEED = 1e11  # FLOP/s of the synthetic machine
TRUE = {"E": 1.9, "A": 27.0, "B": 230.0, "alpha": 0.30, "beta": 0.38}
MODEL = ModelConfig(vocab_size=1024, d_model=96, n_layers=4, n_heads=3, n_kv_heads=1, head_dim=32, d_ff=256)


def true_loss(params: float, tokens: float) -> float:
    return float(TRUE["E"] + TRUE["A"] / params ** TRUE["alpha"] + TRUE["B"] / tokens ** TRUE["beta"])


def run_config(tokens: int) -> RunConfig:
    rates = {"lr_matrix": 0.02, "lr_embed": 0.01, "lr_head": 0.004, "lr_vector": 0.01}
    return RunConfig(
        model=MODEL, tokens=tokens, batch_tokens=4096, weight_decay=0.01, warmup_tokens=8192, **rates
    )


def make_run(name: str, params: int, tokens: int, noise: float, role: str = "ladder") -> Run:
    loss = true_loss(params, tokens) * (1 + noise)
    flops = 6.6 * params**0.995 * tokens
    seen = np.geomspace(8192, tokens, 24)
    curve = [
        CurvePoint(tokens=int(t), seconds=6.6 * params * t / SPEED, loss=loss + 3.2 * (8192 / t) ** 0.5)
        for t in seen
    ]
    return Run(
        id=name,
        corpus_id="corpus-1",
        config=run_config(tokens),
        role=role,
        trunk=f"trunk-{params}-{role}",
        loss=loss,
        loss_se=0.011,
        bpb=loss / np.log(2) / 2.9,
        bpb_se=0.0055,
        params_total=params + 98_304,
        params_nonembedding=int(params * 0.82),
        params_matmul=params,
        tokens=tokens,
        unique_tokens=min(tokens, 3_900_000),
        flops=flops,
        flops_spent=0.7 * flops,
        seconds_train=flops / SPEED,
        seconds_eval=0.8,
        seconds_compile=0.0,
        tokens_per_second=SPEED / (6.6 * params),
        peak_flops_per_second=1.7e11,
        peak_share=SPEED / 1.7e11,
        peak_memory_bytes=412_000_000,
        curve=tuple(curve),
        model="artifacts/model-0123456789abcdef" if role == "final" else None,
    )


@cache
def ladder_runs() -> tuple[Run, ...]:
    """Four sizes by three token counts, losses from a known law with 0.5% noise."""
    noise = np.random.default_rng(3).normal(0, 0.005, (len(SIZES), len(TOKENS)))
    return tuple(
        make_run(f"run-{i}{j}", params, tokens, float(noise[i, j]))
        for i, params in enumerate(SIZES)
        for j, tokens in enumerate(TOKENS)
    )


@cache
def ladder_fit() -> Fit:
    return fit(Observations.of_runs(ladder_runs()), bootstrap=200)


def corpus_record(folder: Path) -> Corpus:
    return Corpus(
        id="corpus-1",
        folder=folder,
        config=CorpusConfig(),
        documents=1_204,
        bytes=15_400_000,
        raw_bytes=17_100_000,
        train_tokens=5_200_000,
        heldout_tokens=108_000,
        train_bytes=15_090_000,
        heldout_bytes=313_200,
        heldout_documents=25,
        vocab_size=1024,
        bytes_per_token=2.9,
        dropped={"too short": 61, "near duplicate": 118, "repeated lines": 9, "exact duplicate": 0},
        bad_bytes=12,
        hashes={"train.bin": "0" * 64},
        seconds=7.4,
    )


def final_records() -> tuple[Run, Plan, Result]:
    """A final run at the best split of 600 s, with the plan that foretold it and the result."""
    law, budget = ladder_fit(), 600 * SPEED
    best = law.optimum(budget)
    params, tokens = round(best.params.value), round(best.tokens.value)
    run = make_run("run-final", params, tokens, 0.004, role="final")
    worth = gain(law, run.loss, run.flops, loss_se=run.loss_se).doublings
    spent = run.flops + sum(r.flops_spent for r in ladder_runs())
    worth_total = gain(law, run.loss, spent, loss_se=run.loss_se).doublings
    doubled = law.optimum(2 * budget).loss.plain()
    saves = Interval(value=best.loss.value - doubled.value, low=0.02, high=0.09, of="mean")
    plan = Plan(
        id="plan-1",
        fit_id=law.digest(),
        corpus_id="corpus-1",
        budget_seconds=1020.0,
        budget_flops=None,
        config=run_config(tokens),
        params=params,
        tokens=tokens,
        flops=run.flops,
        seconds=607.0,
        memory_bytes=512_000_000,
        tokens_per_second=run.tokens_per_second,
        loss=best.loss.plain(),
        params_optimum=best.params,
        tokens_optimum=best.tokens,
        doubling_loss=doubled,
        doubling_saves=saves,
        candidates=tuple(
            {"params": n, "tokens": budget / (6.6 * n), "loss": true_loss(n, budget / (6.6 * n))}
            for n in np.geomspace(params / 3, params * 3, 5).tolist()
        ),
        notes=("The text is repeated 2.1 times, which the law does not know about.",),
    )
    seconds = {"corpus": 7.4, "ladder": 395.0, "plan": 0.6, "compile": 0.0, "train": 600.2, "evaluate": 1.4}
    result = Result(
        loss=run.loss,
        loss_se=run.loss_se,
        bpb=run.bpb,
        predicted=best.loss.value,
        interval=(best.loss.low, best.loss.high),
        within_interval=best.loss.low <= run.loss <= best.loss.high,
        params=params,
        tokens=tokens,
        flops=run.flops,
        flops_total=spent,
        seconds={**seconds, "total": sum(seconds.values())},
        doublings=worth,
        doublings_total=worth_total,
        model="artifacts/model-0123456789abcdef",
        report="report.html",
        corpus_id="corpus-1",
        fit_id=law.digest(),
        plan_id="plan-1",
        run_id=run.id,
        samples=(
            Sample(
                prompt="def read(", text="self, path):\n    <script>alert('no')</script>\n    return path\n"
            ),
            Sample(prompt="class ", text='Node:\n    """A node & its parent."""\n    def __init__(self):\n'),
        ),
    )
    return run, plan, result


def make_study(
    folder: Path, kinds: tuple[str, ...] = ("corpus", "run", "fit", "final", "verdict")
) -> Project:
    """A project with the records of `kinds`; "final" adds plan, final run, gain and result."""
    project = Project(folder)
    records: list[tuple[str, Record]] = []
    if "corpus" in kinds:
        records.append(("corpus", corpus_record(folder)))
    if "run" in kinds:
        records += [("run", run) for run in ladder_runs()]
    if "fit" in kinds:
        records.append(("fit", ladder_fit()))
    if "final" in kinds:
        run, plan, result = final_records()
        costs = {"final": run.flops, "ladder": result.flops_total - run.flops}
        worth = gain(ladder_fit(), run.loss, result.flops_total, loss_se=run.loss_se, costs=costs)
        records += [("plan", plan), ("run", run), ("gain", worth), ("result", result)]
    if "verdict" in kinds:
        records += [("dense", dense) for dense in dense_records()]
        records += [("verdict", verdict) for verdict in verdict_records(ladder_fit())]
    for kind, record in records:
        project.put(kind, record)
    return project


def test_curves_put_the_final_run_last_and_colour_by_size() -> None:
    final = final_records()[0]
    data = plots.curves_data((final, *ladder_runs()), final)
    assert [curve.final for curve in data] == [False] * 12 + [True]
    assert [curve.params for curve in data[:12:3]] == list(SIZES)
    assert [curve.step for curve in data[:12:3]] == [0, 1, 3, 4]
    assert data[0].curve_tokens[-1] == data[0].tokens == TOKENS[0]
    assert data[0].heldout_loss == ladder_runs()[0].loss


def test_isoflop_slices_hold_compute_and_touch_their_best_split() -> None:
    law = ladder_fit()
    data = plots.isoflop_data(law)
    assert np.isclose(data.slices[0].flops, data.flops.min())
    assert np.isclose(data.slices[-1].flops, data.flops.max())
    assert data.level[data.flops.argmax()] == len(data.slices) - 1
    for part in data.slices:
        at = 30
        tokens = part.flops / law.flops_model.per_token(part.params[at])
        assert np.isclose(law.flops(float(part.params[at]), float(tokens)), part.flops)
        assert np.isclose(law.loss(part.params[at], tokens)[0], part.loss[at])
        assert part.best_loss is not None
        assert part.best_loss <= part.loss.min() * (1 + 1e-9)


def test_isoflop_of_a_law_without_a_best_split_has_curves_only() -> None:
    law = ladder_fit()
    flat = Fit.from_json(law.model_copy(update={"params": {**law.params, "A": 0.0}, "draws": ()}).to_json())
    assert {part.best_params for part in plots.isoflop_data(flat).slices} == {None}


def test_frontier_bands_are_nested_and_hold_the_forecast() -> None:
    law, (final, _, result) = ladder_fit(), final_records()
    forecast = Interval(value=result.predicted, low=result.interval[0], high=result.interval[1])
    data = plots.frontier_data(law, final, forecast)
    assert (np.diff(data.loss) < 0).all()
    assert (data.run[0] < data.mean[0]).all()
    assert (data.mean[0] < data.loss).all()
    assert (data.loss < data.mean[1]).all()
    assert (data.mean[1] < data.run[1]).all()
    assert data.flops[-1] == pytest.approx(4 * final.flops)
    at_final = np.interp(np.log(final.flops), np.log(data.flops), data.loss)
    assert at_final == pytest.approx(result.predicted, rel=1e-3)


def test_residuals_are_measured_over_law() -> None:
    law = ladder_fit()
    data = plots.residuals_data(law)
    law_loss = law.loss(law.observations.params, law.observations.tokens)
    np.testing.assert_allclose(
        data.percent, 100 * (np.array(law.observations.loss) / law_loss - 1), rtol=1e-6
    )


def test_predicted_leaves_out_a_final_run_nobody_foretold() -> None:
    final = final_records()[0]
    data = plots.predicted_data(ladder_fit(), final, None)
    assert data.final_measured is None
    assert len(data.predicted) == len(data.measured) == 12


@pytest.mark.parametrize(
    ("value", "words"), [(823_000, "823k"), (1_250_000, "1.25M"), (999_999, "1M"), (12, "12"), (3e9, "3G")]
)
def test_short(value: float, words: str) -> None:
    assert plots.short(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(3.1e12, "3.1×10¹²"), (1e13, "10¹³"), (9.999e12, "10¹³"), (0.02, "2×10⁻²"), (0, "0")],
)
def test_power(value: float, words: str) -> None:
    assert plots.power(value) == words


def test_every_picture_draws(tmp_path: Path) -> None:
    project = make_study(tmp_path)
    for kind in plots.PICTURES:
        assert isinstance(plots.figure(kind, project), Figure)
    assert plots.save_overview(project, tmp_path / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_contours_follow_the_law_and_the_path_its_best_splits() -> None:
    law = ladder_fit()
    data = plots.contour_data(law)
    assert data.loss[10, 20] == pytest.approx(law.loss(data.params[20], data.tokens[10])[0])
    assert 6 * data.path[0][0] * data.path[1][0] > 0
    best = law.optimum(float(law.observations.compute().max()))
    assert data.path[0][-1] == pytest.approx(best.params.value)


def test_pairs_holdouts_and_influence_are_those_of_the_fit() -> None:
    law = ladder_fit()
    pairs = plots.pairs_data(law)
    assert pairs.draws.shape == (len(law.draws), 2)
    assert pairs.value == pytest.approx([law.params[name] for name in pairs.names])
    held = plots.holdout_data(law)
    assert held.percent == pytest.approx([100 * row.error for row in law.holdout])
    assert (held.band[0] < 0).all()
    assert (held.band[1] > 0).all()
    moved = plots.influence_data(law)
    assert len(moved.labels) == law.n_clusters
    assert (np.diff(np.abs(moved.percent)) <= 0).all()


def test_the_design_map_is_what_next_says() -> None:
    law = ladder_fit()
    data = plots.design_data(law)
    found = next_run(law, data.flops)
    assert data.before == pytest.approx(100 * found.loss_half_width)
    assert data.steps[0] == pytest.approx([run.params for run in found.steps])
    best = found.runs[0]
    near = abs(np.log(data.params / best.params)).argmin(), abs(np.log(data.tokens / best.tokens)).argmin()
    assert data.percent[near[1], near[0]] == pytest.approx(100 * best.loss_half_width, rel=0.1)
    assert np.nanmax(data.percent) <= data.before * 1.001
    assert np.isnan(data.percent[-1, -1])  # too dear


def test_every_picture_of_a_law_draws_light_and_dark(tmp_path: Path) -> None:
    law = ladder_fit()
    paths, missing = plots.save_law_pictures(law, tmp_path / "light")
    assert [path.stem for path in paths] == list(plots.LAW_PICTURES)
    assert not missing
    with plots.dark():
        dark, _ = plots.save_law_pictures(law, tmp_path / "dark")
    assert plots.PALETTE["paper"] in paths[0].read_text()
    assert plots.PALETTE["paper"] not in dark[0].read_text()
    bare = law.model_copy(update={"draws": (), "holdout": ()})
    _, missing = plots.save_law_pictures(bare, tmp_path / "bare", kind="png")
    assert [sentence.partition(":")[0] for sentence in missing] == ["pairs", "holdout"]
    with pytest.raises(FitError, match="no picture 'pie'"):
        plots.law_figure("pie", law)
    published = Fit.of_published("besiroglu-2024")
    with pytest.raises(FitError, match="need runs"):
        plots.law_figure("contour", published)


def test_runs_of_another_corpus_are_left_out(tmp_path: Path) -> None:
    project = make_study(tmp_path, ("corpus", "run"))
    project.put("run", ladder_runs()[0].model_copy(update={"id": "other", "corpus_id": "corpus-0"}))
    for role in ("tune", "continued", "distilled"):
        project.put("run", ladder_runs()[0].model_copy(update={"id": role, "role": role}))
    assert len(Scene.of(project).runs) == 12


def test_what_cannot_be_drawn_says_what_to_do(tmp_path: Path) -> None:
    project = make_study(tmp_path, ("corpus",))
    with pytest.raises(ProjectError, match="no runs") as runs:
        plots.figure("curves", project)
    assert "isoflop sweep" in runs.value.hint
    with pytest.raises(ProjectError, match="no fitted law"):
        plots.figure("frontier", project)
    with pytest.raises(ProjectError, match="no picture 'pie'"):
        plots.figure("pie", project)
