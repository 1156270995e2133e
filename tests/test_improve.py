"""The search for a smaller and faster model: what it finds and leaves out, how it goes on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from loky.process_executor import TerminatedWorkerError
from pretended import (
    BASE,
    CUTS,
    FORMS,
    LOSS,
    Pretended,
    everything,
    loss_of,
    searched,
    state_of,
    worth,
)

from isoflop.budget import Budget
from isoflop.errors import CorpusError, ProjectError, TrainError
from isoflop.improving import engines as first_part
from isoflop.improving import improve, space
from isoflop.improving.answer import answered, check_reachable, raise_unmet
from isoflop.improving.engines import Engines, check_bytes, least_bits
from isoflop.improving.estimates import Known
from isoflop.improving.front import better, excess, front, hypervolume, makes_needless, recommended
from isoflop.improving.probing import thread_counts
from isoflop.improving.records import BUDGET, Candidate, Figures, Improvement, Limits, Tried
from isoflop.improving.search import MOST_DEATHS
from isoflop.improving.space import whole
from isoflop.improving.state import KIND, State
from isoflop.interrupt import Interrupted
from isoflop.pipeline import corpus_of
from isoflop.records import Corpus, Result
from isoflop.store import Project
from isoflop.transforms import Transform

pytest.importorskip("optuna", reason="the extra isoflop[tune] is not installed")

LIMITS = Limits(loss_increase=0.02)


@pytest.fixture
def builder(tmp_path: Path) -> Pretended:
    return Pretended(Project(tmp_path / "project"))


def finished(state: State) -> Improvement:
    return state.record.model_copy(update=answered(state.record))


def exhaustive(builder: Pretended) -> list[Figures]:
    """Every candidate as it would be measured."""
    return [
        Figures(loss=loss_of(c, c.kind), bytes=builder.bytes(c), seconds=builder.seconds(c))
        for c in everything(FORMS)
    ]


def test_it_finds_the_front_of_everything_at_a_part_of_the_cost(builder: Pretended) -> None:
    done = finished(searched(state_of(builder, LIMITS)))
    all_ = exhaustive(builder)
    start = done.trials[0].figures
    assert start is not None
    assert done.hypervolume >= 0.98 * hypervolume(all_, start, LIMITS) > 0
    assert len([what for what, _ in builder.done if what == "serve"]) <= len(all_) / 3
    within = [f for f in all_ if not excess(f, LIMITS, start.loss)]
    assert worth(done) <= 1.02 * min(f.bytes * f.seconds for f in within)
    made = builder.project.all("transform", Transform)
    assert done.flops["heal"] == pytest.approx(sum(t.flops_total for t in made))
    assert Improvement.from_json(done.to_json()) == done


def test_the_input_is_in_its_fastest_engine_and_never_beaten_by_what_breaks_a_limit(
    builder: Pretended,
) -> None:
    done = finished(searched(state_of(builder, LIMITS)))
    assert done.trials[0].candidate == whole(("gguf", "f32"))
    assert done.trials[0].change == 0.0
    assert done.best is not None
    best = done.trials[done.best].figures
    assert best is not None
    assert not excess(best, LIMITS, LOSS)
    # A limit that only exact weights meet: the answer is the input, or as good as it.
    strict = Pretended(Project(builder.project.folder.parent / "strict"))
    done = finished(searched(state_of(strict, Limits(loss_increase=1e-6))))
    assert done.best == 0
    assert "keep" in done.sentence


def test_what_cannot_be_worth_it_is_not_built(builder: Pretended) -> None:
    done = finished(searched(state_of(builder, LIMITS)))
    refused = {r.candidate.name: r for r in done.refused}
    assert "hardly better in anything than" in refused["whole; onnx f32"].why
    assert not any(name.endswith("onnx f32") for what, name in builder.done if what in ("heal", "serve"))
    measured = [t.figures for t in done.trials if t.figures is not None]
    start = measured[0]
    for name, r in refused.items():
        candidate = r.candidate
        true = Figures(
            loss=loss_of(candidate, candidate.kind), bytes=builder.bytes(candidate),
            seconds=builder.seconds(candidate),
        )  # fmt: skip
        assert r.figures.loss <= true.loss * 1.01, name  # at best
        assert r.figures.bytes <= true.bytes, name
        assert r.figures.seconds <= true.seconds, name
        assert "limit" not in r.why or excess(r.figures, LIMITS, start.loss)


def test_a_failure_in_a_trial_is_kept_and_the_search_goes_on(builder: Pretended) -> None:
    hurt: dict[str, Exception] = {"96": MemoryError(), "64": TerminatedWorkerError("killed")}

    def disturb(what: str, candidate: Candidate) -> None:
        width = str(candidate.shape.get("d_model", ""))
        if what == "heal" and width in hurt:
            raise hurt[width]

    builder.disturbed = disturb
    done = finished(searched(state_of(builder, LIMITS)))
    failed = {t.candidate.shape["d_model"]: t.error for t in done.trials if t.error}
    assert failed[96] == "there is too little memory"
    assert "killed" in failed.get(64, "killed")
    assert [t.part for t in done.trials if t.error] == ["heal"] * len(failed)  # once for each shape
    assert done.best is not None
    assert done.best > 0


def test_a_mistake_of_ours_is_no_failed_trial(builder: Pretended) -> None:
    def disturb(what: str, candidate: Candidate) -> None:
        if what == "serve" and candidate.kind != "f32":
            raise RuntimeError("a mistake of ours")

    builder.disturbed = disturb
    state = state_of(builder, LIMITS)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        searched(state)


@pytest.mark.parametrize("after", [3, 9, 14])
def test_interrupted_it_goes_on_where_it_was(builder: Pretended, tmp_path: Path, after: int) -> None:
    whole_ = Pretended(Project(tmp_path / "undisturbed"))
    expected = finished(searched(state_of(whole_, LIMITS)))
    with pytest.raises(Interrupted):
        searched(state_of(builder, LIMITS, pressed=lambda: len(builder.done) >= after))
    kept = builder.project.get(KIND, "search", Improvement)
    assert kept is None or not kept.sentence
    done = finished(searched(state_of(builder, LIMITS)))
    assert {t.candidate.name for t in done.trials} == {t.candidate.name for t in expected.trials}
    assert done.hypervolume == expected.hypervolume
    heals = [name for what, name in builder.done if what == "heal"]
    assert len({name.split(";")[0] for name in heals}) == len(heals)  # none twice


class Killed(BaseException):
    """The process is gone."""


def test_what_kills_the_process_twice_is_not_tried_again(builder: Pretended) -> None:
    def kill(what: str, candidate: Candidate) -> None:
        if what == "serve" and candidate.kind == "q5_0" and not candidate.shape:
            raise Killed

    builder.disturbed = kill
    for _ in range(MOST_DEATHS):
        with pytest.raises(Killed):
            searched(state_of(builder, LIMITS))
    done = finished(searched(state_of(builder, LIMITS)))
    failed = [t for t in done.trials if t.error]
    assert [t.candidate.name for t in failed] == ["whole; gguf q5_0"]
    assert "died 2 times" in failed[0].error


def test_what_does_not_fit_into_the_budget_is_not_begun(builder: Pretended) -> None:
    probes = searched(state_of(builder, LIMITS)).record.flops["engines"]
    small = Pretended(Project(builder.project.folder / "small"))
    assert [what for what, _ in builder.done if what == "heal"]
    amount = 0.9 * probes  # of which the engines have a third, and no healing fits into the rest
    done = finished(searched(state_of(small, LIMITS, Budget(flops=amount))))
    assert done.flops_total <= amount
    assert not [what for what, _ in small.done if what == "heal"]
    assert any("are left" in r.why for r in done.refused if r.because == BUDGET)
    assert done.best is not None


def test_limits_that_nothing_meets_tell_the_nearest_before_anything_is_healed(builder: Pretended) -> None:
    limits = Limits(bytes=60_000.0, loss_increase=0.02)
    state = state_of(builder, limits)
    forms = Engines(state, FORMS, ()).run()
    candidates = [*map(whole, forms), *state.known.add_cuts(CUTS, forms)]
    with pytest.raises(
        TrainError, match=r"the nearest, .*width 32; gguf q4_0, has at best [\d,]+ bytes of 60,000"
    ):
        check_reachable(state, candidates)
    assert not [what for what, _ in builder.done if what == "heal"]
    with pytest.raises(TrainError, match=r"1,000 bytes or fewer: .* alone have [\d,]+"):
        check_bytes(Limits(bytes=1000.0), FORMS, BASE)
    check_bytes(Limits(bytes=1000.0), [("new", "best")], BASE)  # of which nothing is known


def test_what_the_budget_left_unmeasured_is_not_said_to_be_above_the_limits(builder: Pretended) -> None:
    state = state_of(builder, Limits(bytes=200_000.0, loss_increase=0.02), Budget(flops=1.0))
    forms = Engines(state, FORMS, ()).run()
    assert [kind for _, kind in forms] == ["f32"]
    with pytest.raises(TrainError, match="the budget ended before anything that may be within"):
        check_reachable(state, list(map(whole, forms)))


def test_a_search_without_a_model_within_the_limits_tells_the_nearest(builder: Pretended) -> None:
    trials = tuple(
        Tried(candidate=whole(("gguf", kind)), figures=Figures(loss=loss, bytes=bytes_, seconds=1e-3))
        for kind, loss, bytes_ in (("f32", 2.0, 4e6), ("q8_0", 2.001, 1e6), ("q4_0", 2.1, 6e5))
    )
    state = state_of(builder, Limits(bytes=9e5, loss_increase=0.01))
    record = state.record.model_copy(update={"trials": trials})
    done = record.model_copy(update=answered(record))
    assert done.best is None
    with pytest.raises(TrainError, match=r"none of 3 .* whole; gguf q4_0, has a loss \+5.00% of \+1.00%"):
        raise_unmet(done)


@pytest.mark.parametrize("missing", [("onnx",), ("gguf",)])
def test_an_engine_that_is_not_installed_is_left_out(builder: Pretended, missing: tuple[str, ...]) -> None:
    builder.missing = missing
    done = finished(searched(state_of(builder, LIMITS)))
    assert done.skipped == {missing[0]: "it is not installed: pip install it"}
    assert {t.candidate.format for t in done.trials}.isdisjoint(missing)
    with pytest.raises(ProjectError, match="not installed"):
        Engines(state_of(builder, LIMITS), FORMS, missing).run()
    builder.missing = ("gguf", "onnx")
    with pytest.raises(ProjectError, match="no engine here opens"):
        Engines(state_of(builder, LIMITS), FORMS, ()).run()


# -- the parts ------------------------------------------------------------------------------------------


def figures(loss: float, bytes_: float, seconds: float) -> Figures:
    return Figures(loss=loss, bytes=bytes_, seconds=seconds)


def test_dominance_front_and_recommendation() -> None:
    a, b, c = figures(2.0, 100, 1.0), figures(2.01, 50, 0.5), figures(2.02, 60, 0.6)
    assert better(b, c)
    assert not better(a, b)
    assert not better(a, a)
    trials = [Tried(candidate=whole(("gguf", str(i))), figures=f) for i, f in enumerate((a, b, c))]
    trials.append(Tried(candidate=whole(("gguf", "3")), error="failed"))
    assert front(trials) == (1, 0)
    assert recommended(trials, Limits(loss_increase=0.01)) == 1
    assert recommended(trials, Limits(loss_increase=0.001)) == 0
    assert recommended(trials, Limits(bytes=10.0)) is None
    assert excess(b, Limits(bytes=40.0, seconds=1.0, loss_increase=0.001), 2.0) == pytest.approx(
        {"bytes": 0.25, "loss": 2.01 / 2.002 - 1}
    )
    assert makes_needless(a, figures(1.9999, 99.5, 0.995), 0.02)
    assert not makes_needless(a, figures(1.9, 99.5, 0.995), 0.02)
    assert not makes_needless(a, figures(2.1, 90, 2.0), 0.02)


def test_the_hypervolume_is_the_share_of_the_box() -> None:
    start, limits = figures(2.0, 100, 1.0), Limits(loss_increase=0.01)
    assert hypervolume([start], start, limits) == 0.0
    half = figures(2.0, 50, 0.5)  # no rise, half the bytes, half the seconds
    assert hypervolume([start, half], start, limits) == pytest.approx(0.25)
    other = figures(2.01, 25, 0.5)  # half of the allowed rise
    assert hypervolume([half, other], start, limits) == pytest.approx(0.25 + 0.5 * 0.5 * 0.25)
    assert hypervolume([half, figures(1.9, 50, 0.5)], start, limits) == pytest.approx(0.25)
    assert hypervolume([half, figures(2.03, 1, 0.01)], start, limits) == pytest.approx(0.25)


def test_healed_shapes_bound_the_shapes_that_they_hold(builder: Pretended) -> None:
    state = state_of(builder, LIMITS)
    forms = Engines(state, FORMS, ()).run()
    known = state.known
    known.add_cuts(CUTS, forms)
    wide, narrow = (Candidate(shape=CUTS[i].sizes, format="gguf", kind="f32") for i in (0, 2))
    assert known.at_best(narrow).loss == pytest.approx(LOSS)
    assert known.expected(narrow).loss == pytest.approx(LOSS + 0.3 * CUTS[2].rise)
    known.healed[wide.shape_name] = LOSS + CUTS[0].rise * 0.01  # nearly all of it
    assert known.at_best(narrow).loss == pytest.approx(LOSS + 0.005 * CUTS[2].rise)
    known.cuts[narrow.shape_name] = CUTS[2].model_copy(update={"rise": 0.01})
    known.healed[wide.shape_name] = LOSS + 0.1
    assert known.at_best(narrow).loss == pytest.approx(0.99 * (LOSS + 0.1))  # which holds it
    known.cuts[narrow.shape_name] = CUTS[2]
    assert known.at_best(wide).loss == pytest.approx(LOSS + 0.1)
    assert known.recovery() == pytest.approx(1 - 0.1 / CUTS[0].rise)
    known.floors = {narrow.shape_name: 1.3}
    assert known.at_best(narrow).loss == pytest.approx(1.3 * LOSS)
    true = builder.bytes(narrow)
    assert 0.98 * true <= known.at_best(narrow).bytes <= true


def test_small_things() -> None:
    assert [least_bits(kind) for kind in ("q4_k", "iq4_nl", "int8", "f16", "mixed", "new")] == [
        4,
        4,
        8,
        16,
        4,
        0,
    ]
    assert thread_counts(6) == [1, 2, 4, 6]
    assert thread_counts(1) == [1]
    forms = space.representations(())
    assert [kind for _, kind in forms[:3]] == ["f32"] * 3
    assert {("gguf", "q4_k"), ("gguf", "mixed")} <= {*forms}
    with pytest.raises(ProjectError, match="no format 'gguff'"):
        space.representations(["gguff"])
    assert math.isnan(Known(BASE).loss)


# -- the real thing -------------------------------------------------------------------------------------


def test_a_real_model_is_improved_and_found_again(
    project: tuple[Path, Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("xllamacpp", reason="the extra isoflop[gguf] is not installed")
    home = Project(project[0])
    corpus = corpus_of(home)
    few = [("gguf", "f32"), ("gguf", "q4_0")]
    monkeypatch.setattr("isoflop.improving.representations", lambda formats: few)
    monkeypatch.setattr(space, "TRIED", 2)
    options = {"formats": ("gguf",), "heal_tokens": 8192, "eval_tokens": 2048, "shares": (0.6,)}
    asked = (home, corpus, Path(project[1].model), Limits(loss_increase=2.0), Budget(flops=1e13))
    done = improve(*asked, **options)  # type: ignore[arg-type]
    assert done.best is not None
    best, start = done.trials[done.best], done.trials[0].figures
    assert best.figures is not None
    assert start is not None
    assert best.figures.bytes < start.bytes
    assert best.figures.loss <= 3 * start.loss
    assert (home.folder / best.path).stat().st_size == best.figures.bytes
    healed = [t for t in done.trials if t.candidate.shape]
    assert healed
    assert [step.kind for step in healed[0].steps] == ["prune", "distill", "export"]
    assert healed[0].expected is not None
    assert healed[0].figures is not None
    assert healed[0].expected.bytes == pytest.approx(healed[0].figures.bytes, rel=0.03)
    assert done.flops_total <= 1e13
    monkeypatch.setattr(first_part.Engines, "run", None)
    assert improve(*asked, **options) == done  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("limits", "options", "words"),
    [
        (Limits(loss_increase=-1), {}, "limit of -1 on loss increase means nothing"),
        (Limits(bytes=math.nan), {}, "means nothing"),
        (Limits(bytes=100.0), {}, "100 bytes or fewer"),
        (Limits(), {"heal_tokens": -1}, "--heal-tokens is -1"),
        (Limits(), {"shares": (0.5, 1.5)}, "share of 1.5 prunes to no shape"),
        (Limits(), {"formats": ("tflite",)}, "no format 'tflite'"),
    ],
)
def test_what_cannot_be_is_told_at_once(
    project: tuple[Path, Result], limits: Limits, options: dict[str, object], words: str
) -> None:
    home = Project(project[0])
    with pytest.raises((TrainError, ProjectError), match=words):
        improve(home, corpus_of(home), Path(project[1].model), limits, Budget(flops=1e12), **options)  # type: ignore[arg-type]


def test_a_text_too_short_to_calibrate_on(project: tuple[Path, Result]) -> None:
    home = Project(project[0])
    short: Corpus = corpus_of(home).model_copy(update={"train_tokens": 10})
    with pytest.raises(CorpusError, match="10 training tokens, too few to calibrate"):
        improve(home, short, Path(project[1].model), Limits(), Budget(flops=1e12))
