"""Hoffmann's approaches 1 and 2 (2203.15556, sections 3.1 and 3.2): the best size without a law of the loss.

Approach 1 takes the envelope: at every compute the run with the lowest loss. Approach 2 fits a parabola to
the loss against ln N at each compute budget and takes its lowest point. Both then fit N* = G C^a.

The parabola is biased where the law's exponents differ: on an additive law its lowest point is off by a
factor that does not depend on C, so a is right and G is not (Czech et al. 2603.22339). `bias` is that
factor, from approach 3's exponents on the slice's own sizes, and `params` are corrected for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.laws import intervals
from isoflop.laws.fit import fit
from isoflop.laws.observations import Observations
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.records import Interval, Record

SLICE = 0.1  # runs whose compute agrees within this share are one budget
LEAST = 4  # runs of a slice
BINS_A_TENFOLD = 8  # computes of the envelope
DRAWS = 1000


class Slice(Record):
    """One compute budget: its best size by the parabola, before and after the correction."""

    flops: float
    runs: int
    params_parabola: float
    bias: float  # parabola's lowest point over the law's, on these sizes
    params: float
    inside: bool  # the lowest point lies among the slice's sizes


class Frontier(Record):
    """N* = coefficient C^exponent, with intervals from resampled budgets."""

    approach: str  # "envelope" or "parabolas"
    coefficient: float
    exponent: Interval
    slices: tuple[Slice, ...] = ()
    flops: tuple[float, ...]
    params: tuple[float, ...]

    def at(self, flops: float) -> float:
        """N* at a compute."""
        return float(self.coefficient * flops**self.exponent.value)


def parabolas(
    table: Observations | Mapping[str, Any] | Any, *, level: float = 0.9, seed: int = 0
) -> Frontier:
    """Approach 2 with its bias corrected. Raises FitError with fewer than two usable budgets."""
    intervals.check_level(level)
    seen = Observations.of(table)
    law = fit(seen, bootstrap=0)
    C, N, L = seen.compute(), np.array(seen.params), np.array(seen.loss)
    order = np.argsort(C, kind="stable")
    starts = np.flatnonzero(np.diff(np.log(C[order]), prepend=-np.inf) > SLICE)
    found = []
    for part in np.split(order, starts[1:]):
        if len(np.unique(N[part])) >= LEAST and (one := _slice(law, N[part], L[part], float(C[part].mean()))):
            found.append(one)
    if len(found) < 2:
        raise FitError(
            f"Only {len(found)} compute budgets have {LEAST} sizes and a lowest point.",
            hint="Approach 2 needs isoFLOP slices; fit a law instead.",
        )
    flops, params = [s.flops for s in found], [s.params for s in found]
    return _frontier("parabolas", flops, params, level, seed, tuple(found))


def envelope(table: Observations | Mapping[str, Any] | Any, *, level: float = 0.9, seed: int = 0) -> Frontier:
    """Approach 1: the size with the lowest loss at every compute. Raises FitError without two computes."""
    intervals.check_level(level)
    seen = Observations.of(table)
    C, N, L = seen.compute(), np.array(seen.params), np.array(seen.loss)
    width = np.log(10.0) / BINS_A_TENFOLD
    bins = np.floor((np.log(C) - np.log(C.min())) / width + 1e-9).astype(int)
    best = [rows[np.argmin(L[rows])] for b in np.unique(bins) if len(rows := np.flatnonzero(bins == b)) > 1]
    # A run above a cheaper one's loss is on no envelope.
    best = [i for i in best if L[C[i] >= C].min() >= L[i]]
    if len(best) < 2:
        raise FitError("Fewer than two computes have several runs.", hint="Approach 1 needs a dense sweep.")
    return _frontier("envelope", C[best].tolist(), N[best].tolist(), level, seed)


def bias(log_sizes: Array, alpha: float, beta: float) -> float:
    """Factor by which a parabola through an additive law at constant C misses its lowest point.

    `log_sizes` (n,) are ln(N/N*); there the law is E + R ((beta/alpha) e^(-alpha w) + e^(beta w)).
    """
    loss = beta / alpha * np.exp(-alpha * log_sizes) + np.exp(beta * log_sizes)
    second, first, _ = np.polyfit(log_sizes, loss, 2)
    return float(np.exp(-first / (2.0 * second)))


def _slice(law: Fit, N: Array, L: Array, flops: float) -> Slice | None:
    """None where the parabola has no lowest point."""
    x = np.log(N)
    second, first, _ = np.polyfit(x - x.mean(), L, 2)
    if second <= 0:
        return None
    lowest = float(np.exp(x.mean() - first / (2.0 * second)))
    best = float(law.split().optimum(law.theta, flops)[0][0])
    off = bias(x - np.log(best), law.params["alpha"], law.params["beta"])
    return Slice(
        flops=flops, runs=len(N), params_parabola=lowest, bias=off, params=lowest / off,
        inside=bool(N.min() <= lowest <= N.max()),
    )  # fmt: skip


def _frontier(
    approach: str,
    flops: list[float],
    params: list[float],
    level: float,
    seed: int,
    slices: tuple[Slice, ...] = (),
) -> Frontier:
    x, y = np.log(flops), np.log(params)
    rng = np.random.default_rng(seed)
    exponent, intercept = np.polyfit(x, y, 1)
    draws = []
    for index in rng.integers(len(x), size=(DRAWS, len(x))):
        if np.ptp(x[index]) > 0:
            draws.append(np.polyfit(x[index], y[index], 1)[0])
    low, high = intervals.quantiles(np.array(draws), level)
    value = float(exponent)
    ends = Interval(value=value, low=min(low, value), high=max(high, value), level=level, of="parameter")
    return Frontier(
        approach=approach, coefficient=float(np.exp(intercept)), exponent=ends,
        slices=slices, flops=tuple(flops), params=tuple(params),
    )  # fmt: skip
