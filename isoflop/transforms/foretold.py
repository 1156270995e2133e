"""Is a student better taught than trained for longer? What laws say before it is trained.

Without a teacher the project's own law answers, at the student's tokens and at as many as the same FLOPs buy.
With one it is the distillation law (`laws.distillation`), fitted to the project's distilled runs where there
are FEWEST of them, and otherwise at its published constants. Those are of other text, tokens and sizes, so
they are read where their own law of untaught models leaves as much to learn as the project's does: at the
published N and D whose size and data each take as many nats above the floor E, with a teacher as many nats
above it (our assumption; the paper has no such rule). Either counts the teachers alone, at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from isoflop import flops
from isoflop.errors import FitError
from isoflop.identity import whole_batches
from isoflop.laws import Fit, Observations, fit
from isoflop.laws.chinchilla import Chinchilla
from isoflop.laws.coupled import COUPLED
from isoflop.laws.distillation import DISTILLATION, RANGES, STUDENT, SUPERVISED
from isoflop.laws.intervals import quantiles
from isoflop.laws.solve import Array
from isoflop.records import Corpus, Interval, Ladder, ModelConfig, Run, RunConfig
from isoflop.store import Project
from isoflop.transforms import TEACHER, Transform

FEWEST = 8  # distilled runs, of two sizes and two numbers of tokens at least, that the law is fitted to
FITTED = ("A", "B", "alpha", "beta")  # to so few runs; the other parameters keep their published values
ADDITIVE = (Chinchilla.name, COUPLED.name)  # laws with E, A, B, alpha, beta in front
PUBLISHED, OWN = "busbridge-2025", "the project's distilled runs"
TAUGHT, PLAIN, LONGER = "taught", "plain", "plain, equal FLOPs"
DRAWS = 100
LEAST_NATS = 1e-3  # a teacher is above the floor by at least so much


class Foretold(NamedTuple):
    """What is expected of a student, and whether it is worth its teachers."""

    losses: dict[str, Interval]  # TAUGHT, PLAIN and LONGER; nats a token, of a new run
    law: str  # of TAUGHT: PUBLISHED or OWN
    difference: Interval | None  # taught - longer, nats
    more: float  # times the tokens that the teachers' FLOPs would buy
    covered: bool = True  # whether the runs behind the distillation law cover it

    @property
    def verdict(self) -> str:
        """Taught or trained for longer, for people; empty where no law says what teachers are worth."""
        if self.difference is None:
            return ""
        gap, p = self.difference, self.losses[TAUGHT]
        sure = "" if gap.low > 0 or gap.high < 0 else ", which is not certain"
        better = "distilling is better" if gap.value < 0 else "training longer is better"
        return (
            f"taught, the distillation law of {self.law} expects {p.value:.4f} [{p.low:.4f}, {p.high:.4f}]: "
            f"{better} by {abs(gap.value):.4f} nats, a difference of [{gap.low:+.4f}, {gap.high:+.4f}]{sure}"
            + (
                ""
                if self.covered
                else "; but the runs behind that law are far from this one: trust it little"
            )
        )

    @property
    def sentences(self) -> list[str]:
        """All that is expected, for people."""
        if not self.losses:
            return []
        plain, longer = (self.losses[name] for name in (PLAIN, LONGER))
        without = (
            f"without a teacher the law expects {plain.value:.4f} [{plain.low:.4f}, {plain.high:.4f}]; "
            f"{longer.value:.4f} [{longer.low:.4f}, {longer.high:.4f}] of {self.more:.2f} times the tokens, "
            "which cost as much"
        )
        return [without, *([self.verdict] if self.verdict else [])]


NOTHING = Foretold({}, "", None, 1.0)


def foretold(
    project: Project, corpus: Corpus, config: RunConfig, teachers: Sequence[ModelConfig], teacher_loss: float
) -> Foretold:
    """Of a student from scratch, whose best teacher has that held-out loss; of the project's latest law.

    Empty for a student that goes on or learns several tasks, or without a law of its kind; without the
    verdict when that law has no terms of size and data beside each other.
    """
    ladder, law = project.latest("ladder", Ladder), project.latest("fit", Fit)
    if config.initial or config.tasks or law is None or ladder is None or ladder.corpus_id != corpus.id:
        return NOTHING
    if ladder.members[0].config.model.kind != config.model.kind:
        return NOTHING
    n, run = float(flops.params_matmul(config.model)), whole_batches(config)
    taught = flops.run_teachers_flops(run, teachers)
    taught += flops.matching_flops_per_token(teachers, config) * run.tokens
    more = 1 + taught / flops.run_flops(run)
    losses: dict[str, Interval] = {
        PLAIN: law.predict(n, run.tokens).plain(), LONGER: law.predict(n, more * run.tokens).plain()
    }  # fmt: skip
    if law.law not in ADDITIVE:
        return Foretold(losses, "", None, more)
    at = np.array([n]), np.array([float(run.tokens)])
    theta = np.concatenate([law.theta, law.draws_array])
    own = fitted(law, distilled(project, corpus, config))
    if own is not None:
        drawn = own.predict_draws(n, run.tokens, teacher_loss=teacher_loss)[:, 0]
        value = own.loss(n, run.tokens, teacher_loss=teacher_loss)
        found = np.concatenate([value, np.resize(drawn, len(theta) - 1)])
    else:
        found = carried(law.law, theta, *at, teacher_loss)
    losses[TAUGHT] = law.around(float(found[0]), found[1:], law.model_sd(n, run.tokens)).plain()
    apart = found - law.target(theta, {"params": at[0], "tokens": more * at[1]})[:, 0]
    low, high = quantiles(apart[1:], 0.9)
    middle = float(apart[0])
    gap = Interval(value=middle, low=min(low, middle), high=max(high, middle), of="mean")
    covered = own is not None or inside(law.law, theta, *at, teacher_loss)
    return Foretold(losses, PUBLISHED if own is None else OWN, gap, more, covered)


def carried(law: str, theta: Array, params: Array, tokens: Array, teacher_loss: float) -> Array:
    """(m,) losses of a taught student by the published constants, read where their law is like ours (m, p).

    At one N and D, (1,) each. Without a teacher theirs leaves U = (A/N^alpha + B/D^beta)^k above E. With U of
    ours, of which the size takes the share s, they are read at the N with A/N^alpha = s U^(1/k), and at the D
    of the rest.
    """
    columns, floor = _there(law, theta, params, tokens, teacher_loss)
    published = np.array([[{**STUDENT, **SUPERVISED}[name] for name in DISTILLATION.names]])
    return np.asarray(DISTILLATION.loss(published, columns)[0] - SUPERVISED["E_s"] + floor)


def inside(law: str, theta: Array, params: Array, tokens: Array, teacher_loss: float) -> bool:
    """Whether the published runs cover where `carried` reads them, by the first parameters."""
    columns, _ = _there(law, theta[:1], params, tokens, teacher_loss)
    return all(low <= columns[name][0] <= high for name, (low, high) in RANGES.items())


def _there(
    law: str, theta: Array, params: Array, tokens: Array, teacher_loss: float
) -> tuple[dict[str, Array], Array]:
    """The published law's covariates (m,), and our floor E."""
    floor, size, data, power = _terms(law, theta, params, tokens)
    s, inner, share = SUPERVISED, (size + data) ** (power / SUPERVISED["k_s"]), size / (size + data)
    with np.errstate(divide="ignore"):  # endless where size or data do not matter
        columns = {
            "params": (s["A_s"] / (share * inner)) ** (1 / s["alpha_s"]),
            "tokens": (s["B_s"] / ((1 - share) * inner)) ** (1 / s["beta_s"]),
            "teacher_loss": s["E_s"] + np.maximum(teacher_loss - floor, LEAST_NATS),
        }
    return columns, floor


def _terms(law: str, theta: Array, params: Array, tokens: Array) -> tuple[Array, Array, Array, Array]:
    """(m,) E, A/N^alpha, B/D^beta and the power of their sum, of one of ADDITIVE."""
    E, A, B, alpha, beta = theta.T[:5]
    power = theta[:, 5] if law == COUPLED.name else np.ones(len(theta))
    return E, A / params**alpha, B / tokens**beta, power


def fitted(law: Fit, taught: Sequence[tuple[Run, float]]) -> Fit | None:
    """The distillation law of runs with their teachers' losses, beside the law of the same without.

    None where they are too few, or of one size or length, or do not agree with it.
    """
    sizes, tokens = ({getattr(run, name) for run, _ in taught} for name in ("params_matmul", "tokens"))
    if len(taught) < FEWEST or len(sizes) < 2 or len(tokens) < 2:
        return None
    alone = dict(zip(SUPERVISED, (*law.theta[0], 1.0), strict=False))  # k = 1 where the law has none
    table = Observations.of_runs(run for run, _ in taught)
    losses = tuple(loss for _, loss in taught)
    try:
        return fit(
            table.model_copy(update={"columns": {**table.columns, "teacher_loss": losses}}),
            law=DISTILLATION.name, bootstrap=DRAWS,
            fixed={**{name: value for name, value in STUDENT.items() if name not in FITTED}, **alone},
        )  # fmt: skip
    except FitError:
        return None


def distilled(project: Project, corpus: Corpus, config: RunConfig) -> list[tuple[Run, float]]:
    """The project's runs of students from scratch of that kind, each with the loss of its best teacher."""
    made = {t.run_id: best_teacher(t) for t in project.all("transform", Transform)}
    return [
        (run, loss)
        for run in project.all("run", Run)
        if run.corpus_id == corpus.id and run.config.teachers and not (run.config.initial or run.config.tasks)
        and run.config.model.kind == config.model.kind and (loss := made.get(run.id)) is not None
    ]  # fmt: skip


def best_teacher(made: Transform) -> float | None:
    """The lowest held-out loss of a transform's teachers, in nats a token."""
    losses = [s.scores.loss for s in made.sources if s.role == TEACHER and s.scores is not None]
    return min(losses, default=None)


def scored(made: Transform) -> list[str]:
    """How what was expected of a student came out, for people."""
    lines = [made.verdict] if made.verdict else []
    for name, p in made.predicted.items():
        found = made.after.loss
        held = "below" if found < p.low else "above" if found > p.high else "within"
        lines.append(
            f"foretold {name}: {p.value:.4f} [{p.low:.4f}, {p.high:.4f}]; the result, {found:.4f}, is {held} "
            f"it ({found / p.value - 1:+.1%})"
        )
    if LONGER in made.predicted:
        gap = made.after.loss - made.predicted[LONGER].value
        better = "better" if gap < 0 else "worse"
        lines.append(
            f"distilling came out {abs(gap):.4f} nats {better} than the law expects of training longer"
        )
    return lines
