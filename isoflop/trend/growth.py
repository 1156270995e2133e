"""Growth models fitted to dated values: one interface over the shapes of `shapes`.

found = fit(points.years, np.log(points.values), "kinked")
found.predict(np.array([2027.0]))            # ln(value)
found.draws(np.array([2027.0, 2030.0]), 1000, rng)   # (1000, 2) of ln(value)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from isoflop.errors import TrendError
from isoflop.laws.intervals import pairs_weights
from isoflop.laws.likelihood import criteria
from isoflop.trend.points import Floats
from isoflop.trend.shapes import SHAPES, Shape, Span

RIDGE = 1e-12  # of the moments' diagonal: a piece that a resampled table leaves empty has coefficient 0
STARTS = 3  # grid points from which the shape parameters are refined
CELLS = 4_000_000  # of X'WX at once
REFITS = 2000  # bootstrap refits at most; more draws repeat them


class Draws(Protocol):
    """Whatever can say how ln(value) may go on."""

    def draws(self, at_years: Floats, n: int, rng: np.random.Generator) -> Floats:
        """(n, len(at_years)) of ln(value)."""


class Solved(NamedTuple):
    """Best grid point of each of D weighted tables."""

    at: np.ndarray[tuple[int], np.dtype[np.intp]]  # (D,) of the grid
    c: Floats  # (D, p)
    rss: Floats  # (D,)


@dataclass(frozen=True)
class Growth:
    """A fitted growth model of ln(value)."""

    model: str
    c: Floats  # (p,) coefficients
    s: Floats  # (q,) shape parameters, in years from the centre
    span: Span
    years: Floats  # (n,) fitted
    logs: Floats  # (n,) fitted ln(value)
    rss: float
    aicc: float | None  # None where n is too small for it
    bic: float

    @property
    def n(self) -> int:
        return len(self.years)

    @property
    def k(self) -> int:
        """Parameters: coefficients, shape parameters and the noise."""
        return SHAPES[self.model].k

    @property
    def sd(self) -> float:
        """Of the residuals, with n - k + 1 degrees of freedom."""
        return float(np.sqrt(self.rss / max(self.n - self.k + 1, 1)))

    @property
    def params(self) -> dict[str, float]:
        """Rates a year of ln(value), dates in decimal years; the level is ln(value) at the mean date."""
        shape = SHAPES[self.model]
        return dict(zip(shape.linear, map(float, self.c), strict=True)) | shape.dated(self.s, self.span)

    @property
    def rates(self) -> dict[str, float]:
        """The fit's rates a year of ln(value), of its pieces or ends; empty where none are constant."""
        return SHAPES[self.model].slopes(self.c, self.s, self.span)

    def predict(self, years: Floats) -> Floats:
        """(m,) ln(value); infinite at and after a singularity."""
        shape = SHAPES[self.model]
        return np.asarray(curves(shape, self.c[None], self.s[None], self.span, years)[0])

    def draws(self, at_years: Floats, n: int, rng: np.random.Generator) -> Floats:
        """(n, len(at_years)) of the curve's ln(value): refits of resampled points, without new points' noise.

        Shape parameters of refits are those of the grid; beyond `REFITS` draws refits come again.
        """
        shape, u = SHAPES[self.model], self.years - self.span.centre
        refits = min(n, REFITS)
        s = np.concatenate([shape.grid(u, self.logs, self.span), self.s[None]])
        weights = pairs_weights(np.arange(self.n), refits, rng)
        found = solve(shape, u, self.logs, weights, s, self.span)
        drawn = curves(shape, found.c, s[found.at], self.span, at_years)
        return drawn if refits == n else drawn[rng.integers(refits, size=n)]


def fit(years: Floats, logs: Floats, model: str = "exponential", *, refine: bool = True) -> Growth:
    """Least squares on (n,) ln(value) against (n,) decimal years, in order.

    The grid of shape parameters is searched whole; with `refine` its best points are starts of
    scipy.optimize.least_squares on the projected residual. Raises TrendError where the model is unknown, or
    the points are too few or of too few dates for it.
    """
    shape, span = model_named(model), Span.of(years)
    u = years - span.centre
    s = shape.grid(u, logs, span) if len(years) >= shape.least else np.empty((0, len(shape.shape)))
    if len(s) == 0 or len(np.unique(years)) <= len(shape.linear):
        raise TrendError(
            f"{len(years)} points of {len(np.unique(years))} dates are too few for {shape.name} growth.",
            hint=f"It needs {shape.least} or more, with enough on either side of a break.",
        )
    best = _refined(shape, u, logs, s, span) if refine and shape.smooth and s.shape[1] else None
    if best is None:
        best = s[solve(shape, u, logs, np.ones((1, len(u))), s, span).at[0]]
    c, residual = projected(shape, u, logs, best, span)
    aicc, bic = criteria(residual, np.inf, shape.k - 1)
    return Growth(shape.name, c, best, span, years, logs, float(residual @ residual), aicc, bic)


def fit_all(years: Floats, logs: Floats, *, refine: bool = True) -> tuple[dict[str, Growth], list[str]]:
    """Every model that the points allow, and a sentence for each that they do not."""
    found, missing = {}, []
    for name in SHAPES:
        try:
            found[name] = fit(years, logs, name, refine=refine)
        except TrendError as error:
            missing.append(f"{name} is left out: {error.message}")
    return found, missing


def model_named(name: str) -> Shape:
    """Raises TrendError for an unknown growth model."""
    if name not in SHAPES:
        raise TrendError(f"There is no growth model {name!r}.", hint=f"Use one of: {', '.join(SHAPES)}.")
    return SHAPES[name]


def solve(shape: Shape, u: Floats, logs: Floats, weights: Floats, s: Floats, span: Span) -> Solved:
    """Weighted least squares of D tables at every grid point, and each table's best.

    `logs` is (n,), or (D, n) where each table has values of its own; `weights` is (D, n) or (1, n).
    """
    y = np.atleast_2d(logs)
    draws, p = max(len(y), len(weights)), len(shape.linear)
    best = Solved(np.zeros(draws, np.intp), np.zeros((draws, p)), np.full(draws, np.inf))
    mean = y.mean()
    wy = weights * (y - mean)
    total = (wy * (y - mean)).sum(axis=1)
    step = max(1, CELLS // (draws * p * p))
    for begin in range(0, len(s), step):
        part = s[begin : begin + step]
        G, b, fixed = _moments(shape.basis(u, part, span), shape.offset(u, part, span), weights, wy)
        G += RIDGE * (np.trace(G, axis1=2, axis2=3)[..., None, None] + 1e-12) * np.eye(p) / p
        c = np.linalg.solve(G, b[..., None])[..., 0]
        rss = total + fixed - (c * b).sum(axis=2)
        at, rows = rss.argmin(axis=0), np.arange(draws)
        better = rss[at, rows] < best.rss
        best.at[better], best.rss[better] = begin + at[better], rss[at, rows][better]
        best.c[better] = c[at, rows][better]
    best.c[:, 0] += mean  # the first column of every basis is 1
    return best


def _moments(X: Floats, o: Floats, weights: Floats, wy: Floats) -> tuple[Floats, Floats, Floats]:
    """(g, D, p, p) X'WX, (g, D, p) X'W(y - o) and (g, D) o'W(o - 2y), from (g, n, p) X and (g, n) o.

    Each is one matrix product: the grid's columns side by side.
    """
    g, _, p = X.shape
    i, j = np.triu_indices(p)
    half = _times(weights, X[:, :, i] * X[:, :, j])
    G = np.empty((g, half.shape[1], p, p))
    G[..., i, j] = half
    G[..., j, i] = half
    b = _times(wy, X)
    if not o.any():
        return np.broadcast_to(G, (g, len(b[0]), p, p)).copy(), b, np.zeros((g, 1))
    b = b - _times(weights, X * o[:, :, None])
    fixed = _times(weights, o[:, :, None] ** 2) - 2 * _times(wy, o[:, :, None])
    return np.broadcast_to(G, (g, len(b[0]), p, p)).copy(), b, fixed[..., 0]


def _times(weights: Floats, columns: Floats) -> Floats:
    """(g, D, m) from (D, n) and (g, n, m)."""
    g, n, m = columns.shape
    product = weights @ columns.transpose(1, 0, 2).reshape(n, g * m)
    return product.reshape(len(weights), g, m).transpose(1, 0, 2)


def curves(shape: Shape, c: Floats, s: Floats, span: Span, years: Floats) -> Floats:
    """(D, m) ln(value) at (m,) years for (D, p) coefficients and (D, q) shape parameters."""
    u = np.asarray(years, dtype=np.float64) - span.centre
    with np.errstate(invalid="ignore"):
        return np.asarray(
            shape.offset(u, s, span) + (shape.basis(u, s, span) @ c[..., None])[..., 0], dtype=np.float64
        )


def projected(shape: Shape, u: Floats, logs: Floats, s: Floats, span: Span) -> tuple[Floats, Floats]:
    """(p,) best coefficients at (q,) shape parameters, and the (n,) residual logs - fit."""
    X = shape.basis(u, s[None], span)[0]
    y = logs - shape.offset(u, s[None], span)[0]
    c = np.linalg.lstsq(X, y, rcond=None)[0]
    return c, y - X @ c


def _refined(shape: Shape, u: Floats, logs: Floats, s: Floats, span: Span) -> Floats:
    """(q,) shape parameters: the grid's best points, each refined in its cell."""
    from scipy.optimize import least_squares

    rss = np.array([(projected(shape, u, logs, row, span)[1] ** 2).sum() for row in s])
    sides = [_cells(np.unique(column)) for column in s.T]
    best, lowest = s[rss.argmin()], rss.min()
    for start in s[np.argsort(rss, kind="stable")[:STARTS]]:
        low, high = np.array([cells[v] for cells, v in zip(sides, start.tolist(), strict=True)]).T
        found = least_squares(lambda v: projected(shape, u, logs, v, span)[1], start, bounds=(low, high))
        if 2 * found.cost < lowest:
            best, lowest = found.x, 2 * found.cost
    return np.asarray(best)


def _cells(values: Floats) -> dict[float, tuple[float, float]]:
    """Around each of a grid's sorted values, halfway to its neighbours: two breaks cannot pass each other."""
    middle = (values[1:] + values[:-1]) / 2
    low, high = np.append(values[0] - 1e-9, middle), np.append(middle, values[-1] + 1e-9)
    return {float(v): (float(a), float(b)) for v, a, b in zip(values, low, high, strict=True)}
