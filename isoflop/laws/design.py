"""The next run to make: which (N, D) tells most about the target for its price, by optimal design.

Near the fitted parameters the law is linear in them, so with G the derivatives of ln L at the runs and V
their covariance the information is M = G' V^-1 G (and the prior's). A candidate with derivative g and
variance v lowers the variance of a quantity with derivative t by (t' M^-1 g)^2 / (v + g' M^-1 g): Fedorov's
exchange for c-optimality (Pukelsheim, Optimal Design of Experiments, 1993, chapter 2). v holds the noise of a
run, and the law's own error between the candidate's compute and the target's, so that tiny runs do not count
as if the law were exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from isoflop.errors import BudgetError, FitError
from isoflop.laws import intervals
from isoflop.laws.fit import PRIOR_SD
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit, check_level
from isoflop.laws.solve import Array
from isoflop.records import Record

SIZES, COUNTS = 24, 24  # candidate grid
LARGEST_SHARE = 0.1  # of the target's compute that one candidate may cost
TELLING = 0.5  # of the largest reduction that a candidate must bring
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
    """Candidates, the most informative a FLOP first, and whether any is worth its price."""

    target_flops: float
    level: float
    aim: str
    loss_half_width: float  # before
    split_factor: float
    runs: tuple[NextRun, ...]
    worth_it: bool
    sentence: str


def next_run(
    fit: Fit,
    flops: float,
    *,
    aim: str = "loss",
    share: float = LARGEST_SHARE,
    keep: int = 5,
    level: float = 0.9,
) -> Design:
    """The runs that would teach most about the best model of `flops`.

    `aim` "loss" ranks runs by how much they lower the uncertainty of its loss per FLOP, "split" by what a
    better N* is expected to save less what they cost. A run costs at most `share` of the target, and is
    worth it when the nats that a better split saves are more than its own FLOPs would have bought in the
    final run. Raises BudgetError, or FitError when the law has no best split or was fitted without runs.
    """
    _check(fit, flops, aim, share, level)
    split = fit.split()
    N_star, D_star, L_star = (float(v[0]) for v in split.optimum(fit.theta, flops))
    if not np.isfinite(N_star):
        raise FitError(
            "The fitted law has no best split.", hint="Add runs that vary both N and D by at least 4x."
        )
    candidates = _candidates(fit, N_star, D_star, flops * share)
    cost = split.per_token(candidates[0]) * candidates[1]
    inverse = np.linalg.pinv(_information(fit), hermitian=True)
    g = _slopes(fit, *candidates)  # (c, p)
    targets = {
        "loss": _slopes(fit, np.array([N_star]), np.array([D_star]))[0],
        "split": _split_slope(fit, flops),
    }
    noise = _candidate_variance(fit, cost, flops)
    spread = noise + np.einsum("cp,pq,cq->c", g, inverse, g)
    before = {k: float(t @ inverse @ t) for k, t in targets.items()}
    lower = {k: (g @ inverse @ t) ** 2 / spread for k, t in targets.items()}
    bend = _bend(fit, flops, N_star)
    saved = 0.5 * bend * lower["split"]
    price = (
        np.array([float(split.optimum(fit.theta, max(flops - c, flops / 2))[2][0]) for c in cost]) - L_star
    )
    # Per FLOP the smallest run always wins: among those that tell at least half of what can be told.
    telling = lower["loss"] >= TELLING * lower["loss"].max()
    rank = np.where(telling, lower["loss"] / cost, 0.0) if aim == "loss" else saved - price
    order = np.argsort(-rank)[:keep]
    z = NormalDist().inv_cdf(intervals.tails(level)[1])
    rest = fit.noise_sd**2 + fit.model_sd(N_star, D_star) ** 2

    def width(variance: float) -> float:
        return float(z * np.sqrt(max(variance, 0.0) + rest))

    def factor(variance: float) -> float:
        return float(np.exp(min(z * np.sqrt(max(variance, 0.0)), 100.0)))

    runs = tuple(
        NextRun(
            params=float(candidates[0][i]), tokens=float(candidates[1][i]), flops=float(cost[i]),
            loss_half_width=width(before["loss"] - lower["loss"][i]),
            split_factor=factor(before["split"] - lower["split"][i]),
            regret_saved=float(saved[i]), price=float(price[i]),
        )
        for i in order
    )  # fmt: skip
    worth = bool((saved > price).any())
    return Design(
        target_flops=flops, level=level, aim=aim, loss_half_width=width(before["loss"]),
        split_factor=factor(before["split"]), runs=runs, worth_it=worth,
        sentence=_sentence(runs, worth, width(before["loss"])),
    )  # fmt: skip


def _check(fit: Fit, flops: float, aim: str, share: float, level: float) -> None:
    """Raises FitError or BudgetError when there is nothing to design."""
    if aim not in AIMS:
        raise FitError(f"There is no aim {aim!r}.", hint=f"Use one of: {', '.join(AIMS)}.")
    check_level(level)
    if not 0 < share <= 1:
        raise BudgetError(f"a share of {share:g} is not between 0 and 1", hint="give e.g. --share 0.1")
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
            out[i, i] += 1.0 / (PRIOR_SD * fit.theta[0, i]) ** 2
    return out


def _candidate_variance(fit: Fit, cost: Array, flops: float) -> Array:
    """(c,) relative variance of what a candidate says of the target: noise, and the law's error between."""
    return np.asarray(fit.noise_sd**2 + intervals.model_sd(flops / cost, fit.model_sigma) ** 2)


def _split_slope(fit: Fit, flops: float) -> Array:
    """(p,) derivative of ln N* in the solver's coordinates."""
    law = law_named(fit.law)
    zero = law.features({"params": np.ones(2), "tokens": np.ones(2)}, centred=False)[1]
    inner = law.recentre(fit.theta, zero)[0]
    step = STEP * np.maximum(np.abs(inner), STEP)
    ends = [law.uncentre(inner + sign * np.diag(step), zero) for sign in (1, -1)]
    logs = [np.log(fit.split().optimum(end, flops)[0]) for end in ends]
    return np.asarray(np.nan_to_num((logs[0] - logs[1]) / (2 * step)))


def _bend(fit: Fit, flops: float, N_star: float) -> float:
    """Second derivative of L in ln N at constant compute, at the best split: what a wrong split costs."""
    h = 0.05
    N = N_star * np.exp(h * np.array([-1.0, 0.0, 1.0]))
    L = fit.loss(N, fit.split().tokens(N, np.array(flops)))
    return float((L[0] - 2 * L[1] + L[2]) / h**2)


def _sentence(runs: Sequence[NextRun], worth: bool, before: float) -> str:
    best = runs[0]
    out = (
        f"Next: {best.params:.3g} parameters on {best.tokens:.3g} tokens ({best.flops:.3g} FLOPs);"
        f" after it the target's loss is known within {100 * best.loss_half_width:.1f}% and its size within a"
        f" factor {best.split_factor:.2f}."
    )
    if best.loss_half_width > 0.995 * before:
        out += " That is hardly more than is known now: the rest is the law's own error so far out."
    if worth:
        return f"{out} Some run is worth its price for the split alone."
    return (
        f"{out} No further run pays for itself by a better split: stop unless the prediction must be sharper."
    )
