"""Plans under limits of serving and of a teacher: against brute force, closed forms and the sentences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from isoflop.errors import BudgetError, FitError
from isoflop.laws import Fit, fit
from isoflop.laws.planning import LawPlan, plan_law

KUMAR, BUSBRIDGE = "kumar-2024-post", "busbridge-2025"


def plan(name: str, flops: float, **limits: Any) -> LawPlan:
    return plan_law(Fit.of_published(name), flops, **limits)


def worth(found: LawPlan, constraint: str) -> float:
    return next(w.doublings.value for w in found.worth if w.constraint == constraint)


def brute_force(
    name: str, flops: float, cap: float = np.inf, beside: float = 0.0, served: float = 0.0, **others: float
) -> float:
    """Lowest loss of a fine grid of every N up to the cap and every D that the budget can pay."""
    law = Fit.of_published(name)
    N, D = np.meshgrid(
        np.append(np.geomspace(1e6, 1e13, 1401), min(cap, 1e13)), np.geomspace(1e7, 1e15, 1601)
    )
    affordable = (
        (cap >= N) & ((6 * N + beside) * D + 2 * N * served <= flops) & (law._law.least_ratio * N <= D)
    )
    return float(law.loss(N[affordable], D[affordable], **others).min())


# -- precision, memory and latency ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "flops", "limits", "cap", "binding"),
    [
        ("besiroglu-2024", 1e23, {"max_memory": 8e9}, 4e9, "max_memory"),
        ("besiroglu-2024", 1e23, {"max_memory": 8e9, "serving_bits": 4}, 16e9, "max_memory"),
        ("besiroglu-2024", 1e23, {"max_memory": 8e9, "serving_bits": 2}, 32e9, None),
        ("besiroglu-2024", 1e23, {"max_latency": 0.02, "bandwidth": 1e11}, 1e9, "max_latency"),
        ("hoffmann-2022", 1e23, {"max_latency": 0.02, "bandwidth": 1e11, "serving_bits": 4}, 4e9,
         "max_latency"),
        ("besiroglu-2024", 1e23, {"max_params": 2e9, "max_memory": 8e9}, 2e9, "max_params"),
        (KUMAR, 1e21, {"serving_bits": 4}, np.inf, None),
        (KUMAR, 1e21, {"serving_bits": 3, "max_memory": 4e9}, 32e9 / 3, None),
        (KUMAR, 1e21, {"serving_bits": 4, "max_memory": 1e9}, 2e9, "max_memory"),
        (KUMAR, 1e21, {"serving_bits": 3, "max_params": 3e8}, 3e8, "max_params"),
        (KUMAR, 1e21, {"serving_bits": 3, "max_params": 3e8, "inference_tokens": 1e11}, 3e8, "max_params"),
    ],
)  # fmt: skip
def test_the_optimum_under_each_cap(
    name: str, flops: float, limits: dict[str, float], cap: float, binding: str | None
) -> None:
    found = plan(name, flops, **limits)
    others = {"bits_post": limits["serving_bits"]} if name == KUMAR else {}
    best = brute_force(name, flops, cap, served=limits.get("inference_tokens", 0.0), **others)
    assert found.loss.value <= best + 1e-9  # no point of the grid is better
    assert found.loss.value == pytest.approx(best, rel=2e-4)
    assert found.params.value <= cap * (1 + 1e-9)
    assert found.binding == binding
    if binding:
        assert found.params.value == pytest.approx(cap, rel=1e-6)
    for w in found.worth:
        if w.constraint.startswith("max_"):
            assert ("it binds" in w.sentence) == (w.constraint == binding)
            assert ("does not bind" in w.sentence) == (w.constraint != binding)
            assert (w.doublings.value > 0.01) == (w.constraint == binding)
    assert found.weight_bytes == pytest.approx(found.params.value * limits.get("serving_bits", 16) / 8)


def test_a_cap_is_worth_what_twice_of_it_reaches() -> None:
    law = Fit.of_published("besiroglu-2024")
    found = plan_law(law, 1e23, max_memory=8e9)
    twice = plan_law(law, 1e23, max_memory=16e9)
    more = plan_law(law, 1e23 * 2 ** worth(found, "max_memory"), max_memory=8e9)
    assert more.loss.value == pytest.approx(twice.loss.value, rel=1e-6)
    # Sixteen bits are half as many parameters as eight: the same cap.
    assert plan_law(law, 1e23, max_memory=4e9, serving_bits=8).params.value == found.params.value


def test_quantization_prefers_larger_models_trained_less_and_bits_have_a_worth() -> None:
    full, four, three = (plan(KUMAR, 1e21, serving_bits=bits) for bits in (16, 4, 3))
    assert full.params.value < four.params.value < three.params.value
    assert full.loss.value < four.loss.value < three.loss.value
    assert full.params.value == plan(KUMAR, 1e21).params.value  # 16 when not given
    assert "Twice the bits at serving would be worth" in four.worth[0].sentence
    assert 0.1 < worth(four, "serving_bits") < worth(three, "serving_bits")
    assert worth(full, "serving_bits") == pytest.approx(0.0, abs=1e-6)
    assert plan(KUMAR, 1e21, others={"bits_post": 4.0}).model_dump() == four.model_dump()


def test_bits_cost_memory_too() -> None:
    tight = plan(KUMAR, 1e21, serving_bits=6, max_memory=1e9)
    assert worth(tight, "serving_bits") < -0.1  # they would halve the parameters that fit
    assert "Twice the bits at serving would cost" in " ".join(w.sentence for w in tight.worth)


def test_a_capped_model_stops_training_where_quantization_undoes_it() -> None:
    found = plan(KUMAR, 1e22, serving_bits=3, max_params=1e8)
    p = Fit.of_published(KUMAR).params
    D, term = found.tokens.value, p["C_T"] * np.exp(-3 / p["gamma_post"]) * 1e8 ** -p["gamma_N"]
    first_order = p["beta"] * p["B"] * D ** -p["beta"], p["gamma_D"] * term * D ** p["gamma_D"]
    assert first_order[0] == pytest.approx(first_order[1], rel=1e-4)
    assert found.train_flops == pytest.approx(6 * 1e8 * D)
    assert found.train_flops < 1e21
    assert any("More tokens would hurt" in note and "% of the training budget is left" in note
               for note in found.notes)  # fmt: skip
    assert worth(found, "max_params") == np.inf  # no compute helps this size
    assert plan(KUMAR, 1e22, max_params=1e8).train_flops == pytest.approx(1e22)


def test_what_limits_count_is_said() -> None:
    notes = " ".join(plan("besiroglu-2024", 1e21, max_memory=8e9, serving_bits=4).notes)
    assert "does not know what 4 bits cost" in notes
    assert "kumar-2024-post" in notes
    assert "at 4 bits each; the embedding table, activations and the KV cache are not counted" in notes
    notes = " ".join(plan(KUMAR, 1e21, max_latency=0.02, bandwidth=9e11).notes)
    assert "lower bound" in notes
    assert "16 bits each, as none were given" in notes
    assert "does not know" not in notes
    assert "tokens 5.48e+10 is outside the runs behind the law (1.5e+09 to 2.6e+10)" in notes
    told = plan("besiroglu-2024", 1e21, bandwidth=1e11)
    assert told.token_seconds == pytest.approx(told.weight_bytes / 1e11)


# -- a teacher ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flops", "limits"),
    [
        (1e21, {}),
        (1e21, {"teacher_params": 7e9}),
        (1e20, {"teacher_params": 2e9, "max_params": 5e8}),
        (1e22, {"teacher_params": 7e10, "inference_tokens": 1e11}),
        (1e20, {"teacher_loss": 1.8}),
    ],
)
def test_a_students_optimum_pays_the_teachers_forward_passes(flops: float, limits: dict[str, float]) -> None:
    given = {"teacher_loss": 2.1, **limits}
    found = plan(BUSBRIDGE, flops, **given)
    N, D, teacher = found.params.value, found.tokens.value, given.get("teacher_params", 0.0)
    served = given.get("inference_tokens", 0.0)
    assert found.train_flops == pytest.approx((6 * N + 2 * teacher) * D)
    assert found.train_flops + 2 * N * served == pytest.approx(flops)
    best = brute_force(
        BUSBRIDGE, flops, given.get("max_params", np.inf), 2 * teacher, served,
        teacher_loss=given["teacher_loss"],
    )  # fmt: skip
    assert found.loss.value <= best + 1e-9
    assert found.loss.value == pytest.approx(best, rel=1e-3)
    said = " ".join(found.notes)
    assert ("as if its logits were cached or free" in said) == (teacher == 0)


def test_a_dear_teacher_is_worth_less_than_a_free_one_and_its_cost_has_a_worth() -> None:
    free = plan(BUSBRIDGE, 1e21, teacher_loss=2.1)
    paid = plan(BUSBRIDGE, 1e21, teacher_loss=2.1, teacher_params=2e9)
    assert free.distilling is not None
    assert paid.distilling is not None
    assert free.loss.value < paid.loss.value
    assert free.distilling.loss == paid.distilling.loss  # training alone pays no teacher
    assert free.distilling.doublings.value > paid.distilling.doublings.value
    cheaper = plan(BUSBRIDGE, 1e21, teacher_loss=2.1, teacher_params=1e9)
    more = plan(BUSBRIDGE, 1e21 * 2 ** worth(paid, "teacher_params"), teacher_loss=2.1, teacher_params=2e9)
    assert more.loss.value == pytest.approx(cheaper.loss.value, rel=1e-6)
    assert "A teacher of the same loss at half the cost would be worth" in paid.worth[0].sentence


def test_distilling_is_weighed_against_training_alone() -> None:
    found = plan(BUSBRIDGE, 1e21, teacher_loss=2.1)
    alone = Fit.of_published("busbridge-2025-supervised")
    best = alone.optimum(1e21)
    assert found.distilling is not None
    assert found.distilling.loss == pytest.approx(best.loss.value)
    assert found.distilling.params == pytest.approx(best.params.value)
    value = found.distilling.doublings.value
    assert value == pytest.approx(np.log2(alone.compute_for(found.loss.value)[0] / 1e21), rel=1e-6)
    assert value > 0
    assert found.distilling.sentence == (
        f"Distilling is worth {value:.2f} doublings: training without a teacher reaches"
        f" {best.loss.value:.4g} at this budget."
    )


@pytest.mark.parametrize("teacher_loss", [2.3, 2.5, 2.8, 4.0])
@pytest.mark.parametrize("limits", [{}, {"teacher_params": 1e9}, {"max_params": 5e9}])
def test_a_teacher_worse_than_the_student_alone_harms(teacher_loss: float, limits: dict[str, float]) -> None:
    found = plan(BUSBRIDGE, 1e23, teacher_loss=teacher_loss, **limits)
    assert found.distilling is not None
    assert teacher_loss > found.distilling.loss
    assert found.distilling.doublings.value < -1
    assert "worth less than nothing" in found.distilling.sentence
    assert "Train longer instead." in found.distilling.sentence


def test_a_capped_student_may_pass_any_compute_without_a_teacher() -> None:
    found = plan(BUSBRIDGE, 1e22, teacher_loss=2.3, max_params=1e8)
    assert found.distilling is not None
    assert found.distilling.doublings.value == np.inf
    assert "worth more than any compute" in found.distilling.sentence
    assert any("theory predicts no such student" in note for note in found.notes)
    ordinary = plan(BUSBRIDGE, 1e21, teacher_loss=2.1)
    assert not any("theory" in note for note in ordinary.notes)


def test_draws_that_disagree_about_the_teacher_are_said() -> None:
    law = Fit.of_published(BUSBRIDGE)
    spread = [tuple(v * s if k == "A" else v for k, v in law.params.items()) for s in (0.8, 1.0, 2.0)]
    found = plan_law(law.model_copy(update={"draws": tuple(spread)}), 1e21, teacher_loss=2.1)
    assert found.distilling is not None
    assert found.distilling.doublings.low < 0 < found.distilling.doublings.high
    assert "Whether it helps is not certain" in found.distilling.sentence


def test_the_laws_ranges_are_respected_and_said() -> None:
    strange = plan(BUSBRIDGE, 1e20, teacher_loss=1.8)
    assert strange.tokens.value >= strange.params.value * (1 - 1e-6)
    said = " ".join(strange.notes)
    assert "less than 1 token a parameter" in said
    assert "teacher_loss 1.8 is outside the runs behind the law (2 to 2.8)" in said
    assert "outside" not in " ".join(plan(BUSBRIDGE, 1e21, teacher_loss=2.1).notes)


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limits", "says", "hint"),
    [
        ("besiroglu-2024", {"teacher_loss": 2.1}, "does not know what a teacher is worth", "busbridge-2025"),
        ("besiroglu-2024", {"teacher_params": 2e9}, "does not know what a teacher", "column teacher_loss"),
        (BUSBRIDGE, {}, "needs its loss", "--teacher-loss"),
        (BUSBRIDGE, {"teacher_params": 7e9}, "needs its loss", "--teacher-loss"),
        (BUSBRIDGE, {"teacher_loss": 2.1, "others": {"teacher_loss": 2.0}}, "given twice", "--with"),
        ("besiroglu-2024", {"max_latency": 0.02}, "needs the bandwidth", "--bandwidth 900GB/s"),
        ("besiroglu-2024", {"others": {"foo": 1.0}}, "no covariate 'foo'", "params, tokens"),
        (KUMAR, {"others": {"bits_post": 4.0}, "serving_bits": 4}, "given twice", "bits_post"),
    ],
)
def test_questions_that_the_law_cannot_answer(
    name: str, limits: dict[str, Any], says: str, hint: str
) -> None:
    with pytest.raises(FitError, match=says) as caught:
        plan(name, 1e21, **limits)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "limits",
    [
        {"serving_bits": 0.0}, {"max_memory": -1.0}, {"max_memory": 1.0}, {"bandwidth": float("nan")},
        {"max_latency": float("inf"), "bandwidth": 1e9},
        {"max_latency": 1e-9, "bandwidth": 1e9},
    ],
)  # fmt: skip
def test_impossible_limits(limits: dict[str, float]) -> None:
    with pytest.raises(BudgetError):
        plan("besiroglu-2024", 1e21, **limits)


# -- what is predicted, and how far out -----------------------------------------------------------------


def test_laws_say_what_they_predict() -> None:
    words = {
        name: Fit.of_published(name).word
        for name in ("besiroglu-2024", "step-law-lr", "step-law-batch", "gadre-2024-error-c4",
                     "zhai-2021-finetune", "llama3-2024-tokens")
    }  # fmt: skip
    assert list(words.values()) == ["loss", "learning rate", "batch, tokens", "error", "error", "best tokens"]
    with pytest.raises(FitError, match="nothing to split"):
        plan("step-law-lr", 1e21)


def test_extrapolation_names_the_covariate() -> None:
    hours = np.geomspace(1, 1000, 20)
    law = fit({"x": hours, "loss": 1 + hours**-0.3}, law="power-floor", bootstrap=0)
    found = law.predict(x=1e4)
    assert found.extrapolation == pytest.approx(10)
    assert law.extrapolation_words(10.0) == "10 times beyond the fitted range of x"
    assert law.extrapolation_words(0.1) == "inside the fitted range of x"
    assert "x the fitted x" in law.summary()
    assert "compute" not in law.summary()
    of_size = Fit.of_published("besiroglu-2024")
    assert of_size.extrapolation_words(3.0) == "3 times the largest fitted compute"
