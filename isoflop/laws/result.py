"""The result of a fit: parameters with their uncertainty, and everything that can be asked of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np

from isoflop.errors import FitError
from isoflop.laws import intervals
from isoflop.laws.registry import law_named
from isoflop.laws.solve import Array
from isoflop.records import Interval, Record, Run


class Observations(Record):
    """Columns of a table of runs: N, D, loss (nats a token), FLOPs, and which runs share a trunk."""

    params: tuple[float, ...]
    tokens: tuple[float, ...]
    loss: tuple[float, ...]
    flops: tuple[float, ...] | None = None  # None: 6 N D
    cluster: tuple[str, ...] | None = None  # None: every run is independent

    @classmethod
    def of(cls, table: Observations | Mapping[str, Any] | Any) -> Observations:
        """From columns `params`, `tokens`, `loss` and optional `flops`, `cluster` (dict, pandas, ...)."""
        if isinstance(table, Observations):
            return table
        columns = {name: _column(table, name) for name in cls.model_fields}
        for name in ("params", "tokens", "loss"):
            if columns[name] is None:
                raise FitError(
                    f"The table has no column {name!r}.",
                    hint="Needed: params, tokens, loss; optional: flops, cluster.",
                )
        cluster = columns.pop("cluster")
        try:
            numbers = {k: None if v is None else tuple(float(x) for x in v) for k, v in columns.items()}
        except (TypeError, ValueError) as error:
            raise FitError(
                f"The table has a cell that is not a number: {error}.", hint="Drop or mend that row."
            ) from error
        return cls(**numbers, cluster=None if cluster is None else tuple(str(x) for x in cluster))

    @classmethod
    def of_runs(cls, runs: Iterable[Run]) -> Observations:
        """From finished runs; runs of one trunk form one cluster."""
        listed = list(runs)
        return cls(
            params=tuple(float(r.params_matmul) for r in listed),
            tokens=tuple(float(r.tokens) for r in listed),
            loss=tuple(r.loss for r in listed),
            flops=tuple(r.flops for r in listed),
            cluster=tuple(r.trunk for r in listed),
        )

    def compute(self) -> Array:
        """(n,) training FLOPs, 6 N D where not given."""
        if self.flops is not None:
            return np.array(self.flops)
        return np.asarray(6.0 * np.array(self.params) * np.array(self.tokens))


def _column(table: Any, name: str) -> Any:
    try:
        return table[name]
    except KeyError:
        return None


class FlopsModel(Record):
    """FLOPs a training token: F(N) = kappa N^gamma, fitted to the runs (6 N when they have no FLOPs)."""

    kappa: float = 6.0
    gamma: float = 1.0

    def per_token(self, params: float | Array) -> Array:
        return np.asarray(self.kappa * np.asarray(params, dtype=np.float64) ** self.gamma)


class Holdout(Record):
    """One ordered hold-out: the law fitted to the cheaper runs predicts a dearer one."""

    fitted_runs: int
    fitted_max_flops: float
    flops: float
    ratio: float  # flops / fitted_max_flops
    error: float  # relative: prediction / observation - 1


class Prediction(Interval):
    """An interval of the loss, and how far outside the data it is."""

    extrapolation: float  # compute over the largest fitted compute

    def plain(self) -> Interval:
        """Without the extrapolation ratio, for records that hold an `Interval`."""
        return Interval(**self.model_dump(exclude={"extrapolation"}))


class Optimum(Record):
    """The best split of a compute budget."""

    flops: float
    params: Interval
    tokens: Interval
    loss: Prediction  # of a new run at the best split
    undefined_share: float  # share of draws without an optimum (A or B is zero)


class Fit(Record):
    """A fitted law. `draws` are bootstrap parameters in the order of `law`'s names."""

    schema_version: int = 1
    law: str
    estimator: str
    delta: float = 1e-3  # Huber width on ln L; inf for least squares
    params: dict[str, float]
    se: dict[str, float]  # bootstrap standard errors; empty without bootstrap
    n: int
    n_clusters: int
    objective: float  # sum of Huber losses (or half squares) of `residuals`, prior included
    starts: int
    starts_at_optimum: int  # within 0.1% of the best objective (at a Huber width of 1e-3 if narrower)
    bootstrap: str  # "pairs by cluster", "parametric by cluster" or "none"
    seed: int
    draws: tuple[tuple[float, ...], ...]
    draws_failed: int  # did not converge, and are left out
    draws_at_bound: int  # alpha or beta ended at its bound; kept
    residuals: tuple[float, ...]  # ln prediction - ln observation
    noise_sd: float  # relative, run to run, shrunk to a prior (`intervals.run_noise`)
    noise_df: int  # that it is known to
    model_sigma: float  # sigma0 of `intervals.model_sd`
    prior: bool  # weak prior on the exponents was used
    flops_model: FlopsModel
    observations: Observations
    holdout: tuple[Holdout, ...] = ()
    diagnostics: tuple[str, ...] = ()

    @property
    def theta(self) -> Array:
        """(1, p) fitted parameters."""
        return np.array([[self.params[name] for name in law_named(self.law).names]])

    @property
    def draws_array(self) -> Array:
        """(k, p) bootstrap draws; the fitted parameters alone when there was no bootstrap."""
        return np.array(self.draws) if self.draws else self.theta

    @property
    def max_flops(self) -> float:
        """Largest fitted compute."""
        return float(self.observations.compute().max())

    def flops(self, params: float, tokens: float) -> float:
        """Training FLOPs of a run, by the fitted cost a token."""
        return float(self.flops_model.per_token(params)) * tokens

    def extrapolation(self, params: float, tokens: float) -> float:
        """Compute of a run over the largest fitted compute."""
        return self.flops(params, tokens) / self.max_flops

    def loss(self, params: Any, tokens: Any) -> Array:
        """(points,) fitted losses, nats a token."""
        return np.asarray(law_named(self.law).loss(self.theta, *_points(params, tokens))[0])

    def predict_draws(self, params: Any, tokens: Any) -> Array:
        """(draws, points) losses of every bootstrap draw: parameters only, no noise or model error."""
        return law_named(self.law).loss(self.draws_array, *_points(params, tokens))

    def predict(self, params: float, tokens: float, interval: float = 0.9) -> Prediction:
        """Loss of one new run: parameters, run-to-run noise and model error (see `intervals`)."""
        return self._predict(params, tokens, interval, "new run")

    def mean(self, params: float, tokens: float, interval: float = 0.9) -> Prediction:
        """Mean loss of runs of this N and D: parameters and model error."""
        return self._predict(params, tokens, interval, "mean")

    def _predict(self, params: float, tokens: float, level: float, of: str) -> Prediction:
        check_level(level)
        value = float(self.loss(params, tokens)[0])
        draws = self.predict_draws(params, tokens)[:, 0]
        ratio = self.extrapolation(params, tokens)
        model = float(intervals.model_sd(ratio, self.model_sigma))
        if of == "mean":
            low, high = intervals.mean_interval(value, draws, model=model, level=level)
        else:
            low, high = intervals.new_run_interval(
                value, draws, noise=self.noise_sd, df=self.noise_df, model=model, level=level
            )
        return Prediction(value=value, low=low, high=high, level=level, of=of, extrapolation=ratio)

    def optimum(self, flops: float, interval: float = 0.9) -> Optimum:
        """The best split of `flops` by the fitted cost a token, and the loss of a new run there.

        When the fitted law has no optimum (A or B is zero) the draws' median split stands in for it.
        Raises FitError when no draw has one either.
        """
        check_level(interval)
        law, cost = law_named(self.law), self.flops_model
        N, D, _ = law.optimum(self.draws_array, flops, cost.kappa, cost.gamma)
        defined = np.isfinite(N) & np.isfinite(D) & (N > 0) & (D > 0)
        point = [float(v[0]) for v in law.optimum(self.theta, flops, cost.kappa, cost.gamma)[:2]]
        if not all(np.isfinite(v) and v > 0 for v in point):
            if not defined.any():
                raise FitError(
                    "The fitted law has no best split: parameters or tokens do not matter in it.",
                    hint="Add runs that vary both N and D by at least 4x.",
                )
            middle = float(np.median(N[defined]))
            point = [middle, flops / float(cost.per_token(middle))]
        ends = [
            intervals.quantiles(v[defined], interval) if defined.any() else (p, p)
            for v, p in zip((N, D), point, strict=True)
        ]
        split = [
            Interval(value=p, low=min(low, p), high=max(high, p), level=interval, of="optimum")
            for p, (low, high) in zip(point, ends, strict=True)
        ]
        return Optimum(
            flops=flops,
            params=split[0],
            tokens=split[1],
            loss=self.predict(point[0], point[1], interval),
            undefined_share=float(1.0 - defined.mean()),
        )

    def compute_for(self, loss: float | Array, theta: Array | None = None) -> Array:
        """C_base(L): FLOPs on the compute-optimal frontier that reach `loss`, nan where L <= E.

        `theta` (m, p) defaults to the fitted parameters (m = 1); give `draws_array` for the draws.
        `loss` broadcasts to (m,), the shape of the answer.
        """
        law, cost = law_named(self.law), self.flops_model
        theta = self.theta if theta is None else theta
        return law.compute_for(theta, np.asarray(loss, dtype=np.float64), cost.kappa, cost.gamma)

    def conf_int(self, level: float = 0.9) -> dict[str, Interval]:
        """Central bootstrap interval of every parameter."""
        check_level(level)
        out = {}
        for i, (name, value) in enumerate(self.params.items()):
            low, high = intervals.quantiles(self.draws_array[:, i], level)
            out[name] = Interval(value=value, low=min(low, value), high=max(high, value), level=level)
        return out

    def summary(self, level: float = 0.9) -> str:
        """A plain-text table of the parameters, the quality of the fit and what to beware of."""
        head = [
            f"{law_named(self.law).formula}   ({self.estimator})",
            f"runs {self.n}   clusters {self.n_clusters}   objective {self.objective:.6g}"
            f"   starts at the optimum {self.starts_at_optimum}/{self.starts}",
            f"run-to-run noise {100 * self.noise_sd:.2f}%   FLOPs a token"
            f" {self.flops_model.kappa:.4g} N^{self.flops_model.gamma:.4g}",
            f"bootstrap {self.bootstrap}: {len(self.draws)} draws kept, {self.draws_failed} failed,"
            f" {self.draws_at_bound} at a bound",
        ]
        table = [f"{'':8}{'value':>12}{'s.e.':>12}{f'{100 * level:g}% low':>12}{'high':>12}"]
        for name, part in self.conf_int(level).items():
            error = f"{self.se[name]:>12.4g}" if self.se else f"{'':>12}"
            table.append(f"{name:8}{part.value:>12.5g}{error}{part.low:>12.4g}{part.high:>12.4g}")
        return "\n".join(
            [*head, "", *table, "", *(f"- {sentence}" for sentence in self.diagnostics)]
        ).rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"


def _points(params: Any, tokens: Any) -> tuple[Array, Array]:
    """N and D as (points,) arrays of equal length."""
    N, D = np.broadcast_arrays(
        np.atleast_1d(np.asarray(params, dtype=np.float64)),
        np.atleast_1d(np.asarray(tokens, dtype=np.float64)),
    )
    if not (np.isfinite(N) & np.isfinite(D) & (N > 0) & (D > 0)).all():
        raise FitError("A prediction needs positive N and D.", hint="Give params and tokens above zero.")
    return N, D


def check_level(level: float) -> None:
    """Raises FitError unless 0 < level < 1."""
    if not 0.0 < level < 1.0:
        raise FitError(f"An interval of {level} makes no sense.", hint="Use a share such as 0.9.")
