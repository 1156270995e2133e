"""Verdicts: what is accepted and why, what an artifact was made of, and the base it is compared with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from finished import Home
from judged import as_finished, by_bytes, case, dense_records, served, verdict_records
from test_plots import ladder_fit

from isoflop import dense as base
from isoflop import flops, plots
from isoflop import served as room
from isoflop.errors import ProjectError
from isoflop.export.gated import Export, export
from isoflop.export.parity import Parity
from isoflop.gain import BYTES, PRODUCT, SECONDS
from isoflop.laws import Fit
from isoflop.lineage import Lineage
from isoflop.pipeline import corpus_of
from isoflop.records import Result
from isoflop.served import serve
from isoflop.store import Project
from isoflop.transforms import MODEL, TEACHER, Scores, Source, Transform
from isoflop.verdict import Judge, change_between, weigh
from isoflop.verdict_table import DENSE_LOADED, notes

TOKENS = 4096
COSTS = [d.cost for d in dense_records()]


# -- on paper ------------------------------------------------------------------------------------------


def test_a_chain_is_judged_step_by_step_against_what_was_accepted() -> None:
    final, pruned, healed, rounded, masked = verdict_records(ladder_fit())
    assert [v.accepted for v in (final, pruned, healed, rounded, masked)] == [True, False, True, True, False]
    assert "nothing to judge it against" in final.why
    assert "worth less than final" in pruned.why
    assert healed.made_from == pruned.path
    assert healed.against == final.path
    assert healed.over is not None
    more = healed.inference[PRODUCT].doublings.value - final.inference[PRODUCT].doublings.value
    assert healed.over.value == pytest.approx(more)
    assert "save bytes on disk at most" in masked.why
    assert "not quiet" in rounded.why
    assert "not quiet" not in healed.why


def test_dense_models_timed_under_load_are_told() -> None:
    first = case("final", 3.0, 2e6, 0.7)
    for quiet in (True, False):
        costs = [c.model_copy(update={"quiet": quiet}) if n == 0 else c for n, c in enumerate(COSTS)]
        found = weigh(ladder_fit(), first, None, costs, to="gguf", level=0.9)
        assert found.dense_quiet is quiet
        assert (DENSE_LOADED in notes([found])) is not quiet


def test_the_same_again_is_not_told_apart() -> None:
    first = case("final", 3.0, 2e6, 0.7)
    second = case("again", 3.0, 2e6, 0.7, first.made.path, spread=0.2)
    found = weigh(ladder_fit(), second, first, COSTS, to="gguf", level=0.9)
    assert not found.accepted
    assert "not told apart from final" in found.why
    assert found.training is not None
    assert found.training.flops == 1e13


def test_windows_pair_where_they_are_the_same() -> None:
    before, after = served("a", 3.0, 1e6, 1.0), served("bb", 3.1, 1e6, 1.0)
    change, paired = change_between(before, after, 0.9)
    assert paired
    assert change.value == pytest.approx(0.1)
    apart, unpaired = change_between(before, after.model_copy(update={"windows": after.windows[:9]}), 0.9)
    assert not unpaired
    assert apart.value == pytest.approx(change.value)
    assert apart.high - apart.low > 20 * (change.high - change.low)


def test_costs_that_are_not_known_leave_the_training_gain_out() -> None:
    final = case("final", 3.0, 2e6, 0.7)
    found = replace(final, costs=replace(final.costs, complete=False))
    assert weigh(ladder_fit(), found, None, COSTS, to="gguf", level=0.9).training is None


# -- pictures ------------------------------------------------------------------------------------------


def test_the_front_is_what_nothing_beats_and_the_curve_is_the_laws() -> None:
    judged = verdict_records(ladder_fit())
    for cost in (BYTES, SECONDS):
        data = plots.pareto_data(judged, dense_records(), ladder_fit(), cost)
        assert [m.name for m in data.marks if m.best] == ["gguf q8_0", "distill", "final"]
        assert [m.cost for m in data.marks] == sorted(m.cost for m in data.marks)
        assert (np.diff(data.curve_loss) < 0).all()
        assert np.interp(data.dense_cost, data.curve_cost, data.curve_loss) == pytest.approx(
            data.dense_loss, rel=1e-3
        )


def test_the_waterfall_goes_through_what_was_accepted() -> None:
    bars = plots.waterfall_data(verdict_records(ladder_fit()))
    assert [(b.name.partition(",")[0], b.accepted) for b in bars] == [
        ("final", True), ("mask", False), ("prune", False), ("distill", True), ("gguf q8_0", True),
    ]  # fmt: skip
    assert bars[0].start == 0.0
    assert {b.start for b in bars[1:4]} == {bars[0].end}
    assert bars[4].start == bars[3].end
    last = verdict_records(ladder_fit())[3]
    assert bars[4].end == pytest.approx(last.inference[PRODUCT].doublings.value, abs=1e-6)
    with pytest.raises(ProjectError, match="no verdicts"):
        plots.waterfall_data(())


# -- what an artifact was made of ------------------------------------------------------------------------

SCORES = Scores(loss=3.0, loss_se=0.1, bpb=1.0, bpb_se=0.1, params_total=10, params_matmul=9)


def step(id: str, sources: list[tuple[str, str]], flops: dict[str, float]) -> Transform:
    return Transform(
        id=id, kind=id, corpus_id="c", sources=tuple(Source(role=r, hash="h", path=p) for r, p in sources),
        options={}, flops=flops, seconds=1.0, eval_tokens=1, after=SCORES, model=f"artifacts/{id}-1",
    )  # fmt: skip


def test_costs_are_those_of_all_ancestors_each_once(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.put("transform", step("teach", [], {"training": 100.0}))
    project.put("transform", step("prune", [(MODEL, "artifacts/teach-1")], {"calibration": 1.0}))
    heal = [(TEACHER, "artifacts/teach-1"), (MODEL, "artifacts/prune-1")]
    project.put("transform", step("heal", heal, {"training": 10.0, "teacher": 5.0}))
    lineage = Lineage(project, "gguf")
    assert lineage.made("artifacts/heal-1").made_from == "artifacts/prune-1"
    found = lineage.costs("artifacts/heal-1")
    assert found.flops == {
        "heal: training": 10.0, "heal: teacher": 5.0, "prune: calibration": 1.0, "teach: training": 100.0,
    }  # fmt: skip
    assert (found.seconds, found.complete) == (3.0, True)
    project.put("transform", step("alien", [(MODEL, "../elsewhere")], {"training": 1.0}))
    assert not Lineage(project, "gguf").costs("artifacts/alien-1").complete


def test_an_export_to_a_folder_is_made_from_the_model_whose_content_it_has(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for name in ("hf-f32-abc", "model-1-abc"):
        (tmp_path / "artifacts" / name).mkdir(parents=True)
    parity = Parity(lines=1, logits=1, deviation=0.0, tolerance=0.1, greedy=1)
    for number, (format, path) in enumerate([("hf", "hf-f32-abc"), ("onnx", "onnx-f32-def")]):
        project.put("export", Export(
            id=str(number), source="abc", format=format, kind="f32", calibrated=0, path=f"artifacts/{path}",
            bytes=1, params_total=1, parity=parity,
        ))  # fmt: skip
    lineage = Lineage(project, "gguf")
    assert lineage.made("artifacts/hf-f32-abc").made_from == "artifacts/model-1-abc"
    assert lineage.made("artifacts/onnx-f32-def").made_from == "artifacts/model-1-abc"


# -- on a trained model -----------------------------------------------------------------------------------


@pytest.fixture
def home(project: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A copy of the finished project, in which speeds follow from bytes."""
    pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    by_bytes(monkeypatch)
    found = as_finished(project, tmp_path / "project")
    return found, corpus_of(found), found.folder / "artifacts" / Path(project[1].model).name


def test_an_artifact_is_scored_and_timed_once(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    project, corpus, model = home
    first = serve(project, corpus, model, eval_tokens=TOKENS)
    monkeypatch.setattr("isoflop.using.evaluate_model", None)
    more = serve(project, corpus, model, threads=2, eval_tokens=TOKENS)  # scored already
    monkeypatch.setattr(room, "measure", None)
    assert serve(project, corpus, model, eval_tokens=TOKENS) == first
    assert more.loss == first.loss == pytest.approx(np.mean(first.windows))
    assert first.kind == "f32"
    assert first.seconds.low < first.seconds.value < first.seconds.high
    with pytest.raises(ProjectError, match="there is no artifact"):
        serve(project, corpus, model / "none")


def test_verdicts_of_a_project(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    project, corpus, model = home
    rounded = export(project, corpus, model, kind="q8_0", calibrate=0)
    judge = Judge(project, corpus, eval_tokens=TOKENS)
    trained, eighth = judge.all()
    assert (trained.step, eighth.step) == ("final", "gguf q8_0")
    assert eighth.against == trained.path == f"artifacts/{model.name}"
    assert eighth.accepted
    assert eighth.bytes == rounded.bytes < trained.bytes
    assert abs(eighth.served.loss / trained.served.loss - 1) < 2e-3
    result = project.latest("result", Result)
    assert result is not None
    assert trained.flops == {"final": result.flops, "ladder": result.flops_total - result.flops}
    assert trained.training is not None
    assert trained.training.flops == pytest.approx(result.flops_total)
    assert sum(eighth.flops.values()) == sum(trained.flops.values())
    sizes = base.sizes(project, corpus, 0.0)
    assert [flops.params_matmul(s) for s in sizes] == sorted(
        d.params for d in project.all("dense", base.Dense)
    )[: len(sizes)]
    # Again nothing is exported, scored or timed, and the float export is no artifact of its own.
    for name in ("isoflop.export.gated.export", "isoflop.using.evaluate_model", "isoflop.dense._timed"):
        monkeypatch.setattr(name, None)
    assert Judge(project, corpus, eval_tokens=TOKENS).all() == [trained, eighth]


def test_larger_shapes_follow_the_recipe(home: Home) -> None:
    own = base.sizes(home[0], home[1], 0.0)
    largest = flops.params_matmul(own[-1])
    more = base.sizes(home[0], home[1], 5.0 * largest)
    assert more[: len(own)] == own
    counts = [flops.params_matmul(s) for s in more[len(own) - 1 :]]
    assert counts[-2] < 5 * largest <= counts[-1]
    assert all(b > 1.3 * a for a, b in pairwise(counts))


def test_what_is_missing_is_told(home: Home, tmp_path: Path) -> None:
    project, corpus, model = home
    with pytest.raises(ProjectError, match="no format 'mlx'"):
        Judge(project, corpus, to="mlx")
    with pytest.raises(ProjectError, match="torch has no type f32"):
        Judge(project, corpus, to="torch")
    with pytest.raises(ProjectError, match=r"there is no artifact .*none"):
        Judge(project, corpus).of(model / "none")
    bare = Project(tmp_path / "bare")
    with pytest.raises(ProjectError, match="no fitted law") as caught:
        Judge(bare, corpus)
    assert "isoflop sweep" in caught.value.hint
    law = project.latest("fit", Fit)
    assert law is not None
    bare.put("fit", law)
    with pytest.raises(ProjectError, match="no finished models"):
        Judge(bare, corpus).all()
    with pytest.raises(ProjectError, match="has no ladder"):
        base.dense_costs(bare, corpus, 1e6)
