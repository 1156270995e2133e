"""The result of a fit: parameters with their uncertainty, and everything that can be asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from isoflop.errors import FitError
from isoflop.laws import intervals
from isoflop.laws.observations import Observations, complete
from isoflop.laws.registry import law_named, published
from isoflop.laws.solve import Array, Law
from isoflop.laws.split import Split, splits
from isoflop.records import Interval, Record

if TYPE_CHECKING:
    import arviz
    import xarray

    from isoflop.laws.profile import Profile

LARGEST = 1e40  # of any covariate


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
    reach: float = 1.0  # how far out in size and data: `intervals.reach`
    error: float  # relative: prediction / observation - 1


class Prediction(Interval):
    """An interval of the loss, and how far outside the data it is."""

    extrapolation: float | None  # compute over the largest fitted compute; None when that is not known

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

    schema_version: int = 2
    law: str
    estimator: str  # or "published"
    delta: float = 1e-3  # Huber width on ln L; inf for least squares
    params: dict[str, float]
    fixed: tuple[str, ...] = ()  # parameters that were held
    se: dict[str, float] = Field(default_factory=dict)  # bootstrap standard errors; empty without bootstrap
    n: int = 0
    n_clusters: int = 0
    objective: float = 0.0  # sum of Huber losses (or half squares) of `residuals`, prior included
    aicc: float | None = None  # of a Huber density of ln L with a free scale, see `likelihood`
    bic: float | None = None
    starts: int = 0
    starts_at_optimum: int = 0  # within 0.1% of the best objective (at a Huber width of 1e-3 if narrower)
    bootstrap: str = "none"  # "pairs by cluster", "wild ...", "parametric ...", "one step, ..." or "none"
    seed: int = 0
    draws: tuple[tuple[float, ...], ...] = ()
    draws_failed: int = 0  # did not converge, and are left out
    draws_at_bound: int = 0  # a shape parameter ended at its bound; kept
    residuals: tuple[float, ...] = ()  # ln prediction - ln observation
    noise_sd: float = intervals.NOISE_PRIOR  # relative, run to run, shrunk to a prior (`intervals.run_noise`)
    noise_df: int = intervals.NOISE_PRIOR_DF  # that it is known to
    trunk_sd: float = 0.0  # the part of `noise_sd` that runs of one trunk share
    evaluation_sd: float = 0.0  # relative, of one evaluation, where the table has its standard errors
    model_sigma: float = intervals.MODEL_SIGMA  # sigma0 of `intervals.model_sd`
    prior: bool = False  # weak prior on the exponents was used
    ceiling: float | None = None  # a target y that rises is fitted as ceiling - y
    flops_model: FlopsModel = FlopsModel()
    max_flops: float | None = None  # largest fitted compute
    target_word: str | None = None  # what published constants predict, when the law usually predicts another
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)  # behind published constants
    observations: Observations = Observations(columns={}, loss=())
    holdout: tuple[Holdout, ...] = ()
    diagnostics: tuple[str, ...] = ()

    @classmethod
    def of_published(cls, name: str) -> Fit:
        """A law with constants as published; it has no draws. Raises FitError for an unknown name."""
        law, constants = published(name)
        return cls(
            law=law.name,
            estimator="published",
            params={key: float(constants.values[key]) for key in law.names},
            max_flops=constants.max_flops,
            target_word=constants.target,
            ranges=dict(constants.ranges),
            diagnostics=(
                f"Constants as published: {constants.source}.",
                "Published constants have no draws: intervals of losses hold run-to-run noise and model error"
                " only, and those of N and D are points.",
            ),
        )

    @property
    def theta(self) -> Array:
        """(1, p) fitted parameters."""
        return np.array([[self.params[name] for name in self._law.names]])

    @property
    def draws_array(self) -> Array:
        """(k, p) bootstrap draws; the fitted parameters alone when there was no bootstrap."""
        return np.array(self.draws) if self.draws else self.theta

    def flops(self, params: float, tokens: float) -> float:
        """Training FLOPs of a run, by the fitted cost a token."""
        return float(self.flops_model.per_token(params)) * tokens

    def extrapolation(self, params: Any = None, tokens: Any = None, **others: Any) -> float | None:
        """How far outside the runs a query is: compute over the largest fitted compute.

        For laws in one covariate, the covariate beyond its fitted range, as a ratio of at least one when
        outside. None when the range is not known.
        """
        if splits(self._law):
            return None if self.max_flops is None else self.flops(params, tokens) / self.max_flops
        columns = self._columns(params, tokens, others)
        known = [(columns[name][0], self.observations.columns[name]) for name in columns if self.n]
        return max((max(v / max(seen), min(seen) / v) for v, seen in known), default=None)

    def model_sd(self, params: Any = None, tokens: Any = None, **others: Any) -> float:
        """Relative sd of the law's own error there, by `intervals.reach` where the law has N and D."""
        if splits(self._law) and self.n:
            target = np.array([[params], [tokens]], dtype=np.float64)
            reach: float | None = float(intervals.reach(target, self.observations.sizes())[0])
        else:
            reach = self.extrapolation(params, tokens, **others)
        return float(intervals.model_sd(1.0 if reach is None else reach, self.model_sigma))

    def extrapolation_words(self, ratio: float) -> str:
        """What `extrapolation` found, in words that name the covariate."""
        if splits(self._law):
            return f"{ratio:.3g} times the largest fitted compute"
        names = " and ".join(self.columns)
        if ratio <= 1:
            return f"inside the fitted range of {names}"
        return f"{ratio:.3g} times beyond the fitted range of {names}"

    def loss(self, params: Any = None, tokens: Any = None, **others: Any) -> Array:
        """(points,) fitted targets, which fall; `others` are the law's further covariates by name."""
        return np.asarray(self._law.loss(self.theta, self._columns(params, tokens, others))[0])

    def predict_draws(self, params: Any = None, tokens: Any = None, **others: Any) -> Array:
        """(draws, points) losses of every bootstrap draw: parameters only, no noise or model error."""
        return self._law.loss(self.draws_array, self._columns(params, tokens, others))

    def predict(
        self, params: float | None = None, tokens: float | None = None, interval: float = 0.9, **others: float
    ) -> Prediction:
        """Measured loss of one new run: parameters, noise, model error (see `intervals`)."""
        return self._predict(params, tokens, interval, "new run", others)

    def mean(
        self, params: float | None = None, tokens: float | None = None, interval: float = 0.9, **others: float
    ) -> Prediction:
        """Mean loss of runs of these covariates: parameters and model error."""
        return self._predict(params, tokens, interval, "mean", others)

    def _predict(
        self, params: float | None, tokens: float | None, level: float, of: str, others: Mapping[str, float]
    ) -> Prediction:
        intervals.check_level(level)
        value = float(self.loss(params, tokens, **others)[0])
        draws = self.predict_draws(params, tokens, **others)[:, 0]
        found = self.around(value, draws, self.model_sd(params, tokens, **others), level, of)
        ratio = self.extrapolation(params, tokens, **others)
        return self.oriented(found.model_copy(update={"extrapolation": ratio}))

    def around(
        self, value: float, draws: Array, model: float, level: float = 0.9, of: str = "new run"
    ) -> Prediction:
        """The interval around a loss: bootstrap `draws` (k,), noise and a model error of sd `model`."""
        if of == "mean":
            low, high = intervals.mean_interval(value, draws, model=model, level=level)
        else:
            noise = float(np.hypot(self.noise_sd, self.evaluation_sd))
            low, high = intervals.new_run_interval(
                value, draws, noise=noise, df=self.noise_df, model=model, level=level
            )
        return Prediction(value=value, low=low, high=high, level=level, of=of, extrapolation=None)

    def oriented(self, found: Prediction) -> Prediction:
        """The prediction of a target that rises, from that of ceiling - y; others as they are."""
        if self.ceiling is None:
            return found
        ends = {"value": found.value, "low": found.high, "high": found.low}
        return found.model_copy(update={key: self.ceiling - end for key, end in ends.items()})

    def target(self, theta: Array, columns: Mapping[str, Array]) -> Array:
        """(m, n) fitted targets of parameters (m, p) at the law's covariates, (n,) or (m, n)."""
        return self._law.loss(theta, columns)

    @property
    def word(self) -> str:
        """What is predicted: the loss, an error, a score, a learning rate ..."""
        return self.target_word or (self._law.target if self.ceiling is None else "score")

    @property
    def columns(self) -> tuple[str, ...]:
        """The law's covariates."""
        return self._law.columns

    def optimum(self, flops: float, interval: float = 0.9, **others: float) -> Optimum:
        """The best split of `flops` by the fitted cost a token, and the loss of a new run there.

        When the fitted law has no optimum (A or B is zero) the draws' median split stands in for it.
        Raises FitError when no draw has one either, or the law is not one of N and D.
        """
        intervals.check_level(interval)
        split = self.split(**others)
        N, D, _ = split.optimum(self.draws_array, flops)
        defined = np.isfinite(N) & np.isfinite(D) & (N > 0) & (D > 0)
        point = [float(v[0]) for v in split.optimum(self.theta, flops)[:2]]
        if not all(np.isfinite(v) and v > 0 for v in point):
            if not defined.any():
                raise FitError(
                    "The fitted law has no best split: parameters or tokens do not matter in it.",
                    hint="Add runs that vary both N and D by at least 4x.",
                )
            middle = float(np.median(N[defined]))
            point = [middle, flops / float(self.flops_model.per_token(middle))]
        ends = [
            intervals.quantiles(v[defined], interval) if defined.any() else (p, p)
            for v, p in zip((N, D), point, strict=True)
        ]
        best = [
            Interval(value=p, low=min(low, p), high=max(high, p), level=interval, of="optimum")
            for p, (low, high) in zip(point, ends, strict=True)
        ]
        return Optimum(
            flops=flops,
            params=best[0],
            tokens=best[1],
            loss=self.predict(point[0], point[1], interval, **others),
            undefined_share=float(1.0 - defined.mean()),
        )

    def compute_for(self, loss: float | Array, theta: Array | None = None, **others: float) -> Array:
        """C_base(L): FLOPs on the compute-optimal frontier that reach `loss`, nan where L <= E.

        `theta` (m, p) defaults to the fitted parameters (m = 1); give `draws_array` for the draws.
        `loss` broadcasts to (m,), the shape of the answer.
        """
        return self.split(**others).compute_for(self.theta if theta is None else theta, loss)

    def split(self, **others: float) -> Split:
        """How this law splits compute between N and D; `others` are its further covariates.

        Raises FitError when it is not a law of N and D, or has no such covariate.
        """
        if not splits(self._law):
            raise FitError(
                f"The law {self.law} is not one of a loss by size and data: there is nothing to split.",
                hint="Fit chinchilla, coupled, kaplan, multiplicative, over-training or repeated-data.",
            )
        self._check_given({name: np.array([value]) for name, value in others.items()})
        return Split(self._law, self.flops_model.kappa, self.flops_model.gamma, others)

    @property
    def _law(self) -> Law:
        return law_named(self.law)

    def _columns(self, params: Any, tokens: Any, others: Mapping[str, Any]) -> dict[str, Array]:
        """The law's covariates as (points,) arrays. Raises FitError when one is missing or not positive."""
        given = {"params": params, "tokens": tokens, **others}
        names = [name for name, value in given.items() if value is not None]
        rows = np.broadcast_arrays(*(np.atleast_1d(np.asarray(given[n], dtype=np.float64)) for n in names))
        columns = dict(zip(names, rows, strict=True))
        self._check_given(columns)
        return {
            name: row
            for name, row in complete(columns, self._law.columns)[0].items()
            if name in self._law.columns
        }

    def _check_given(self, columns: Mapping[str, Array]) -> None:
        """Raises FitError for what is no covariate of the law, or has a value that could not be."""
        for name, row in columns.items():
            if not (np.isfinite(row) & ((row > 0) | (name == "sparsity"))).all():
                raise FitError(f"A prediction needs a positive {name}.", hint=f"Give {name} above zero.")
            if (row > LARGEST).any() or (name == "sparsity" and (row >= 1).any()):
                raise FitError(f"{name} = {row.max():g} is impossible.", hint="Give a number that could be.")
            if name not in (*self._law.columns, "params", "tokens", "flops"):
                raise FitError(
                    f"The law {self.law} has no covariate {name!r}.",
                    hint=f"It has {', '.join(self._law.columns)}.",
                )

    @property
    def aic(self) -> float | None:
        """Akaike's criterion without the correction of `aicc`; the scale counts as a parameter."""
        k = len(self.params) - len(self.fixed) + 1
        return None if self.bic is None else self.bic - k * float(np.log(self.n)) + 2.0 * k

    def profile(self, name: str, level: float = 0.9) -> Profile:
        """The profile likelihood of a parameter, with an interval beside the bootstrap's (see `profile`)."""
        from isoflop.laws.profile import profile

        return profile(self, name, level)

    def to_xarray(self) -> xarray.Dataset:
        """The draws, a variable for each parameter, dims (chain, draw); see `export`."""
        from isoflop.laws.export import to_xarray

        return to_xarray(self)

    def to_inference_data(self) -> arviz.InferenceData:
        """The draws and the runs for arviz; see `export`."""
        from isoflop.laws.export import to_inference_data

        return to_inference_data(self)

    def conf_int(self, level: float = 0.9) -> dict[str, Interval]:
        """Central bootstrap interval of every parameter."""
        intervals.check_level(level)
        out = {}
        for i, (name, value) in enumerate(self.params.items()):
            low, high = intervals.quantiles(self.draws_array[:, i], level)
            out[name] = Interval(value=value, low=min(low, value), high=max(high, value), level=level)
        return out

    def summary(self, level: float = 0.9) -> str:
        """A plain-text table of the parameters, the quality of the fit and what to beware of."""
        head = [
            f"{self._law.formula}   ({self.estimator})",
            f"runs {self.n}   clusters {self.n_clusters}   objective {self.objective:.6g}"
            f"   starts at the optimum {self.starts_at_optimum}/{self.starts}",
            f"AICc {_number(self.aicc)}   BIC {_number(self.bic)}"
            f"   ordered hold-out {holdout_words(self.holdout, self.observations.scale)}",
            f"run-to-run noise {100 * self.noise_sd:.2f}%"
            + (
                f"   FLOPs a token {self.flops_model.kappa:.4g} N^{self.flops_model.gamma:.4g}"
                if splits(self._law)
                else ""
            ),
            f"bootstrap {self.bootstrap}: {len(self.draws)} draws kept, {self.draws_failed} failed,"
            f" {self.draws_at_bound} at a bound",
        ]
        table = [f"{'':8}{'value':>12}{'s.e.':>12}{f'{100 * level:g}% low':>12}{'high':>12}"]
        for name, part in self.conf_int(level).items():
            error = f"{self.se[name]:>12.4g}" if self.se else f"{'':>12}"
            if name in self.fixed:
                error = f"{'fixed':>12}"
            table.append(f"{name:8}{part.value:>12.5g}{error}{part.low:>12.4g}{part.high:>12.4g}")
        return "\n".join(
            [*head, "", *table, "", *(f"- {sentence}" for sentence in self.diagnostics)]
        ).rstrip()

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.summary())}</pre>"


def holdout_words(rows: tuple[Holdout, ...], scale: str) -> str:
    """The ordered hold-outs in a phrase: median size of the error and how far out, in the runs' `scale`."""
    if not rows:
        return "impossible: too few runs"
    errors = np.array([row.error for row in rows])
    return (
        f"{100 * np.median(np.abs(errors)):.2f}% in the median (mean {100 * errors.mean():+.2f}%),"
        f" up to {max(row.ratio for row in rows):.3g}x the fitted {scale}"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
