"""What a fitted or published law says to do with a compute budget, and what each constraint costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isoflop.errors import BudgetError, FitError
from isoflop.flops import weight_bytes
from isoflop.laws import intervals
from isoflop.laws.coupled import COUPLED
from isoflop.laws.diagnose import COLLINEAR
from isoflop.laws.distillation import untaught
from isoflop.laws.limits import EASED, Limits
from isoflop.laws.registry import law_named
from isoflop.laws.result import LARGEST, Fit, Prediction
from isoflop.laws.solve import Array
from isoflop.laws.split import Split
from isoflop.records import Interval, Record

FAR = 100.0  # times the largest fitted compute, from which a plan says so
WORTH_DRAWS = 100  # joint draws for the worth of a constraint; each is a search within a search
CLOSE = 1e-6  # relative, to a cap that binds
SPENT = 0.999  # share of the budget under which a plan says that it leaves some
IDLE = {
    "unique_tokens": "The unique data do not bind: no token is repeated.",
    "max_params": "The cap on parameters does not bind.",
    "max_memory": "The memory does not bind.",
    "max_latency": "The latency does not bind.",
}


class Worth(Record):
    """What relaxing a constraint twofold would be worth, in doublings of the compute budget."""

    constraint: str
    sentence: str
    doublings: Interval


class Distilling(Record):
    """Training without a teacher at the same budget, and what the teacher is worth over it."""

    loss: float  # without a teacher, at its own best split
    params: float
    tokens: float
    doublings: Interval  # of compute; inf where no compute reaches the student's loss
    sentence: str


class LawPlan(Limits):
    """The best use of `flops` under the limits; `params`, `tokens` and `loss` carry intervals."""

    flops: float  # the whole budget, serving included
    train_flops: float  # a teacher's forward passes included
    params: Interval
    tokens: Interval
    loss: Prediction
    weight_bytes: float  # of the parameters that multiply, at the bits of serving
    token_seconds: float | None  # to read them once, where the bandwidth is known
    binding: str | None  # the limit that caps N
    worth: tuple[Worth, ...] = ()
    distilling: Distilling | None = None
    notes: tuple[str, ...] = ()


def plan_law(
    fit: Fit,
    flops: float,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    max_params: float | None = None,
    serving_bits: float | None = None,
    max_memory: float | None = None,
    max_latency: float | None = None,
    bandwidth: float | None = None,
    teacher_loss: float | None = None,
    teacher_params: float | None = None,
    others: Mapping[str, float] | None = None,
    interval: float = 0.9,
) -> LawPlan:
    """Size and tokens that reach the lowest loss for `flops`, by joint draws of the law.

    `inference_tokens` are served over the model's life and paid from the same budget (Sardana et al.
    2401.00448); beyond `unique_tokens` data are repeated, by the law's own terms or else at the rate of
    Muennighoff et al. 2305.16264. N is capped by `max_params`, by `max_memory` bytes that hold the weights
    at `serving_bits` (16 if not given), and by `max_latency` seconds to read them once at `bandwidth` bytes a
    second. A law of bits_post puts the cost of `serving_bits` into the loss (Kumar et al. 2411.04330); one of
    teacher_loss plans a student of a teacher of `teacher_loss` nats a token, whose forward passes are paid
    when `teacher_params` are given (Busbridge et al. 2502.08606, eq. 9).
    Raises BudgetError for impossible numbers and FitError when the law has no best split or cannot answer.
    """
    intervals.check_level(interval)
    if not 0 < flops < LARGEST:
        raise BudgetError(f"flops is {flops:g}", hint="give a positive number, e.g. 1e21")
    limits, rest = Limits(
        inference_tokens=inference_tokens, unique_tokens=unique_tokens, max_params=max_params,
        serving_bits=serving_bits, max_memory=max_memory, max_latency=max_latency, bandwidth=bandwidth,
        teacher_loss=teacher_loss, teacher_params=teacher_params,
    ).with_covariates(others or {})  # fmt: skip
    limits.check(fit)
    split = limits.split(fit, rest)
    N, D = _best(fit, split, flops)
    drawn = split.optimum(fit.draws_array, flops)
    loss = _loss(fit, split, N, D, interval)
    held = weight_bytes(N, limits.bits)
    return LawPlan(
        **dict(limits),
        flops=flops,
        train_flops=float(split.train_flops(np.array(N), np.array(D))),
        params=_interval(N, drawn[0], interval, "optimum"),
        tokens=_interval(D, drawn[1], interval, "optimum"),
        loss=loss,
        weight_bytes=held,
        token_seconds=None if limits.bandwidth is None else held / limits.bandwidth,
        binding=_binding(limits, N),
        worth=tuple(_worths(fit, limits, rest, flops, (N, D), interval)),
        distilling=None if limits.teacher_loss is None else _distilling(fit, split, flops, interval),
        notes=(
            *_notes(fit, flops, D / N, loss.extrapolation),
            *limits.sentences(fit),
            *_split_notes(fit, split, N, D, flops),
        ),
    )


def _best(fit: Fit, split: Split, flops: float) -> tuple[float, float]:
    """N and D of the fitted parameters. Raises BudgetError, or FitError without a best split."""
    N, D, _ = (float(v[0]) for v in split.optimum(fit.theta, flops))
    if N < 1 or D < 1:
        raise BudgetError(f"{flops:g} FLOPs buy less than one parameter or token", hint="raise the budget")
    if not (np.isfinite(N) and np.isfinite(D)):
        raise FitError(
            "The law has no best split of this budget: parameters or tokens do not matter in it.",
            hint="Add runs that vary both N and D by at least 4x, or ease the constraints.",
        )
    return N, D


def _binding(limits: Limits, N: float) -> str | None:
    name = limits.tightest
    return name if name is not None and limits.caps[name] * (1 - CLOSE) <= N else None


def _loss(fit: Fit, split: Split, N: float, D: float, level: float) -> Prediction:
    """Measured loss of a new run at N, D under the split's constraints."""
    at = np.array([N]), np.array([D])
    value, draws = float(split.loss(fit.theta, *at)[0, 0]), split.loss(fit.draws_array, *at)[:, 0]
    found = fit.around(value, draws, fit.model_sd(N, D), level)
    return fit.oriented(found.model_copy(update={"extrapolation": fit.extrapolation(N, D)}))


def _interval(value: float, draws: np.ndarray, level: float, of: str) -> Interval:
    kept = draws[np.isfinite(draws)]
    low, high = intervals.quantiles(kept, level) if len(kept) else (value, value)
    return Interval(value=value, low=min(low, value), high=max(high, value), level=level, of=of)


def _worths(
    fit: Fit, limits: Limits, others: Mapping[str, float], flops: float, best: tuple[float, float],
    level: float,
) -> list[Worth]:  # fmt: skip
    """Every limit eased twofold, at the best N and D: the compute that would reach the same loss without."""
    split = limits.split(fit, others)
    theta = np.concatenate([fit.theta, fit.draws_array[:WORTH_DRAWS]])
    idle = limits.caps.keys() - {_binding(limits, best[0])}
    if limits.unique_tokens is not None and best[1] <= limits.unique_tokens:
        idle |= {"unique_tokens"}
    out = []
    for name, (words, _) in EASED.items():
        if not getattr(limits, name) or (name == "serving_bits" and "bits_post" not in fit.columns):
            continue
        if name in idle:
            nothing = Interval(value=0.0, low=0.0, high=0.0, level=level, of="doublings")
            out.append(Worth(constraint=name, sentence=IDLE[name], doublings=nothing))
            continue
        reached = limits.eased(name).split(fit, others).optimum(theta, flops)[2]
        found = _interval_of(_doublings(split, theta, reached, flops), level)
        binds = "; it binds" if name in limits.caps else ""
        out.append(
            Worth(constraint=name, sentence=f"{words} {_amount(found.value)}{binds}.", doublings=found)
        )
    return out


def _doublings(split: Split, theta: Array, loss: Array, flops: float) -> Array:
    """(m,) log2 of the compute that reaches `loss` (m,), over `flops`; inf where none does."""
    reached = split.compute_for(theta, loss)
    return np.asarray(np.log2(np.where(np.isnan(reached), np.inf, reached) / flops))


def _interval_of(row: Array, level: float) -> Interval:
    """A value first, its draws after it."""
    return _interval(float(row[0]), row[1:], level, "doublings")


def _amount(doublings: float) -> str:
    if not np.isfinite(doublings):
        return "would be worth more than any compute"
    verb = "would cost" if doublings <= -0.005 else "would be worth"
    return f"{verb} {abs(doublings):.2f} doublings of compute"


def _distilling(fit: Fit, split: Split, flops: float, level: float) -> Distilling:
    """The same budget and limits spent on training without the teacher, by the law's own supervised part."""
    theta = np.concatenate([fit.theta, fit.draws_array[:WORTH_DRAWS]])
    alone = replace(split, law=COUPLED, others={}, beside_flops=0.0)
    N, D, L = (float(v[0]) for v in alone.optimum(untaught(fit.theta), flops))
    taught = split.optimum(theta, flops)[2]
    found = _interval_of(_doublings(alone, untaught(theta), taught, flops), level)
    return Distilling(
        loss=L, params=N, tokens=D, doublings=found, sentence=_verdict(found, L, float(taught[0]))
    )


def _verdict(found: Interval, alone: float, taught: float) -> str:
    without = f"training without a teacher reaches {alone:.4g} at this budget"
    if not np.isfinite(found.value):
        return f"Distilling is worth more than any compute: {without}, and never {taught:.4g}."
    sure = "" if found.low > 0 or found.high < 0 or found.low == found.high else (
        f" Whether it helps is not certain ({found.low:+.2f} to {found.high:+.2f})."
    )  # fmt: skip
    if found.value < 0:
        return (
            f"Distilling is worth less than nothing ({found.value:+.2f} doublings): {without}, distilling"
            f" {taught:.4g}. Train longer instead.{sure}"
        )
    return f"Distilling is worth {found.value:.2f} doublings: {without}.{sure}"


def _notes(fit: Fit, flops: float, per_param: float, ratio: float | None) -> list[str]:
    notes = [sentence for sentence in fit.diagnostics if sentence == COLLINEAR]
    if fit.n:
        seen = np.array(fit.observations.tokens) / np.array(fit.observations.params)
        if not seen.min() / 2 <= per_param <= seen.max() * 2:
            notes.append(
                f"{per_param:.3g} tokens a parameter are far outside the fitted runs"
                f" ({seen.min():.3g} to {seen.max():.3g})."
            )
    if ratio is not None and ratio > FAR:
        notes.append(
            f"This is {ratio:,.3g} times the largest fitted compute: read it as a direction, not a number."
        )
    if fit.n and flops < fit.observations.compute().min():
        notes.append(
            f"The budget is below the smallest fitted run ({fit.observations.compute().min():.3g} FLOPs)."
        )
    if fit.estimator == "published":
        notes.append(fit.diagnostics[1])
    return notes


def _split_notes(fit: Fit, split: Split, N: float, D: float, flops: float) -> list[str]:
    """Where the best split is held back, and where it leaves what the law was fitted to."""
    out, law = [], law_named(fit.law)
    spent = D / float(split.tokens(np.array(N), np.array(flops)))
    if spent < SPENT:
        out.append(
            "More tokens would hurt a model of this size once it is quantized:"
            f" {100 * (1 - spent):.2g}% of the training budget is left."
        )
    if law.least_ratio * N * (1 + CLOSE) > D:
        out.append(
            f"The law asks for less than {law.least_ratio:g} token a parameter, where it says nothing: held"
            " there. Give the student's size with --max-params."
        )
    at = {"params": N, "tokens": D, **split.others}
    for name, value in at.items():
        low, high = _range(fit, name)
        if not low <= value <= high:
            out.append(f"{name} {value:.3g} is outside the runs behind the law ({low:.3g} to {high:.3g}).")
    if "teacher_loss" in split.others:
        taught = float(split.loss(fit.theta, np.array([N]), np.array([D]))[0, 0])
        endless = {"params": np.array([N]), "tokens": np.array([LARGEST])}
        alone = float(COUPLED.loss(untaught(fit.theta), endless)[0, 0])
        if taught < alone:
            out.append(
                f"The law has the student reach {taught:.4g}, and the same size without a teacher {alone:.4g}"
                " on unlimited tokens: theory predicts no such student."
            )
    return out


def _range(fit: Fit, name: str) -> tuple[float, float]:
    """What the runs behind the law covered; of N and D of a fitted law `_notes` speaks."""
    column = fit.observations.columns.get(name)
    if column and name not in ("params", "tokens"):
        return min(column), max(column)
    return fit.ranges.get(name, (0.0, np.inf))
