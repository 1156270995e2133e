"""Inference doublings: what serving costs, over the dense models of a law."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.errors import FitError
from isoflop.gain.compute import MIN_DRAWS, bounded, drawn
from isoflop.laws import intervals
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.records import Interval, Record

UNBOUNDED_PARAMS = 1e30  # stands for N*(L) where L <= E
LN2 = float(np.log(2.0))
BYTES, SECONDS, PRODUCT = "bytes", "seconds", "bytes x seconds"  # what inference doublings are counted in


class ServingCost(Record):
    """What a model costs where it serves."""

    bytes: float  # on disk
    seconds: float  # a token of new text
    spread: float = 0.0  # relative sd of the seconds, from one measurement to the next

    def of(self, cost: str) -> float:
        """One of BYTES, SECONDS and PRODUCT."""
        return {BYTES: self.bytes, SECONDS: self.seconds, PRODUCT: self.bytes * self.seconds}[cost]


class DenseCost(ServingCost):
    """Of a dense model in full precision."""

    params: float  # N
    quiet: bool = True  # whether the machine had little else to do while its seconds were measured


class InferenceGain(Record):
    """Inference doublings of a result over the dense models of a law, in one cost q."""

    q: float
    q_base: Interval  # of the dense model that the law says reaches the loss
    doublings: Interval
    extrapolated: bool  # its size or its compute is outside the measured ones
    undefined_share: float  # share of draws with L <= E


def inference(
    fit: Fit, loss: float, cost: ServingCost, dense: Sequence[DenseCost], *, loss_se: float = 0.0,
    interval: float = 0.9, seed: int = 0,
) -> dict[str, InferenceGain]:  # fmt: skip
    """Inference doublings log2(q_base(L) / q) of a model with held-out `loss`, by cost q.

    q_base(L) is what the dense models cost at N*(L), the size on the law's compute-optimal frontier that
    reaches L: interpolated between the measured sizes, log against log. The interval joins the law's
    bootstrap draws with normal noise of the loss (`loss_se`, nats a token) and of all logs of seconds. Where
    L <= E no size reaches L; `undefined_share` counts these draws. Raises FitError for fewer than two sizes,
    impossible numbers, or a law without a best split.
    """
    draws = _Drawn.of(fit, dense, interval, seed)
    losses = loss + _noise_sd("loss_se", loss_se) * draws.noise[:, 0]
    base, params, undefined = draws.base(losses)
    compute = float(fit.compute_for(loss)[0])
    measured, sizes = fit.observations.compute(), [d.params for d in draws.dense]
    inside = measured.min() <= compute <= measured.max() and sizes[0] <= params[0] <= sizes[-1]
    own = cost.spread * draws.noise[:, 1]
    return {
        name: InferenceGain(
            q=cost.of(name),
            q_base=drawn(np.exp(row), interval, of="baseline cost"),
            doublings=drawn((row - np.log(cost.of(name)) - (own if name != BYTES else 0.0)) / LN2, interval),
            extrapolated=not inside,
            undefined_share=undefined,
        )
        for name, row in base.items()
    }


def inference_over(
    fit: Fit, losses: tuple[float, float], costs: tuple[ServingCost, ServingCost],
    dense: Sequence[DenseCost], *, loss_se: float = 0.0, change_se: float = 0.0, interval: float = 0.9,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """By how many inference doublings (PRODUCT) the second of two models is worth more than the first.

    One draw of the law, of the noise of the loss and of the dense models' seconds holds for both;
    `change_se` is the standard error of the difference of their losses. Raises FitError as `inference`.
    """
    draws = _Drawn.of(fit, dense, interval, seed)
    first = losses[0] + _noise_sd("loss_se", loss_se) * draws.noise[:, 0]
    second = first + losses[1] - losses[0] + _noise_sd("change_se", change_se) * draws.noise[:, 3]
    logs = [
        draws.base(loss)[0][PRODUCT] - np.log(cost.of(PRODUCT)) - cost.spread * noise
        for loss, cost, noise in zip((first, second), costs, draws.noise[:, 1:3].T, strict=True)
    ]
    return drawn((logs[1] - logs[0]) / LN2, interval)


@dataclass(frozen=True)
class _Drawn:
    """Joint draws, the fitted values first: of the law, of four standard normals, of the dense costs."""

    fit: Fit
    theta: Array  # (1 + draws, p)
    noise: Array  # (1 + draws, 4): of a loss, of two models' seconds, of a difference of losses
    dense: tuple[DenseCost, ...]  # smallest first
    log_seconds: Array  # (1 + draws, sizes)

    @classmethod
    def of(cls, fit: Fit, dense: Sequence[DenseCost], interval: float, seed: int) -> _Drawn:
        intervals.check_level(interval)
        if len({d.params for d in dense}) < 2:
            raise FitError(
                "Inference doublings need the costs of two dense models or more.", hint="Add sizes."
            )
        draws, ordered = fit.draws_array, tuple(sorted(dense, key=lambda d: d.params))
        theta = np.concatenate([fit.theta, np.tile(draws, (max(1, -(-MIN_DRAWS // len(draws))), 1))])
        noise = np.random.default_rng(seed).standard_normal((len(theta), 4 + len(dense)))
        noise[0] = 0.0
        seconds = np.log([d.seconds for d in ordered]) + noise[:, 4:] * [d.spread for d in ordered]
        return cls(fit, theta, noise[:, :4], ordered, seconds)

    def base(self, losses: Array) -> tuple[dict[str, Array], Array, float]:
        """Logs of q_base at those losses (1 + draws,) by cost, N* there, the share of draws with L <= E."""
        params, undefined = _params_for(self.fit, self.theta, losses)
        weight = _between(np.log([d.params for d in self.dense]), np.log(params))
        size = weight @ np.log([d.bytes for d in self.dense])
        time = (weight * self.log_seconds).sum(axis=1)
        share = float(undefined[1:].mean())
        return {BYTES: size, SECONDS: time, PRODUCT: size + time}, params, share


def params_for(fit: Fit, loss: float) -> float:
    """N*(L): the size on the compute-optimal frontier that reaches `loss`; `UNBOUNDED_PARAMS` where L <= E.

    Raises FitError when the law has no best split.
    """
    return float(_params_for(fit, fit.theta, np.array([loss]))[0][0])


def _params_for(fit: Fit, theta: Array, losses: Array) -> tuple[Array, Array]:
    """N*(L) by draw, (m,), the first one's where a draw has no best split; and where L <= E."""
    compute = fit.compute_for(losses, theta)
    undefined = np.isnan(compute)
    params = np.where(undefined, UNBOUNDED_PARAMS, fit.split().optimum(theta, bounded(compute))[0])
    known = np.isfinite(params) & (params > 0)
    if not known[0]:
        raise FitError("The law has no best split: N or D do not matter in it.", hint="Add runs.")
    return np.where(known, params, params[0]), undefined


def _between(known: Array, at: Array) -> Array:
    """(m, n) weights by which values at n ascending points become values at m others, in straight lines.

    Outside the points the line has the slope from the first to the last of them.
    """
    right = np.clip(np.searchsorted(known, at), 1, len(known) - 1)
    share = (at - known[right - 1]) / (known[right] - known[right - 1])
    row, out = np.arange(len(at)), np.zeros((len(at), len(known)))
    out[row, right - 1], out[row, right] = 1 - share, share
    for end, beyond in ((0, at < known[0]), (-1, at > known[-1])):
        reach = (at[beyond] - known[end]) / (known[-1] - known[0])
        out[beyond] = 0.0
        out[beyond, end] = 1.0
        out[beyond, 0] -= reach
        out[beyond, -1] += reach
    return out


def _noise_sd(name: str, value: float) -> float:
    if not (np.isfinite(value) and value >= 0):
        raise FitError(f"{name} is {value}.", hint="Give a standard error in nats a token, or 0.")
    return value
