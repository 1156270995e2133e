"""Which law the runs support: AICc, BIC and ordered hold-outs must agree, or nothing is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.laws.fit import DELTA, fit
from isoflop.laws.observations import Observations
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.saved import load
from isoflop.laws.table import TABLES, parse_mapping, read_table
from isoflop.records import Record

OF_SIZE_AND_DATA = (
    "chinchilla", "coupled", "kaplan", "multiplicative", "over-training", "shifted-additive",
    "bounded-additive",
)  # fmt: skip
OF_ONE = ("power", "power-floor", "shifted", "saturating", "bounded", "broken-1", "broken-2")
UNDECIDED = 2.0  # differences of AICc or BIC below it decide nothing: Burnham and Anderson 2002


class Candidate(Record):
    """One law's scores; lower is better in each."""

    law: str
    free: int
    aicc: float | None
    bic: float
    holdout: float | None  # root mean square relative error of the ordered hold-outs


class Comparison(Record):
    """The candidates, the best by AICc first, and what they decide together."""

    candidates: tuple[Candidate, ...]
    chosen: str | None  # None: undecided
    verdict: str

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: law, free parameters, AICc, BIC, hold-out error."""
        return [
            (
                c.law, str(c.free), "" if c.aicc is None else f"{c.aicc:.1f}", f"{c.bic:.1f}",
                "" if c.holdout is None else f"{100 * c.holdout:.2f}%",
            )
            for c in self.candidates
        ]  # fmt: skip


def compare(table: Observations | Any, laws: Sequence[str], **options: Any) -> Comparison:
    """Fit every law to the same runs with the same `options` of `fit`, and compare them.

    Every law is held out on the same runs; laws with more than half as many free parameters as there are runs
    are left out. Raises FitError when fewer than two can be fitted.
    """
    least = 2 * max(len(law_named(name).names) - len(law_named(name).held) for name in laws)
    fits: list[Fit] = []
    for name in laws:
        try:
            found = fit(table, law=name, bootstrap=0, holdout_least=least, **options)
        except FitError:
            continue
        if found.n >= 2 * (len(found.params) - len(found.fixed)):
            fits.append(found)
    if len(fits) < 2:
        raise FitError("Fewer than two laws can be fitted to this table.", hint="Name one law, or add runs.")
    candidates = sorted((_candidate(f) for f in fits), key=lambda c: (c.aicc is None, c.aicc))
    return Comparison(candidates=tuple(candidates), **_verdict(candidates))


def applicable(columns: Mapping[str, Any]) -> tuple[str, ...]:
    """The laws to compare for a table with these columns."""
    if {"params", "tokens"} <= columns.keys() or {"params", "flops"} <= columns.keys():
        return (*OF_SIZE_AND_DATA, *(["repeated-data"] if "unique_tokens" in columns else []))
    if "task_loss" in columns:
        return ("downstream-exponential", "downstream-sigmoid")
    return OF_ONE


def fit_table(
    path: str, *, law: str = "chinchilla", estimator: str = "huber-sum", delta: float | None = None,
    bootstrap: int = 1000, resample: str = "auto", model_error: float | None = None,
    ceiling: float | None = None, seed: int = 0, mapping: Sequence[str] = (),
    where: Sequence[str] = (), fixed: Sequence[str] = (),
) -> tuple[Fit, Comparison | None]:  # fmt: skip
    """Fit a law to a file (see `table`), or with "auto" the one that the comparison decides on, if any.

    `mapping`, `where` and `fixed` are NAME=VALUE words. Undecided, the simplest usual law is fitted.
    """
    columns, notes = read_table(path, parse_mapping(mapping), parse_mapping(where))
    options: dict[str, Any] = {
        "estimator": estimator,
        "delta": DELTA if delta is None else delta,
        "resample": resample,
        "model_error": model_error,
        "seed": seed,
        "ceiling": ceiling,
    }
    comparison = None
    if law == "auto":
        laws = applicable(columns)
        comparison = compare(columns, laws, **options)
        # Undecided, the usual law of N and D stays; among others the best by AICc.
        law = comparison.chosen or ("chinchilla" if "chinchilla" in laws else comparison.candidates[0].law)
        comparison = comparison.model_copy(update={"verdict": f"{comparison.verdict} Fitted: {law}."})
    held = {name: _number(name, word) for name, word in parse_mapping(fixed).items()}
    found = fit(columns, law=law, bootstrap=bootstrap, fixed=held, keep_draws=max(400, bootstrap), **options)
    return found.model_copy(update={"diagnostics": (*notes, *found.diagnostics)}), comparison


def law_of(word: str, *, mapping: Sequence[str] = (), seed: int = 0) -> Fit:
    """A law from a table of runs, a saved fit, or a published law's name."""
    if "".join(Path(word).suffixes[-2:]).endswith(TABLES):
        return fit_table(word, mapping=mapping, seed=seed)[0]
    return load(word)


def _number(name: str, word: str) -> float | None:
    """A value to hold a parameter at; None for "free"."""
    if word == "free":
        return None
    try:
        return float(word)
    except ValueError:
        raise FitError(
            f"{name} cannot be fixed at {word!r}.", hint="Give a number, or the word free."
        ) from None


def _candidate(found: Fit) -> Candidate:
    errors = np.array([row.error for row in found.holdout])
    assert found.bic is not None
    return Candidate(
        law=found.law,
        free=len(found.params) - len(found.fixed),
        aicc=found.aicc,
        bic=found.bic,
        holdout=float(np.sqrt(np.mean(errors**2))) if len(errors) else None,
    )


def _verdict(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The law that is best by all three, by a margin; else none, and why."""
    best: dict[str, str] = {}
    close: list[str] = []
    for word, key in (("AICc", "aicc"), ("BIC", "bic"), ("hold-out", "holdout")):
        scored = sorted((getattr(c, key), c.law) for c in candidates if getattr(c, key) is not None)
        if not scored:
            continue
        best[word] = scored[0][1]
        if key != "holdout" and len(scored) > 1 and scored[1][0] - scored[0][0] < UNDECIDED:
            close.append(f"{word} of {scored[0][1]} and {scored[1][1]} differ by less than {UNDECIDED:g}")
    if len(set(best.values())) == 1 and not close:
        law = next(iter(best.values()))
        return {"chosen": law, "verdict": f"{law}: best by {', '.join(best)}."}
    reasons = close or [f"{word} prefers {law}" for word, law in best.items()]
    return {"chosen": None, "verdict": f"Undecided: {'; '.join(reasons)}."}
