"""Shapes of growth: ln(value) against time, each linear once its few shape parameters are given.

    ln y(t) = o(t; s) + X(t; s) c

so the coefficients c are eliminated exactly (variable projection) and only the shape parameters s (dates of
breaks, the date of a singularity, a ceiling's date and steepness) are searched. Time u is in years from the
centre of the fitted points. To add a shape: a class here, and its line in `SHAPES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from isoflop.trend.points import Floats

EDGE, EDGE_SHARE = 4, 0.05  # points before the first break, after the last and between two; of all at least
GRID = 60  # candidate positions of a break where the data have more
PAIR_GRID = 24  # the same for each of two breaks
JUMP_GRID = 200  # the same for a jump, which cannot be refined
SMOOTH = 0.1  # f of the broken power law: the width of its bend in ln(time)


class Span(NamedTuple):
    """Where the fitted points lie, in decimal years."""

    centre: float
    first: float
    last: float

    @classmethod
    def of(cls, years: Floats) -> Span:
        return cls(float(years.mean()), float(years.min()), float(years.max()))


class Shape(ABC):
    """One growth model. `k` counts coefficients, shape parameters and the noise."""

    name: str
    formula: str
    linear: tuple[str, ...]  # names of c
    shape: tuple[str, ...] = ()  # names of s
    smooth: bool = True  # a grid's best s can be refined

    @property
    def k(self) -> int:
        return len(self.linear) + len(self.shape) + 1

    @property
    def least(self) -> int:
        """Points that a fit needs: AICc exists; pieces need more (`edge`)."""
        return self.k + 2

    @abstractmethod
    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        """(g, q) candidate shape parameters for (n,) sorted times and ln values; g is 0 if there are none."""

    @abstractmethod
    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        """(g, n, p) X at (n,) times for (g, q) shape parameters."""

    def offset(self, u: Floats, s: Floats, span: Span) -> Floats:
        """(g, n) o at (n,) times."""
        return np.zeros((len(s), len(u)))

    def dated(self, s: Floats, span: Span) -> dict[str, float]:
        """Shape parameters by name, dates as decimal years."""
        return {name: float(v) + span.centre for name, v in zip(self.shape, s, strict=True)}

    def slopes(self, c: Floats, s: Floats, span: Span) -> dict[str, float]:
        """Growth rates a year of ln(value) that the fit says in words; piecewise shapes give each piece's."""
        return {}


class Exponential(Shape):
    """A constant rate: ordinary least squares on ln(value)."""

    name, formula, linear = "exponential", "ln y = a + b t", ("level", "rate")

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        return np.empty((1, 0))

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        return _stack(np.ones((len(s), 1)), np.broadcast_to(u, (len(s), len(u))))

    def slopes(self, c: Floats, s: Floats, span: Span) -> dict[str, float]:
        return {"rate": float(c[1])}


class Quadratic(Shape):
    """A rate that changes steadily."""

    name, formula = "quadratic", "ln y = a + b t + c t^2"
    linear = ("level", "rate", "curvature")

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        return np.empty((1, 0))

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        at = np.broadcast_to(u, (len(s), len(u)))
        return _stack(np.ones((len(s), 1)), at, at**2)

    def slopes(self, c: Floats, s: Floats, span: Span) -> dict[str, float]:
        return {"first rate": float(c[1] + 2 * c[2] * (span.first - span.centre)),
                "last rate": float(c[1] + 2 * c[2] * (span.last - span.centre))}  # fmt: skip


class Kinked(Shape):
    """Two rates that meet at a break."""

    name, formula = "kinked", "ln y = a + b t + d (t - break)+"
    linear, shape = ("level", "rate", "change"), ("break",)

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        return break_grid(u, GRID)[:, None]

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        return _broken_line(u, s)

    def slopes(self, c: Floats, s: Floats, span: Span) -> dict[str, float]:
        return _piece_rates(c)


class KinkedTwice(Shape):
    """Three rates that meet at two breaks."""

    name, formula = "kinked-2", "ln y = a + b t + d (t - break 1)+ + e (t - break 2)+"
    linear, shape = ("level", "rate", "change 1", "change 2"), ("break 1", "break 2")

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        at = break_grid(u, PAIR_GRID)
        i, j = np.triu_indices(len(at), 1)
        between = np.searchsorted(u, at[j]) - np.searchsorted(u, at[i])
        return np.stack([at[i], at[j]], axis=1)[between >= edge(len(u))]

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        return _broken_line(u, s)

    def slopes(self, c: Floats, s: Floats, span: Span) -> dict[str, float]:
        return _piece_rates(c)


class Discontinuous(Shape):
    """A jump, and another rate after it."""

    name, formula = "discontinuous", "ln y = a + b t + (t >= break) (jump + d (t - break))"
    linear, shape = ("level", "rate", "jump", "change"), ("break",)
    smooth = False  # the sum of squares jumps with s

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        return break_grid(u, JUMP_GRID)[:, None]

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        after = (u >= s).astype(np.float64)
        return _stack(np.ones((len(s), 1)), np.broadcast_to(u, after.shape), after, *_ramps(u, s))

    def slopes(self, c: Floats, s: Floats, span: Span) -> dict[str, float]:
        return {"rate 1": float(c[1]), "rate 2": float(c[1] + c[3])}


class Hyperbolic(Shape):
    """Growth towards a singularity at a date after the last point; beyond it there is no value."""

    name, formula = "hyperbolic", "ln y = a - b ln(t0 - t)"
    linear, shape = ("level", "power"), ("t0",)  # s is ln(t0 - last)

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        return np.log(np.geomspace(0.25, 300.0, 48))[:, None]

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        left = span.last - span.centre + np.exp(s) - u
        with np.errstate(divide="ignore", invalid="ignore"):
            logs = np.where(left > 0, np.log(left), -np.inf)
        return _stack(np.ones((len(s), 1)), -logs)

    def dated(self, s: Floats, span: Span) -> dict[str, float]:
        return {"t0": span.last + float(np.exp(s[0]))}


class Logistic(Shape):
    """Exponential growth that saturates: a logistic curve of the value itself, not of its logarithm."""

    name, formula = "logistic", "y = K / (1 + exp(-r (t - middle)))"
    linear, shape = ("ceiling",), ("middle", "steepness")

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        if len(u) < 2 or np.ptp(u) == 0:
            return np.empty((0, 2))
        slope, width = float(np.polyfit(u, y, 1)[0]), float(np.ptp(u))
        middle = np.linspace(u[0], u[-1] + 1.5 * width, 26)
        steep = slope * np.geomspace(0.95, 6.0, 14)
        return np.stack(np.meshgrid(middle, steep, indexing="ij"), axis=-1).reshape(-1, 2)

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        return np.ones((len(s), len(u), 1))

    def offset(self, u: Floats, s: Floats, span: Span) -> Floats:
        return -np.logaddexp(0.0, -s[:, 1:] * (u - s[:, :1]))

    def dated(self, s: Floats, span: Span) -> dict[str, float]:
        return {"middle": float(s[0]) + span.centre, "steepness": float(s[1])}


class BrokenPower(Shape):
    """A power of the time since a year before the first point, with one smooth bend.

    Caballero et al. 2210.14891, their equation 1 with one break and f = 0.1, of time instead of scale.
    """

    name, formula = "broken-power", "ln y = a + b ln x + d f ln(1 + (x / bend)^(1/f)), x = t - first + 1"
    linear, shape = ("level", "power", "change"), ("bend",)  # s is ln(bend)

    def grid(self, u: Floats, y: Floats, span: Span) -> Floats:
        return np.log(break_grid(u, GRID) - _start(span))[:, None]

    def basis(self, u: Floats, s: Floats, span: Span) -> Floats:
        x = np.log(u - _start(span))
        bend = SMOOTH * np.logaddexp(0.0, (x - s) / SMOOTH)
        return _stack(np.ones((len(s), 1)), np.broadcast_to(x, bend.shape), bend)

    def dated(self, s: Floats, span: Span) -> dict[str, float]:
        return {"bend": float(np.exp(s[0])) + span.first - 1.0}


def edge(n: int) -> int:
    """Points that a piece has at least, of n."""
    return max(EDGE, round(EDGE_SHARE * n))


def break_grid(u: Floats, most: int) -> Floats:
    """Up to `most` dates midway between (n,) sorted points, `edge` or more on either side, even in points."""
    gaps = np.arange(edge(len(u)), len(u) - edge(len(u)) + 1)
    gaps = gaps[u[gaps] > u[gaps - 1]] if len(gaps) else gaps
    if len(gaps) > most:
        gaps = gaps[np.linspace(0, len(gaps) - 1, most).astype(int)]
    return np.asarray((u[gaps - 1] + u[gaps]) / 2) if len(gaps) else np.empty(0)


def _start(span: Span) -> float:
    return span.first - 1.0 - span.centre


def _broken_line(u: Floats, s: Floats) -> Floats:
    """(g, n, 2 + q) of a line that changes its slope at each break."""
    return _stack(np.ones((len(s), 1)), np.broadcast_to(u, (len(s), len(u))), *_ramps(u, s))


def _piece_rates(c: Floats) -> dict[str, float]:
    return {f"rate {i + 1}": float(c[1 : 2 + i].sum()) for i in range(len(c) - 1)}


def _ramps(u: Floats, s: Floats) -> list[Floats]:
    """One (g, n) ramp for each break in (g, q)."""
    return [np.maximum(u - s[:, i : i + 1], 0.0) for i in range(s.shape[1])]


def _stack(ones: Floats, first: Floats, *others: Floats) -> Floats:
    """(g, n, p) from a (g, 1) of ones and (g, n) columns."""
    return np.stack([np.broadcast_to(ones, first.shape), first, *others], axis=2)


SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        Exponential(), Kinked(), KinkedTwice(), Discontinuous(), Quadratic(), Hyperbolic(), Logistic(),
        BrokenPower(),
    )
}  # fmt: skip
