"""The report: self-contained, escaped, whole with any parts missing; its planner agrees with the law's."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from test_plots import final_records, ladder_fit, make_study

from isoflop import report
from isoflop.cli import app
from isoflop.errors import ProjectError
from isoflop.gain import UNBOUNDED_FLOPS
from isoflop.laws import Fit
from isoflop.plots import PALETTE, PICTURES, Scene, figure
from isoflop.records import Interval, Ladder
from isoflop.report import render, words, write_report
from isoflop.report.svg import TEMPLATES, svg
from isoflop.trials import Trial, Tuning


class Page(HTMLParser):
    """Ids, headings, links and sources of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        self.addresses += [str(found[key]) for key in ("src", "href", "xlink:href", "data") if key in found]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(make_study(tmp_path_factory.mktemp("study")))


def test_writes_beside_the_ledger_or_where_told(tmp_path: Path) -> None:
    project = make_study(tmp_path / "study", ())
    assert write_report(project) == tmp_path / "study" / "report.html"
    assert write_report(project, tmp_path / "other.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ProjectError, match=r"there is no folder .*nowhere for x\.html"):
        write_report(project, tmp_path / "nowhere" / "x.html")


def test_page_is_self_contained(text: str) -> None:
    page = Page(text)
    assert all(address.startswith("#") for address in page.addresses)
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    assert len(text) < 1_500_000


def test_ids_are_unique_and_links_have_targets(text: str) -> None:
    page = Page(text)
    assert len(page.ids) == len(set(page.ids))
    assert {address[1:] for address in page.addresses} <= set(page.ids)


def test_headings_do_not_skip_a_level(text: str) -> None:
    levels = Page(text).headings
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_sample_text_is_escaped(text: str) -> None:
    assert "<script>alert(" not in text
    assert "&lt;script&gt;alert(&#39;no&#39;)&lt;/script&gt;" in text


def test_names_from_outside_are_escaped(tmp_path: Path) -> None:
    run = final_records()[0].model_copy(update={"id": "<b>x</b>"})
    project = make_study(tmp_path, ("corpus",))
    project.put("run", run)
    assert "<b>x</b>" not in render(project)


def test_headline_says_what_was_foretold_and_measured(text: str) -> None:
    run, _, result = final_records()
    assert f"{run.bpb:.3f} bits per byte" in text
    assert f"{result.predicted:.3f} nats" in text
    assert "<strong>inside the interval</strong>" in text


def test_headline_outside_its_interval() -> None:
    run, _, _ = final_records()
    forecast = Interval(value=2.0, low=1.9, high=2.1)
    made = report.headline(None, run, forecast)
    assert made is not None
    assert made.inside is False
    assert made.params == run.params_matmul


@pytest.mark.parametrize(
    ("kinds", "there", "missing"),
    [
        ((), "No final model yet", ("isoflop corpus", "isoflop sweep", "isoflop fit", "isoflop plan")),
        (("corpus",), "near duplicate", ("isoflop sweep", "isoflop fit", "isoflop run")),
        (("corpus", "run"), "params_nonembedding", ("isoflop fit", "isoflop plan", "isoflop run")),
        (("fit",), 'id="budget"', ("isoflop corpus", "isoflop plan", "isoflop sweep")),
    ],
)
def test_missing_parts_name_their_command(
    tmp_path: Path, kinds: tuple[str, ...], there: str, missing: tuple[str, ...]
) -> None:
    page = render(make_study(tmp_path, kinds))
    assert there in page
    for command in missing:
        assert f"<code>{command}</code>" in page


def commands() -> list[typer.models.CommandInfo]:
    return [
        c for group in app.registered_groups for c in getattr(group.typer_instance, "registered_commands", [])
    ]


def test_every_command_that_the_page_names_is_one() -> None:
    named = re.findall(r'"isoflop (\w+)"', "".join(p.read_text() for p in TEMPLATES.glob("*.j2")))
    assert len(named) > 5
    assert set(named) <= {c.name or getattr(c.callback, "__name__", "") for c in commands()}


def test_why_the_ladder_ended_and_what_a_tuning_found_are_said(tmp_path: Path) -> None:
    run, _, _ = final_records()
    project = make_study(tmp_path)
    page = render(project)
    assert "The ladder of small runs ended" not in page
    assert "Was the recipe tuned?" not in page
    project.put("ladder", Ladder(
        id="l", corpus_id=run.corpus_id, members=(), packed=2, seconds=1, flops=1, ended="none is <worth> it",
    ))  # fmt: skip
    own, found = {"lr_matrix": 0.04}, {"lr_matrix": 0.0573}
    trials = tuple(
        Trial(number=n, values=v, state="done", losses=(3.3, 3.1 - n), runs=(), flops=1e9)
        for n, v in enumerate((own, found))
    )  # fmt: skip
    tuning = Tuning(
        id="t", corpus_id=run.corpus_id, config=run.config, token_counts=(100, 200), values=("lr_matrix",),
        planned=2, seeds=(1, 2, 3), trials=trials, changes=("cooldown=0.5",),
    )  # fmt: skip
    project.put("tuning", tuning)
    page = render(project)
    assert "The ladder of small runs ended: none is &lt;worth&gt; it." in page
    assert "The search is not finished" in page
    assert "<td>0.0573</td>" in page
    project.put("tuning", tuning.model_copy(update={"sentence": "Trial 1 wins.", "best": 1, "better": True}))
    page = render(project)
    line = "isoflop sweep --set cooldown=0.5 --set lr_matrix=0.0573"
    assert f"Trial 1 wins. To use it: <code>{line}</code>" in page


def test_a_final_run_without_a_result_has_a_headline(tmp_path: Path) -> None:
    run, plan, _ = final_records()
    project = make_study(tmp_path, ("corpus", "run", "fit"))
    project.put("plan", plan)
    project.put("run", run)
    page = render(project)
    assert f"{run.bpb:.3f} bits per byte" in page
    assert "The doublings are not counted yet" in page


def test_a_masked_model_has_neither_bits_per_byte_nor_samples(tmp_path: Path) -> None:
    run, _, _ = final_records()
    project = make_study(tmp_path, ("corpus",))
    model = run.config.model.model_copy(update={"family": "bert", "objective": "masked"})
    config = run.config.model_copy(update={"model": model})
    project.put("run", run.model_copy(update={"bpb": None, "bpb_se": None, "config": config}))
    page = render(project)
    assert f"{run.loss:.3f} nats a predicted token" in page
    assert "it does not write" in page
    assert "<td>–</td>" in page


def test_a_newer_law_is_called_newer(tmp_path: Path) -> None:
    project = make_study(tmp_path)
    assert "newer than the one that predicted" not in render(project)
    project.put("fit", ladder_fit().model_copy(update={"seed": 1}))
    assert "newer than the one that predicted" in render(project)


def no_best_split() -> Fit:
    law = ladder_fit()
    return Fit.from_json(law.model_copy(update={"params": {**law.params, "A": 0.0}, "draws": ()}).to_json())


def test_a_law_without_a_best_split_has_no_slider(tmp_path: Path) -> None:
    project = make_study(tmp_path, ("run",))
    project.put("fit", no_best_split())
    page = render(project)
    assert 'id="budget"' not in page
    assert "has no best split" in page


def test_svg_takes_the_page_colours_and_font(tmp_path: Path) -> None:
    scene = Scene.of(make_study(tmp_path))
    for kind in PICTURES:
        drawing = str(svg(kind, partial(figure, kind, scene)))
        assert "var(--ink)" in drawing
        assert not any(colour in drawing for colour in PALETTE.values())
        assert "font-family" not in drawing
        assert "DejaVu" not in drawing
        assert drawing == str(svg(kind, partial(figure, kind, scene)))


def planned_by_script(law: dict[str, object], budgets: list[float]) -> list[dict[str, dict[str, float]]]:
    """What `planner.js` answers, run by node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed, so the page's script cannot be run")
    script = (TEMPLATES / "planner.js").read_text()
    script += "\nconst [law, budgets] = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
    script += "\nconsole.log(JSON.stringify(budgets.map((flops) => planner.plan(law, flops))));"
    done = subprocess.run(
        [node, "-e", script], input=json.dumps([law, budgets]), capture_output=True, text=True, check=True
    )
    return list(json.loads(done.stdout))


def check_script(law: Fit) -> None:
    made = report.planner(law)
    assert made is not None
    budgets = [float(law.observations.compute().max()) * ratio for ratio in (0.02, 0.9, 1.0, 7.0, 100.0)]
    for flops, found in zip(budgets, planned_by_script(made["law"], budgets), strict=True):
        best = law.optimum(flops)
        for name in ("params", "tokens", "loss"):
            expected = getattr(best, name)
            got = [found[name][end] for end in ("value", "low", "high")]
            assert got == pytest.approx([expected.value, expected.low, expected.high], rel=1e-9), name


def test_slider_agrees_with_the_law() -> None:
    check_script(ladder_fit())


def test_slider_agrees_without_bootstrap() -> None:
    check_script(Fit.from_json(ladder_fit().model_copy(update={"draws": ()}).to_json()))


def test_slider_agrees_when_only_draws_have_a_best_split() -> None:
    law = ladder_fit()
    check_script(Fit.from_json(law.model_copy(update={"params": {**law.params, "A": 0.0}}).to_json()))


def test_slider_starts_at_the_plan_on_a_step() -> None:
    run, plan, _ = final_records()
    for start in (plan, plan.model_copy(update={"flops": 1e9})):
        made = report.planner(ladder_fit(), run, start)
        assert made is not None
        budget = made["law"]["budget"]
        share = made["position"] / budget["steps"]
        assert budget["low"] * (budget["high"] / budget["low"]) ** share == pytest.approx(start.flops)
        assert 0 < share < 1
        assert made["law"]["flops_per_second"] == pytest.approx(run.flops / run.seconds_train)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (8.14, "8.1 s"),
        (59.9, "1 min"),
        (599.96, "10 min"),
        (192, "3 min 12 s"),
        (7500, "2 h 5 min"),
        (3e5, "3.47 days"),
    ],
)
def test_duration(seconds: float, told: str) -> None:
    assert words.duration(seconds) == told


def test_doublings_without_bound_are_not_a_number() -> None:
    assert words.doublings(-0.284) == "−0.28"
    assert words.doublings(950.0) == "without bound"
    assert words.compute(UNBOUNDED_FLOPS) == "more compute than there is"
    assert words.compute(3.1e12) == "3.1×10¹² FLOP"


def test_size() -> None:
    assert [words.size(n) for n in (12, 15_400_000, 2.5e9)] == ["12 B", "15.4 MB", "2.5 GB"]
