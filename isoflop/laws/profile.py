"""Profile likelihood: how badly the runs are explained when one parameter is held at other values.

At each value all other free parameters are fitted again; the deviance is -2 ln of the likelihood ratio to the
fit, with the scale of the noise fitted too (`likelihood.deviance`). The interval holds the values whose
deviance is at most

    n ln(1 + t^2 / (n - p)),   t the quantile of Student's t with n - p degrees of freedom,

which is the t interval where the law is linear in its parameters (Bates and Watts 1988, chapter 6); its ends
are where the profile crosses that (Venzon and Moolgavkar 1988). It is independent of the bootstrap, follows
the bend of the law, and says when the runs set no bound at all.

That likelihood takes the noise as independent, even and of the estimator's density. Unless `robust` is off
the deviance is divided by Kent's factor (Kent 1982, for one parameter): the variance of the parameter that
the residuals show, clusters deviating together and their leverage taken out, over the one that the likelihood
believes; t then has at most G - 1 degrees of freedom for G clusters. With few clusters even that is too
narrow: 90% intervals of E and alpha held 76 to 92% with 3 to 8 clusters, 83 to 93% with 12 and 20
(records/2026-11-24_law-bootstrap), without the factor about half. The bootstrap is to be believed there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from isoflop.errors import FitError
from isoflop.laws import intervals, likelihood, solve
from isoflop.laws.fit import DELTA, Setting, ready
from isoflop.laws.linear import inverse_root, linearise, without_leverage
from isoflop.laws.registry import law_named
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array, Problem
from isoflop.records import Interval, Record

STEPS = np.array([0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.2, 4.0])  # of the first grid, in standard errors
GROWTH, GRIDS = np.array([1.5, 2.0, 3.0, 4.0]), 12  # of the grids after it, and how many at most
BETWEEN = 6  # points added around a crossing
SMOOTH = 1.06  # of the residuals' density at zero: Silverman's bandwidth in sds times n^-1/5
FEW = 12  # clusters, below which the profile is too narrow
FAR = 14.0  # logarithms (a factor of 1e6) from the fit, beyond which an interval is open


class Profile(Record):
    """The profile of one parameter; `deviance` is above the fit's, divided by `adjustment`."""

    name: str
    values: tuple[float, ...]  # rising, in the parameter's natural unit
    deviance: tuple[float, ...]
    cut: float  # the interval is where the deviance is at most this
    adjustment: float  # Kent's factor; 1 where the likelihood stands as it is
    interval: Interval  # an open end is the law's bound, or infinite
    closed: tuple[bool, bool]  # whether the deviance crosses the cut below and above the fit

    @property
    def sentence(self) -> str | None:
        """What the runs cannot say of the parameter; None when both ends are closed."""
        open_ends = [way for way, ok in zip(("below", "above"), self.closed, strict=True) if not ok]
        if not open_ends:
            return None
        ends = f"[{self.interval.low:.4g}, {self.interval.high:.4g}]"
        return f"{self.name} is not identified from {' or '.join(open_ends)}: its profile interval is {ends}."


@dataclass(frozen=True)
class Line:
    """One parameter's way through the parameter space; offsets z are of its logarithm if it is positive."""

    problem: Problem
    centre: Array
    theta: Array  # (1, p) the fit
    at: int
    direction: Array  # (p,) how the others follow a unit of z, to first order
    positive: np.ndarray  # (p,) which move by their logarithm
    se: float  # of z, roughly
    limits: tuple[float, float]  # sizes of z at the bounds below and above, `FAR` without one
    bounded: tuple[bool, bool]  # whether there are finite ones

    def points(self, z: Array) -> Array:
        """(k, p) where the others are expected at offsets z (k,)."""
        moved = z[:, None] * self.direction
        along = np.exp(np.clip(np.where(self.positive, moved, 0.0), -30.0, 30.0))
        return np.asarray(np.where(self.positive, self.theta * along, self.theta + moved))

    def values(self, z: Array) -> Array:
        """(k,) natural values of the parameter."""
        theta = np.repeat(self.theta, len(z), axis=0)
        theta[:, self.at] = self.points(z)[:, self.at]
        return np.asarray(self.problem.law.uncentre(theta, self.centre)[:, self.at])

    def totals(self, z: Array) -> Array:
        """(k,) objectives with the others fitted again."""
        others = np.arange(self.theta.shape[1]) != self.at
        return solve.minimise(self.problem, self.points(z), free=others)[1]


def profile(fit: Fit, name: str, level: float = 0.9, *, robust: bool = True) -> Profile:
    """The profile likelihood of the parameter `name`, and its central interval at `level`.

    With the weak prior of small tables its penalty is part of the likelihood, an observation more for each
    exponent. `robust` off takes every run as independent and the noise as the estimator's.
    Raises FitError for a published law (no runs), an unknown or fixed parameter, or an impossible level.
    """
    intervals.check_level(level)
    setting = _setting(fit, name)
    line = _line(setting, fit, name)
    problem = setting.problem
    n = fit.n + (len(problem.prior.at) if problem.prior else 0)
    df = n - int(problem.free.sum())
    adjustment = _adjustment(setting, fit, line, df) if robust else 1.0
    t = intervals.student_t(intervals.tails(level)[1], min(df, max(1, fit.n_clusters - 1)) if robust else df)
    cut = n * float(np.log1p(t**2 / df))
    lowest = problem.objective(line.theta)

    def deviance(z: Array) -> Array:
        both = likelihood.deviance(np.concatenate([lowest, line.totals(z)]), n, problem.delta)
        return np.asarray(np.maximum(both[1:] - both[0], 0.0) / adjustment)

    sides = [_side(deviance, line, sign, cut) for sign in (-1.0, 1.0)]
    z = np.concatenate([sides[0].z[::-1], [0.0], sides[1].z])
    low, high = (_end(line, side, sign) for side, sign in zip(sides, (-1, 1), strict=True))
    return Profile(
        name=name,
        values=tuple(line.values(z).tolist()),
        deviance=(*sides[0].deviance[::-1].tolist(), 0.0, *sides[1].deviance.tolist()),
        cut=cut,
        adjustment=adjustment,
        interval=Interval(value=fit.params[name], low=low, high=high, level=level, of="parameter"),
        closed=(sides[0].end is not None, sides[1].end is not None),
    )


def profiles(fit: Fit, level: float = 0.9, *, robust: bool = True) -> dict[str, Profile]:
    """The profile of every free parameter. Raises FitError as `profile` does."""
    return {name: profile(fit, name, level, robust=robust) for name in fit.params if name not in fit.fixed}


def _setting(fit: Fit, name: str) -> Setting:
    """The problem that `fit` solved, in coordinates in which `name` depends on no other parameter."""
    law = law_named(fit.law)
    if name not in law.names:
        raise FitError(
            f"The law {law.name} has no parameter {name!r}.", hint=f"It has {', '.join(law.names)}."
        )
    if name in fit.fixed:
        raise FitError(f"{name} was fixed at {fit.params[name]:g}.", hint="Fit it, to have its profile.")
    if not fit.n:
        raise FitError("Published constants have no runs to profile.", hint="Fit a table of runs.")
    held = {key: fit.params[key] for key in fit.fixed}
    delta = fit.delta if fit.estimator == "huber-sum" else DELTA
    setting, _ = ready(fit.observations, law, held, fit.estimator, delta)
    inner = law.recentre(fit.theta, setting.centre)
    at = law.names.index(name)
    others = np.where(np.arange(inner.shape[1]) == at, inner, inner + 0.01 * (1.0 + np.abs(inner)))
    if np.isclose(law.uncentre(others, setting.centre)[0, at], fit.theta[0, at], rtol=1e-9):
        return setting
    x, centre = law.features(fit.observations.arrays(), centred=False)
    return replace(setting, problem=replace(setting.problem, x=x), centre=centre)


def _line(setting: Setting, fit: Fit, name: str) -> Line:
    problem = setting.problem
    law = problem.law
    theta = law.recentre(fit.theta, setting.centre)
    at, p = law.names.index(name), theta.shape[1]
    positive = (law.lower >= 0) & (theta[0] > 0)
    scale = np.where(positive, theta[0], 1.0)
    linear = linearise(problem, theta)
    if at not in linear.at:  # at its bound: moved off it, and alone
        alone = replace(problem, free=np.arange(p) == at)
        linear = linearise(alone, np.clip(theta, law.lower + 1e-9, law.upper - 1e-9))
    root, own = inverse_root(linear.information), linear.at == at
    along = (root.T @ root)[own][0]
    variance = float(along[own][0])
    direction = np.zeros(p)
    direction[linear.at] = along / variance / scale[linear.at] * scale[at]
    noise = float(np.sqrt(np.mean(np.square(fit.residuals)) * fit.n / max(1, fit.n - problem.free.sum())))
    size = theta[0, at]
    with np.errstate(divide="ignore"):
        ends = np.array([law.lower[at], law.upper[at]])
        reach = np.abs(np.log(ends / size)) if positive[at] else np.abs(ends - size)
    limits = np.where(np.isfinite(reach), reach, FAR)
    se = float(np.clip(np.sqrt(variance) * noise / scale[at], 1e-9, FAR / STEPS[-1]))
    return Line(
        problem, setting.centre, theta, at, direction, positive, se,
        (float(limits[0]), float(limits[1])), (bool(np.isfinite(reach[0])), bool(np.isfinite(reach[1]))),
    )  # fmt: skip


class Side(NamedTuple):
    """One side of a profile, outwards from the fit."""

    z: Array  # (k,) offsets, signed
    deviance: Array  # (k,)
    end: float | None  # where the deviance crosses the cut; None when it never does


def _side(deviance: Callable[[Array], Array], line: Line, sign: float, cut: float) -> Side:
    """Grids further and further out until the deviance crosses `cut` or the limit comes, then a fine one."""
    limit = line.limits[int(sign > 0)]
    size, found = np.zeros(1), np.zeros(1)
    steps = STEPS * line.se
    for _ in range(GRIDS):
        steps = np.unique(np.minimum(steps, limit))
        if steps[-1] > size[-1]:
            size, found = np.append(size, steps), np.append(found, deviance(sign * steps))
        if found.max() > cut or steps[-1] >= limit:
            break
        steps = GROWTH * steps[-1]
    if found.max() <= cut:
        return Side(sign * size[1:], found[1:], None)
    out = int(np.argmax(found > cut))
    between = np.linspace(size[out - 1], size[out], BETWEEN + 2)[1:-1]
    size, found = np.insert(size, out, between), np.insert(found, out, deviance(sign * between))
    out = int(np.argmax(found > cut))
    # The root of the deviance is nearly straight, and is the signed t of Bates and Watts.
    root = np.sqrt(found[out - 1 : out + 1])
    share = (np.sqrt(cut) - root[0]) / (root[1] - root[0])
    end = size[out - 1] + share * (size[out] - size[out - 1])
    return Side(sign * size[1:], found[1:], float(sign * end))


def _end(line: Line, side: Side, sign: int) -> float:
    """The end: the crossing, or the law's bound; without either infinity, or zero for what is positive."""
    above = sign > 0
    if side.end is not None:
        return float(line.values(np.array([side.end]))[0])
    if line.bounded[above]:
        return float(line.values(np.array([sign * line.limits[above]]))[0])
    if above:
        return float(np.inf)
    return float(-np.inf) if line.values(np.array([-1e6]))[0] < 0 else 0.0


def _adjustment(setting: Setting, fit: Fit, line: Line, df: int) -> float:
    """Kent's factor: the sandwich variance of the parameter over that by the curvature alone; 1 at least.

    The likelihood of a residual at scale s has curvature E psi' / s^2. psi' is 1 inside the Huber width, 0
    outside; the share inside a narrow width is that within `h`, in proportion.
    """
    problem, residual = setting.problem, np.array(fit.residuals)
    moving = linearise(problem, line.theta)
    if line.at not in moving.at:
        return 1.0
    n, weight = fit.n, problem.weight[0]
    size = np.abs(residual)
    h = max(problem.delta, SMOOTH * 1.4826 * float(np.median(size)) * n**-0.2)
    inside = 1.0 if np.isinf(h) else float((size <= h).mean()) * problem.delta / h
    clipped = np.clip(residual, -problem.delta, problem.delta)
    psi = np.sqrt(weight) * without_leverage(problem, line.theta, setting.cluster, clipped, 0.5)
    root = inverse_root(moving.information)
    score = (root.T @ root @ moving.slopes)[moving.at == line.at][0]
    together = np.bincount(setting.cluster, score * psi)
    scale = likelihood.scale(np.array([likelihood.huber(residual, problem.delta)]), n, problem.delta)[0]
    alone = inside * scale**2 * n / df * float((score**2).sum())
    return max(1.0, float((together**2).sum() / alone))
