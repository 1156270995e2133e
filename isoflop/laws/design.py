"""The next run to make: which (N, D) tells most about the target for its price, by optimal design.

Near the fitted parameters the law is linear in them, so with G the derivatives of ln L at the runs and V
their covariance the information is M = G' V^-1 G (and the prior's). A candidate with derivative g and
variance v lowers the variance of a quantity with derivative t by (t' M^-1 g)^2 / (v + g' M^-1 g): Fedorov's
exchange for c-optimality (Pukelsheim, Optimal Design of Experiments, 1993, chapter 2). v holds the noise of a
run, and the law's own error between the candidate's compute and the target's, so that tiny runs do not count
as if the law were exact. A run near the target also shortens the reach, with which that error grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from isoflop.errors import BudgetError, FitError
from isoflop.laws import intervals
from isoflop.laws.fit import PRIOR_SD
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.records import Record

SIZES, COUNTS = 24, 24  # candidate grid
LARGEST_SHARE = 0.1  # of the target's compute that one candidate may cost
TELLING = 0.5  # of the largest reduction that a candidate must bring
WANTED = 0.05  # half-width of the target's loss that a ladder aims for
MOST_RUNS = 30  # of a plan of runs
STEP = 1e-4  # of ln theta, for the derivative of N*
AIMS = ("loss", "split")


class NextRun(Record):
    """One candidate, and what is expected after it."""

    params: float
    tokens: float
    flops: float
    loss_half_width: float  # relative, of a new run at the target, at the level of the design
    split_factor: float  # N* is known within this factor, at the same level
    regret_saved: float  # nats expected at the target from a better split
    price: float  # nats that its FLOPs would have bought there instead


class Design(Record):
    """Candidates, the most informative a FLOP first; whether any is worth its price; and how far to go."""

    target_flops: float
    level: float
    aim: str
    loss_half_width: float  # before
    split_factor: float
    runs: tuple[NextRun, ...]
    worth_it: bool
    wanted: float  # half-width to reach
    steps: tuple[NextRun, ...]  # one run after another until the loss is known within `wanted`, if it can be
    reached: bool
    sentence: str

    @property
    def spending(self) -> float:
        """FLOPs of `steps`: what of the budget is worth spending on the ladder for that interval."""
        return sum(run.flops for run in self.steps)


class Known(NamedTuple):
    """What runs tell: their information on the parameters, and how far they reach."""

    inverse: Array  # (p, p) of the information matrix
    reach: float  # from them to the target: the least `intervals.growth`


class Judged(NamedTuple):
    """Of each candidate (c,): variances at the target after it, and nats saved and spent by it."""

    loss: Array  # relative variance of a new run at the target
    split: Array  # variance of ln N*
    saved: Array
    price: Array


@dataclass(frozen=True)
class Designer:
    """What runs would tell about the best model of `flops`. FitError when the law has no best split."""

    fit: Fit
    flops: float

    @cached_property
    def optimum(self) -> tuple[float, float, float]:
        """N*, D* and L* at the target."""
        N, D, L = (float(v[0]) for v in self.fit.split().optimum(self.fit.theta, self.flops))
        if not (np.isfinite(N) and np.isfinite(D) and N > 0 and D > 0):
            raise FitError(
                "The fitted law has no best split.", hint="Add runs that vary both N and D by at least 4x."
            )
        return N, D, L

    @cached_property
    def known(self) -> Known:
        """By the runs of the fit."""
        inverse = np.asarray(np.linalg.pinv(_information(self.fit), hermitian=True))
        return Known(inverse, float(self._growth(self.fit.observations.sizes()).min()))

    @cached_property
    def _targets(self) -> tuple[Array, Array]:
        """(p,) derivatives of ln L at the target, and of ln N*."""
        N, D, _ = self.optimum
        return _slopes(self.fit, np.array([N]), np.array([D]))[0], _split_slope(self.fit, self.flops)

    @cached_property
    def _bend(self) -> float:
        """Second derivative of L in ln N at constant compute, at the best split: what a wrong split costs."""
        h = 0.05
        N = self.optimum[0] * np.exp(h * np.array([-1.0, 0.0, 1.0]))
        L = self.fit.loss(N, self.fit.split().tokens(N, np.array(self.flops)))
        return float((L[0] - 2 * L[1] + L[2]) / h**2)

    def variances(self, known: Known) -> tuple[float, float]:
        """Of a new run at the target (relative), and of ln N*."""
        loss, split = (float(t @ known.inverse @ t) for t in self._targets)
        return loss + float(self._rest(known.reach)), split

    def _growth(self, sizes: Array) -> Array:
        """(n,) of runs (2, n) to the target."""
        return np.asarray(intervals.growth(np.array(self.optimum[:2])[:, None], sizes)[0])

    def _rest(self, reach: float | Array) -> Array:
        """Variance of a new run at the target that no parameter explains: noise, and the law's own error."""
        return np.asarray(self.fit.noise_sd**2 + intervals.model_sd(reach, self.fit.model_sigma) ** 2)

    def judge(self, known: Known, N: Array, D: Array, cost: Array, price: Array | None = None) -> Judged:
        """Candidates of N, D (c,) that cost so many training FLOPs; `price` is what each takes from the
        target's compute, its cost if not given."""
        g, spread = self._seen(known, N, D, cost)
        loss, split = self._targets
        lower = [(g @ known.inverse @ t) ** 2 / spread for t in (loss, split)]
        rest = self._rest(np.minimum(known.reach, self._growth(np.array([N, D]))))
        before = float(loss @ known.inverse @ loss)
        taken = np.minimum(cost if price is None else price, self.flops / 2)
        theta = np.repeat(self.fit.theta, len(N), axis=0)
        poorer = self.fit.split().optimum(theta, self.flops - taken)[2]
        return Judged(
            loss=np.maximum(before - lower[0], 0.0) + rest,
            split=np.maximum(float(split @ known.inverse @ split) - lower[1], 0.0),
            saved=0.5 * self._bend * lower[1],
            price=poorer - self.optimum[2],
        )

    def after(self, known: Known, N: float, D: float, cost: float) -> Known:
        """With one more run."""
        g, spread = self._seen(known, np.array([N]), np.array([D]), np.array([cost]))
        told = known.inverse @ g[0]
        reach = min(known.reach, float(self._growth(np.array([[N], [D]]))[0]))
        return Known(known.inverse - np.outer(told, told) / spread[0], reach)

    def _seen(self, known: Known, N: Array, D: Array, cost: Array) -> tuple[Array, Array]:
        """(c, p) slopes of candidates and (c,) variances of what is measured less what is predicted."""
        g = _slopes(self.fit, N, D)
        apart = intervals.model_sd(self.flops / cost, self.fit.model_sigma)
        return g, self.fit.noise_sd**2 + apart**2 + np.einsum("cp,pq,cq->c", g, known.inverse, g)


def next_run(
    fit: Fit,
    flops: float,
    *,
    aim: str = "loss",
    share: float = LARGEST_SHARE,
    keep: int = 5,
    level: float = 0.9,
    wanted: float = WANTED,
) -> Design:
    """The runs that would teach most about the best model of `flops`, and how many are worth making.

    `aim` "loss" ranks runs by how much they lower the uncertainty of its loss per FLOP, "split" by what a
    better N* is expected to save less what they cost. A run costs at most `share` of the target, and is
    worth it when the nats that a better split saves are more than its own FLOPs would have bought in the
    final run. `wanted` is the relative half-width of the target's loss at which further runs end.
    Raises BudgetError, or FitError when the law has no best split or was fitted without runs.
    """
    _check(fit, flops, aim, share, level, wanted)
    designer, z = Designer(fit, flops), NormalDist().inv_cdf(intervals.tails(level)[1])
    N, D = _candidates(fit, *designer.optimum[:2], flops * share)
    cost = fit.split().per_token(N) * D
    judged = designer.judge(designer.known, N, D, cost)
    before = designer.variances(designer.known)

    def described(judged: Judged, i: int) -> NextRun:
        return NextRun(
            params=float(N[i]), tokens=float(D[i]), flops=float(cost[i]),
            loss_half_width=float(z * np.sqrt(judged.loss[i])),
            split_factor=_factor(z, judged.split[i]),
            regret_saved=float(judged.saved[i]), price=float(judged.price[i]),
        )  # fmt: skip

    rank = telling(before[0], judged.loss, cost) if aim == "loss" else judged.saved - judged.price
    runs = tuple(described(judged, int(i)) for i in np.argsort(-rank)[:keep])
    known, width = designer.known, float(z * np.sqrt(before[0]))
    steps: list[NextRun] = []
    while width > wanted and len(steps) < MOST_RUNS:
        variance = designer.variances(known)[0]
        each = designer.judge(known, N, D, cost)
        i = choose(variance, each.loss, cost, (wanted / z) ** 2)
        if each.loss[i] > 0.995 * variance:
            break
        steps.append(described(each, i))
        known, width = designer.after(known, N[i], D[i], cost[i]), steps[-1].loss_half_width
    worth = bool((judged.saved > judged.price).any())
    found = Design(
        target_flops=flops, level=level, aim=aim, loss_half_width=float(z * np.sqrt(before[0])),
        split_factor=_factor(z, before[1]), runs=runs, worth_it=worth, wanted=wanted, steps=tuple(steps),
        reached=bool(width <= wanted), sentence="",
    )  # fmt: skip
    return found.model_copy(update={"sentence": _sentence(found)})


def choose(before: float, after: Array, price: Array, goal: float) -> int:
    """The candidate to take: the cheapest that brings the variance to `goal`, else the most `telling`."""
    enough = after <= goal
    if enough.any():
        return int(np.where(enough, price, np.inf).argmin())
    return int(telling(before, after, price).argmax())


def telling(before: float, after: Array, price: Array) -> Array:
    """(c,) rank of candidates by the variance that each lowers for its price.

    Per FLOP the smallest run always wins: only those that tell at least half of what can be told count.
    """
    lower = before - after
    return np.where(lower >= TELLING * lower.max(), lower / price, 0.0)


def _factor(z: float, variance: float) -> float:
    """N* is known within this factor."""
    return float(np.exp(min(z * np.sqrt(max(variance, 0.0)), 100.0)))


def _check(fit: Fit, flops: float, aim: str, share: float, level: float, wanted: float) -> None:
    """Raises FitError or BudgetError when there is nothing to design."""
    if aim not in AIMS:
        raise FitError(f"There is no aim {aim!r}.", hint=f"Use one of: {', '.join(AIMS)}.")
    intervals.check_level(level)
    if not 0 < share <= 1:
        raise BudgetError(f"a share of {share:g} is not between 0 and 1", hint="give e.g. --share 0.1")
    if not 0 < wanted < 1:
        raise BudgetError(f"a half-width of {wanted:g} is not between 0 and 1", hint="give e.g. 0.05")
    if not (np.isfinite(flops) and flops > 0):
        raise BudgetError(f"a target of {flops:g} FLOPs makes no sense", hint="give e.g. --flops 1e19")
    if not fit.n:
        raise FitError("Published constants have no runs to add to.", hint="Fit a table of runs.")


def _candidates(fit: Fit, N_star: float, D_star: float, dearest: float) -> tuple[Array, Array]:
    """(c,) N and D of a log grid from half the smallest run to the target, no dearer than allowed."""
    seen, split = fit.observations, fit.split()
    N, D = np.meshgrid(
        np.geomspace(min(seen.params) / 2, max(N_star, max(seen.params)), SIZES),
        np.geomspace(min(seen.tokens) / 2, max(D_star, max(seen.tokens)), COUNTS),
    )
    flat_n, flat_d = N.ravel(), D.ravel()
    C = split.per_token(flat_n) * flat_d
    kept = (dearest >= C) & (seen.compute().min() / 2 <= C)
    if not kept.any():
        raise BudgetError(
            f"no run costs as little as {dearest:.3g} FLOPs and as much as the smallest one measured",
            hint="raise --share or the target",
        )
    return flat_n[kept], flat_d[kept]


def _slopes(fit: Fit, N: Array, D: Array) -> Array:
    """(n, p) derivatives of ln L in the solver's coordinates without centring."""
    law = law_named(fit.law)
    x, centre = law.features({"params": N, "tokens": D}, centred=False)
    value, jac = law.jacobian(law.recentre(fit.theta, centre), x)
    return np.asarray((jac[0] / value[0]).T)


def _information(fit: Fit) -> Array:
    """(p, p) of the runs and the prior; runs of a trunk share its part of the noise."""
    law, seen = law_named(fit.law), fit.observations
    g = _slopes(fit, np.array(seen.params), np.array(seen.tokens))
    cluster = intervals.clusters_of(seen.cluster, fit.n)
    trunk = fit.trunk_sd**2
    run = fit.noise_sd**2 - trunk
    out = g.T @ g / run
    if trunk:
        sums = np.zeros((fit.n_clusters, g.shape[1]))
        np.add.at(sums, cluster, g)
        size = np.bincount(cluster)
        out -= (sums * (trunk / (run + size * trunk) / run)[:, None]).T @ sums
    if fit.prior:
        for i in law.exponents_at:
            out[i, i] += 1.0 / (PRIOR_SD * max(fit.theta[0, i], 1e-6)) ** 2
    return out


def _split_slope(fit: Fit, flops: float) -> Array:
    """(p,) derivative of ln N* in the solver's coordinates."""
    law = law_named(fit.law)
    zero = law.features({"params": np.ones(2), "tokens": np.ones(2)}, centred=False)[1]
    inner = law.recentre(fit.theta, zero)[0]
    step = STEP * np.maximum(np.abs(inner), STEP)
    ends = [law.uncentre(inner + sign * np.diag(step), zero) for sign in (1, -1)]
    logs = [np.log(fit.split().optimum(end, flops)[0]) for end in ends]
    return np.asarray(np.nan_to_num((logs[0] - logs[1]) / (2 * step)))


def _sentence(found: Design) -> str:
    best = found.runs[0]
    parts = [
        f"Next: {best.params:.3g} parameters on {best.tokens:.3g} tokens ({best.flops:.3g} FLOPs); after it"
        f" the target's loss is known within {100 * best.loss_half_width:.1f}% and its size within a factor"
        f" {best.split_factor:.2f}.",
        _how_far(found),
        "Some run is worth its price for the split alone."
        if found.worth_it
        else "No further run pays for itself by a better split.",
    ]
    return " ".join(parts)


def _how_far(found: Design) -> str:
    """How much of the whole budget is worth spending for the wanted interval."""
    wanted = f"{100 * found.wanted:g}%"
    if found.loss_half_width <= found.wanted:
        return f"The loss is known within {wanted} already: stop unless it must be sharper."
    if not found.steps:
        return "Runs of that price hardly narrow it: the rest is the law's own error so far out."
    runs = _count(found.steps)
    share = f"{found.spending:.3g} FLOPs, {100 * found.spending / found.target_flops:.2g}% of the target"
    if found.reached:
        return f"{runs} ({share}) would bring it within {wanted}."
    return (
        f"{runs} ({share}) would bring it within {100 * found.steps[-1].loss_half_width:.1f}%, not {wanted}."
    )


def _count(steps: Sequence[NextRun]) -> str:
    return "One such run" if len(steps) == 1 else f"{len(steps)} such runs"
