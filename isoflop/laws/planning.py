"""What a fitted or published law says to do with a compute budget, and what each constraint costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isoflop.errors import BudgetError, FitError
from isoflop.laws import intervals
from isoflop.laws.diagnose import COLLINEAR
from isoflop.laws.result import LARGEST, Fit, Prediction, check_level
from isoflop.laws.split import Split
from isoflop.records import Interval, Record

FAR = 100.0  # times the largest fitted compute, from which a plan says so
WORTH_DRAWS = 100  # joint draws for the worth of a constraint; each is a search within a search


class Worth(Record):
    """What relaxing a constraint twofold would be worth, in doublings of the compute budget."""

    constraint: str
    sentence: str
    doublings: Interval


class LawPlan(Record):
    """The best use of `flops` under the constraints; `params`, `tokens` and `loss` carry intervals."""

    flops: float  # the whole budget, serving included
    train_flops: float
    params: Interval
    tokens: Interval
    loss: Prediction
    inference_tokens: float = 0.0
    unique_tokens: float | None = None
    max_params: float | None = None
    worth: tuple[Worth, ...] = ()
    notes: tuple[str, ...] = ()


def plan_law(
    fit: Fit,
    flops: float,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    max_params: float | None = None,
    others: Mapping[str, float] | None = None,
    interval: float = 0.9,
) -> LawPlan:
    """Size and tokens that reach the lowest loss for `flops`, by joint draws of the law.

    `inference_tokens` are served over the model's life and paid from the same budget (Sardana et al.
    2401.00448); beyond `unique_tokens` data are repeated, by the law's own terms or else at the rate of
    Muennighoff et al. 2305.16264; `max_params` caps N. Raises BudgetError for impossible numbers and
    FitError when the law has no best split.
    """
    check_level(interval)
    given = {"flops": flops, "unique_tokens": unique_tokens, "max_params": max_params}
    for name, value in given.items():
        if value is not None and not 0 < value < LARGEST:
            raise BudgetError(f"{name} is {value:g}", hint="give a positive number, e.g. 1e21")
    if not (np.isfinite(inference_tokens) and inference_tokens >= 0):
        raise BudgetError(f"inference_tokens is {inference_tokens:g}", hint="give 0 or more tokens")
    split = replace(
        fit.split(**(others or {})),
        inference_tokens=inference_tokens, unique_tokens=unique_tokens, max_params=max_params,
    )  # fmt: skip
    N, D, _ = (float(v[0]) for v in split.optimum(fit.theta, flops))
    if N < 1 or D < 1:
        raise BudgetError(f"{flops:g} FLOPs buy less than one parameter or token", hint="raise the budget")
    if not (np.isfinite(N) and np.isfinite(D) and D > 0):
        raise FitError(
            "The law has no best split of this budget: parameters or tokens do not matter in it.",
            hint="Add runs that vary both N and D by at least 4x, or ease the constraints.",
        )
    drawn = split.optimum(fit.draws_array, flops)
    loss = _loss(fit, split, N, D, interval)
    return LawPlan(
        flops=flops,
        train_flops=float(split.per_token(np.array(N)) * D),
        params=_interval(N, drawn[0], interval, "optimum"),
        tokens=_interval(D, drawn[1], interval, "optimum"),
        loss=loss,
        inference_tokens=inference_tokens,
        unique_tokens=unique_tokens,
        max_params=max_params,
        worth=tuple(_worths(fit, split, flops, interval)),
        notes=tuple(_notes(fit, flops, D / N, loss.extrapolation)),
    )


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


def _worths(fit: Fit, split: Split, flops: float, level: float) -> list[Worth]:
    """Every constraint relaxed twofold: the compute that would reach the same loss without that."""
    eased = []
    if split.unique_tokens is not None:
        eased.append(
            ("unique_tokens", "Twice the unique data", replace(split, unique_tokens=2 * split.unique_tokens))
        )
    if split.max_params is not None:
        eased.append(
            ("max_params", "Twice the parameters allowed", replace(split, max_params=2 * split.max_params))
        )
    if split.inference_tokens:
        eased.append(
            (
                "inference_tokens",
                "Half the tokens to serve",
                replace(split, inference_tokens=split.inference_tokens / 2),
            )
        )
    theta = np.concatenate([fit.theta, fit.draws_array[:WORTH_DRAWS]])
    out = []
    for name, words, other in eased:
        reached = split.compute_for(theta, other.optimum(theta, flops)[2])
        doublings = np.log2(np.where(np.isnan(reached), np.inf, reached) / flops)
        found = _interval(float(doublings[0]), doublings[1:], level, "doublings")
        amount = (
            f"{found.value:.2f} doublings of compute" if np.isfinite(found.value) else "more than any compute"
        )
        out.append(Worth(constraint=name, sentence=f"{words} would be worth {amount}.", doublings=found))
    return out


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
