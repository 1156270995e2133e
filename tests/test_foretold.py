"""What laws expect of a student before it is trained: like the published law, and like the project's runs."""

from __future__ import annotations

from itertools import product
from typing import cast

import numpy as np
import pytest

from isoflop.laws import Fit, Observations, fit
from isoflop.laws.coupled import COUPLED
from isoflop.laws.distillation import STUDENT, SUPERVISED
from isoflop.records import Run
from isoflop.transforms import Scores, Source, Transform
from isoflop.transforms.foretold import LONGER, PLAIN, TAUGHT, carried, fitted, inside, scored

AT = np.array([3e5]), np.array([2e6])


@pytest.fixture(scope="module")
def law() -> Fit:
    """Chinchilla's form exactly, on sizes like those of a ladder."""
    n, d = (g.ravel() for g in np.meshgrid([1e5, 2e5, 4e5], [5e5, 1e6, 2e6]))
    loss = 1.0 + 30 / n**0.3 + 200 / d**0.4
    return fit(Observations.of({"params": n, "tokens": d, "loss": loss}), bootstrap=20)


def test_on_the_published_law_itself_nothing_is_carried() -> None:
    theirs = np.array([[SUPERVISED[f"{name}_s"] for name in COUPLED.names]])
    published = Fit.of_published("busbridge-2025")
    for n, d, teacher in product((2e8, 3e9), (2e9, 1e11), (2.1, 2.6)):
        found = carried("coupled", theirs, np.array([n]), np.array([d]), teacher)
        assert found[0] == pytest.approx(float(published.loss(n, d, teacher_loss=teacher)[0]), rel=1e-9)
        assert inside("coupled", theirs, np.array([n]), np.array([d]), teacher)
    assert not inside("coupled", theirs, np.array([1e6]), np.array([2e9]), 2.1)
    assert not inside("coupled", theirs, np.array([2e8]), np.array([2e9]), 3.1)


def test_a_better_teacher_helps_until_it_is_far_better_and_no_teacher_is_reached(law: Fit) -> None:
    alone = float(law.loss(3e5, 2e6)[0])
    taught = {gap: carried("chinchilla", law.theta, *AT, alone - gap)[0] for gap in (-0.3, 0.1, 0.3)}
    assert taught[0.3] < taught[0.1] < alone < taught[-0.3]
    assert all(loss > alone - gap for gap, loss in taught.items())


def test_with_endless_text_a_teacher_is_worth_nothing(law: Fit) -> None:
    """Busbridge et al. 2502.08606, section 5: supervised learning wins with tokens enough."""
    d = np.array([1e11])
    alone = float(law.loss(3e5, 1e11)[0])
    assert carried("chinchilla", law.theta, AT[0], d, alone - 0.3)[0] > alone


class Taught:
    """What the law asks of a run."""

    def __init__(self, params: float, tokens: float, loss: float) -> None:
        self.params_matmul, self.tokens, self.loss = params, tokens, loss
        self.flops, self.trunk = 6 * params * tokens, f"{params}-{tokens}-{loss}"


def runs(law: Fit, scale: float) -> list[tuple[Run, float]]:
    """Of students whose distillation law has `scale` times the published A and B."""
    alone = dict(zip(SUPERVISED, (*law.theta[0], 1.0), strict=True))
    values = {**STUDENT, **alone, "A": scale * STUDENT["A"], "B": scale * STUDENT["B"]}
    truth = Fit.of_published("busbridge-2025").model_copy(update={"params": values})
    made = [
        (Taught(n, d, float(truth.loss(n, d, teacher_loss=t)[0])), t)
        for n, d, t in product((1e5, 4e5), (5e5, 1e6, 4e6), (1.9, 2.3))
    ]
    return cast("list[tuple[Run, float]]", made)


def test_the_projects_own_runs_say_what_its_teachers_are_worth(law: Fit) -> None:
    known = runs(law, 0.1)
    found = fitted(law, known)
    assert found is not None
    for run, teacher in known:
        assert float(found.loss(run.params_matmul, run.tokens, teacher_loss=teacher)[0]) == pytest.approx(
            run.loss, rel=0.01
        )
    truth = runs(law, 0.1)[0][0].loss
    published = carried("chinchilla", law.theta, np.array([1e5]), np.array([5e5]), 1.9)[0]
    assert abs(published - truth) > 0.02  # so that the fit is what found it


def test_runs_that_cannot_be_fitted_leave_the_published_constants(law: Fit) -> None:
    known = runs(law, 0.1)
    assert fitted(law, known[:7]) is None
    assert fitted(law, [pair for pair in known * 2 if pair[0].params_matmul == 1e5]) is None
    assert fitted(law, [pair for pair in known * 3 if pair[0].tokens == 1e6]) is None
    known[0][0].__dict__["loss"] = float("nan")
    assert fitted(law, known) is None


def test_what_came_out_is_held_against_it() -> None:
    from isoflop.records import Interval

    scores = Scores(loss=2.5, loss_se=0.01, bpb=1.0, bpb_se=0.01, params_total=9, params_matmul=9)
    made = Transform(
        id="a", kind="distill", corpus_id="c", sources=(Source(role="teacher", hash="h", path="p"),),
        options={}, flops={}, seconds=0.0, eval_tokens=1, after=scores, model="m", verdict="so it was said",
        predicted={
            TAUGHT: Interval(value=2.4, low=2.3, high=2.45, of="new run"),
            PLAIN: Interval(value=2.7, low=2.6, high=2.8, of="new run"),
            LONGER: Interval(value=2.55, low=2.45, high=2.65, of="new run"),
        },
    )  # fmt: skip
    said = scored(made)
    assert said[0] == "so it was said"
    assert "the result, 2.5000, is above it (+4.2%)" in said[1]
    assert "is below it (-7.4%)" in said[2]
    assert "is within it" in said[3]
    assert said[4] == "distilling came out 0.0500 nats better than the law expects of training longer"
