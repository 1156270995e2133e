"""A law from its published equation: values and exact derivatives come from the text by sympy.

The equation is written with the paper's symbols. The solver sees each covariate in units of its geometric
mean, in which amplitudes are losses at the centre of the data and the problem is well conditioned; a
parameter's `unit` says what that does to it (A of A/N^alpha is in N^alpha).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from isoflop.laws.published import Published
from isoflop.laws.solve import Array


class Covariate(NamedTuple):
    """A symbol of the equation and the column that holds it."""

    symbol: str
    column: str
    unit: str = ""  # covariates of one unit are scaled together; without a unit it is used as it is


class Parameter(NamedTuple):
    """A parameter, its bounds and its unit."""

    name: str
    lower: float = 0.0
    upper: float = np.inf
    unit: str = "1"  # in powers of the covariates' units, such as N**alpha
    log: bool = False  # the solver moves its logarithm


@dataclass(frozen=True)
class Equation:
    """A law defined by `equation`; the first `linear` parameters enter linearly."""

    name: str
    formula: str
    equation: str
    covariates: tuple[Covariate, ...]
    parameters: tuple[Parameter, ...]
    linear: int
    starts: Callable[[float], Array]  # mean target -> (starts, p) in natural units at covariates of one
    source: str
    exponents: tuple[str, ...] = ()  # what the weak prior of small tables is about
    held: Mapping[str, float] = field(default_factory=dict)  # fixed unless the caller says otherwise
    published: tuple[Published, ...] = ()
    exact_hessian: bool = True  # False where second derivatives are long: then steps are Gauss-Newton's
    # (m, p) parameters of this law -> (m, 5) of a Chinchilla law with the same best split
    same_split: Callable[[Array], Array] | None = None
    target: str = "loss"  # what the law predicts, in a word
    least_ratio: float = 0.0  # tokens a parameter, below which the law says nothing

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters)

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(c.column for c in self.covariates)

    @cached_property
    def lower(self) -> Array:
        return np.array([-np.inf if p.log else p.lower for p in self.parameters])

    @cached_property
    def upper(self) -> Array:
        return np.array([np.inf if p.log else p.upper for p in self.parameters])

    @cached_property
    def exponents_at(self) -> tuple[int, ...]:
        return tuple(self.names.index(name) for name in self.exponents)

    def features(self, columns: Mapping[str, Array], centred: bool = True) -> tuple[Array, Array]:
        """(c, n) covariates, logarithms of scaled ones, and the (units,) logarithms of the scales."""
        x = self._covariates(columns)
        centre = np.zeros(len(self._units))
        if not centred:
            return x, centre
        for i, unit in reversed(list(enumerate(c.unit for c in self.covariates))):
            if unit:
                centre[self._units.index(unit)] = x[i].mean()  # the first covariate of a unit counts
        for i, c in enumerate(self.covariates):
            if c.unit:
                x[i] -= centre[self._units.index(c.unit)]
        return x, centre

    def start_grid(self, level: float) -> Array:
        """(starts, p) starts in the solver's coordinates; `level` is the geometric mean target."""
        return self._inner(self.starts(level), np.zeros(len(self._units)))

    def value(self, theta: Array, x: Array) -> Array:
        """(m, n) targets of `theta` (m, p, the solver's coordinates) at features `x` (c, n)."""
        with np.errstate(all="ignore"):
            found = self._functions.value(*self._call(theta, x))
        return np.broadcast_to(found, np.broadcast_shapes((len(theta), 1), x.shape[1:]))

    def jacobian(self, theta: Array, x: Array) -> tuple[Array, Array]:
        """Targets (m, n) and their derivatives (m, p, n)."""
        jac = np.empty((len(theta), len(self.parameters), x.shape[1]))
        with np.errstate(all="ignore"):
            value, *slopes = self._functions.jacobian(*self._call(theta, x))
        for i, slope in enumerate(slopes):
            jac[:, i] = slope
        return np.broadcast_to(value, (len(theta), x.shape[1])), jac

    def curvature(self, theta: Array, jac: Array, x: Array, weight: Array) -> Array | None:
        """(m, p, p): sum over points of `weight` (m, n) times the Hessian; None when it is not used."""
        if not self.exact_hessian:
            return None
        out = np.zeros((len(theta), theta.shape[1], theta.shape[1]))
        with np.errstate(all="ignore"):
            entries = self._functions.hessian(*self._call(theta, x))
        for (i, j), entry in zip(self._functions.where, entries, strict=True):
            out[:, i, j] = out[:, j, i] = (weight * entry).sum(axis=1)
        return out

    def uncentre(self, theta: Array, centre: Array) -> Array:
        """Natural parameters in the units of the columns, from the solver's."""
        out = np.where(self._log, np.exp(np.where(self._log, theta, 0.0)), theta)
        return np.asarray(out * self._unit_factors(out, centre))

    def recentre(self, theta: Array, centre: Array) -> Array:
        """Inverse of `uncentre`."""
        return self._inner(theta / self._unit_factors(theta, centre), centre)

    def loss(self, theta: Array, columns: Mapping[str, Array]) -> Array:
        """(m, n) targets of natural parameters (m, p) at columns of shape (n,) or (m, n)."""
        return self.value(self._inner(theta, np.zeros(len(self._units))), self._covariates(columns))

    @cached_property
    def _units(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.unit for c in self.covariates if c.unit))

    @cached_property
    def _log(self) -> Any:
        return np.array([p.log for p in self.parameters])

    def _covariates(self, columns: Mapping[str, Array]) -> Array:
        rows = [np.log(columns[c.column]) if c.unit else columns[c.column] for c in self.covariates]
        return np.array(np.broadcast_arrays(*rows), dtype=np.float64)

    def _inner(self, theta: Array, centre: Array) -> Array:
        """The solver's coordinates of natural parameters."""
        with np.errstate(divide="ignore"):
            return np.where(self._log, np.log(np.where(self._log, theta, 1.0)), theta)

    def _unit_factors(self, theta: Array, centre: Array) -> Array:
        """(m, p): what each parameter is multiplied by when the covariates' units become one."""
        factors = self._functions.units(*theta.T, *np.exp(centre))
        return np.stack(np.broadcast_arrays(*factors, theta[:, 0])[:-1], axis=1)

    def _call(self, theta: Array, x: Array) -> tuple[Array, ...]:
        return (*(theta[:, i : i + 1] for i in range(theta.shape[1])), *x)

    @cached_property
    def _functions(self) -> _Functions:
        return _functions(self)


class _Functions(NamedTuple):
    """Compiled from the equation; arguments are the parameters, then the covariates (or unit scales)."""

    value: Callable[..., Any]
    jacobian: Callable[..., Any]
    hessian: Callable[..., Any]
    where: list[tuple[int, int]]  # entries of the Hessian that are not zero
    units: Callable[..., Any]


def _functions(law: Equation) -> _Functions:
    import sympy as sp

    solver = [sp.Symbol(p.name, real=True) if p.log else _symbol(sp, p) for p in law.parameters]
    natural = [sp.Symbol(p.name, positive=True) for p in law.parameters]
    features = [sp.Symbol(f"ln_{c.symbol}" if c.unit else c.symbol, real=True) for c in law.covariates]
    known = {p.name: sp.exp(s) if p.log else s for p, s in zip(law.parameters, solver, strict=True)}
    known |= {c.symbol: sp.exp(f) if c.unit else f for c, f in zip(law.covariates, features, strict=True)}
    expression = sp.sympify(law.equation, locals=known)

    def compiled(of: Any) -> Callable[..., Any]:
        return sp.lambdify([*solver, *features], of, "numpy", cse=True)  # type: ignore[no-any-return]

    slopes = [sp.diff(expression, s) for s in solver]
    seconds: dict[tuple[int, int], Any] = {}
    if law.exact_hessian:
        pairs = [(i, j) for i in range(len(solver)) for j in range(i, len(solver))]
        every = {(i, j): sp.diff(slopes[i], solver[j]) for i, j in pairs}
        seconds = {at: entry for at, entry in every.items() if entry != 0}
    scales = [sp.Symbol(unit, positive=True) for unit in law._units]
    names = {s.name: s for s in [*natural, *scales]}
    units = [sp.sympify(p.unit, locals=names) for p in law.parameters]
    return _Functions(
        value=compiled(expression),
        jacobian=compiled([expression, *slopes]),
        hessian=compiled(list(seconds.values())),
        where=list(seconds),
        units=sp.lambdify([*natural, *scales], units, "numpy"),
    )


def _symbol(sp: Any, parameter: Parameter) -> Any:
    return (
        sp.Symbol(parameter.name, positive=True)
        if parameter.lower >= 0
        else sp.Symbol(parameter.name, real=True)
    )


def grid(*candidates: float | tuple[float, ...] | Array) -> Array:
    """(starts, p): every combination of the candidates of each parameter."""
    listed = [np.atleast_1d(np.asarray(c, dtype=np.float64)) for c in candidates]
    return np.array(list(product(*listed)))
