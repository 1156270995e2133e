"""Doublings: how much compute of the baseline a result was worth, and how much of its bytes and seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.errors import FitError
from isoflop.laws import intervals
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.records import Gain, Interval, Record

ALIKE = 0.02  # of ln(ratio), under which two losses look like nats and bits of the same
UNBOUNDED_FLOPS = 1e300  # stands for C_base(L) where L <= E: no compute reaches it; keeps the JSON strict
MIN_DRAWS = 2000  # joint draws of law and loss when the loss is uncertain
UNBOUNDED_PARAMS = 1e30  # stands for N*(L) where L <= E
LN2 = float(np.log(2.0))
BYTES, SECONDS, PRODUCT = "bytes", "seconds", "bytes x seconds"  # what inference doublings are counted in


def gain(
    fit: Fit,
    loss: float,
    flops: float,
    *,
    loss_se: float = 0.0,
    costs: Mapping[str, float] | None = None,
    interval: float = 0.9,
    seed: int = 0,
) -> Gain:
    """Training doublings log2(C_base(L) / C) of a model with held-out `loss` made with `flops` in all.

    C_base(L) inverts the compute-optimal frontier of the fitted law (Hoffmann et al. 2203.15556, eq. 4).
    The interval joins the law's bootstrap draws with normal noise of the loss: `loss_se` (nats a token)
    and nothing else, so give a standard error that includes the spread over seeds.

    Where L <= E the baseline never reaches L: `flops_base` is then `UNBOUNDED_FLOPS`, `doublings` follow
    from it, and `undefined_share` counts the draws; `is_defined` asks about the value itself.
    `costs` are the named parts of `flops`, kept in the record. Raises FitError on impossible numbers.
    """
    intervals.check_level(interval)
    parts = dict(costs or {})
    for name, value in {"loss": loss, "flops": flops}.items():
        if not (np.isfinite(value) and value > 0):
            raise FitError(f"A gain needs a positive {name}, not {value}.", hint="Measure it again.")
    if not (np.isfinite(loss_se) and loss_se >= 0):
        raise FitError(f"loss_se is {loss_se}.", hint="Give a standard error in nats a token, or 0.")
    bad = [name for name, value in parts.items() if not (np.isfinite(value) and value >= 0)]
    if bad:
        raise FitError(f"The cost {bad[0]!r} is {parts[bad[0]]}.", hint="Costs are FLOPs, zero or more.")

    draws = fit.draws_array
    rng = np.random.default_rng(seed)
    copies = max(1, -(-MIN_DRAWS // len(draws))) if loss_se > 0 else 1
    theta = np.tile(draws, (copies, 1))
    losses = loss + loss_se * rng.standard_normal(len(theta))
    base = fit.compute_for(losses, theta)
    value = float(_bounded(fit.compute_for(loss, fit.theta))[0])
    low, high = intervals.quantiles(_bounded(base), interval)
    flops_base = Interval(
        value=value, low=min(low, value), high=max(high, value), level=interval, of="baseline compute"
    )
    measured = fit.observations.compute()
    return Gain(
        loss=loss,
        flops=flops,
        costs=parts,
        flops_base=flops_base,
        doublings=Interval(
            value=float(np.log2(flops_base.value / flops)),
            low=float(np.log2(flops_base.low / flops)),
            high=float(np.log2(flops_base.high / flops)),
            level=interval,
            of="doublings",
        ),
        extrapolated=not measured.min() <= value <= measured.max(),
        undefined_share=float(np.isnan(base).mean()),
    )


class ScaleGain(Record):
    """What one recipe is worth over another at one compute."""

    flops: float
    doublings: Interval
    extrapolated: bool  # outside the compute that both recipes were measured at


class RecipeGain(Record):
    """What a recipe is worth over a baseline across scales; `trend` is doublings a tenfold of compute."""

    scales: tuple[ScaleGain, ...]
    trend: Interval
    mean: Interval | None = None  # over the scales, where runs were paired
    undefined_share: float  # of draws in which the baseline never reaches the loss, at the largest scale
    sentence: str


def compare(base: Fit, other: Fit, flops: Sequence[float] = (), *, interval: float = 0.9) -> RecipeGain:
    """Doublings log2(C_base(L_other(C)) / C) of a recipe with law `other` over one with law `base`.

    Both are taken on their compute-optimal frontiers at each C of `flops` (default: the ends and the
    middle of the range that both were measured in). Intervals join independent draws of both laws; trend is
    between the first and the last C. Raises FitError when a law has no frontier or a C is not positive.
    """
    intervals.check_level(interval)
    ranges = [law.observations.compute() for law in (base, other) if law.n]
    low = max((c.min() for c in ranges), default=0.0)
    high = min((c.max() for c in ranges), default=np.inf)
    if not flops:
        if not 0.0 < low < high < np.inf:
            raise FitError(
                "The two recipes were not measured at any common compute.", hint="Say where: --flops 1e18."
            )
        flops = [low, float(np.sqrt(low * high)), high]
    if not all(np.isfinite(c) and c > 0 for c in flops):
        raise FitError(f"A compute of {min(flops):g} makes no sense.", hint="Give FLOPs above zero.")
    index = np.arange(max(len(base.draws_array), len(other.draws_array)))
    theirs = np.concatenate([other.theta, other.draws_array[index % len(other.draws_array)]])
    ours = np.concatenate([base.theta, base.draws_array[(index + 1) % len(base.draws_array)]])
    found = np.array([_doublings(base, ours, other, theirs, c) for c in flops])  # (scales, 1 + draws)
    tens = np.log10(max(flops) / min(flops)) or 1.0
    trend = _interval((found[-1] - found[0]) / tens, interval)
    scales = tuple(
        ScaleGain(flops=c, doublings=_interval(row, interval), extrapolated=not low <= c <= high)
        for c, row in zip(flops, found, strict=True)
    )
    middle = scales[len(scales) // 2].flops
    losses = [float(law.split().optimum(law.theta, middle)[2][0]) for law in (base, other)]
    undefined = float(np.mean(found[-1, 1:] >= np.log2(UNBOUNDED_FLOPS / flops[-1])))
    return RecipeGain(
        scales=scales,
        trend=trend,
        undefined_share=undefined,
        sentence=_sentence(scales, trend) + _units(losses[1] / losses[0]),
    )


class Pair(Record):
    """One run of the baseline and one of the changed recipe, alike in seed and, nearly, in compute."""

    trunk: str  # of the baseline's run: runs of one trunk are alike in their noise
    scale: int  # pairs of one scale are repetitions
    params: float  # N of the baseline's run
    tokens: float  # D
    flops: float
    flops_other: float
    loss: float
    loss_other: float


def paired(base: Fit, pairs: Sequence[Pair], *, interval: float = 0.9, seed: int = 0) -> RecipeGain:
    """Doublings log2(C_base(L r) / C_base(L)) of a change, less what it computed more: log2(C_other / C).

    L is the law's loss of the baseline's run and r the measured ratio of the losses, mean over the pairs of
    a scale; `base` is the law of the baseline's runs. Pairs share order of data and initial weights, and so
    a part of their noise. Intervals join the law's draws with Student's t noise of r: the variance
    between the repetitions of a scale, pooled over scales and shrunk to `NOISE_PRIOR` for each run;
    repetitions of one trunk count once. Raises FitError without pairs, or when the law has no frontier.
    """
    intervals.check_level(interval)
    if not pairs:
        raise FitError("There are no pairs of runs to compare.", hint="Train them: isoflop ablate --set ...")
    keys = sorted({p.scale for p in pairs}, key=lambda k: min(p.flops for p in pairs if p.scale == k))
    groups = [[p for p in pairs if p.scale == k] for k in keys]
    ratios = [np.array([np.log(p.loss_other / p.loss) for p in g]) for g in groups]
    extra = np.array([np.mean([np.log2(p.flops_other / p.flops) for p in g]) for g in groups])
    theta = np.concatenate([base.theta, base.draws_array])
    shift = np.array([r.mean() for r in ratios])[:, None] + _ratio_noise(groups, ratios, len(theta), seed)
    found = np.array([_worth(base, g[0], row, theta) for g, row in zip(groups, shift, strict=True)])
    found -= extra[:, None]
    tens = np.log10([g[0].flops for g in groups])
    spread = ((tens - tens.mean()) ** 2).sum() or 1.0
    trend = _interval((tens - tens.mean()) @ found / spread, interval)
    mean = _interval(found.mean(axis=0), interval)
    scales = tuple(
        ScaleGain(flops=g[0].flops, doublings=_interval(row, interval), extrapolated=False)
        for g, row in zip(groups, found, strict=True)
    )
    undefined = float(np.mean(found[-1, 1:] >= np.log2(UNBOUNDED_FLOPS / scales[-1].flops) - 1))
    return RecipeGain(
        scales=scales, trend=trend, mean=mean, undefined_share=undefined, sentence=_mean_sentence(mean, trend)
    )


def _ratio_noise(groups: Sequence[Sequence[Pair]], ratios: Sequence[Array], draws: int, seed: int) -> Array:
    """(scales, draws) errors of the mean log ratios, zero in the first draw; one error a size's trunks."""
    rng = np.random.default_rng(seed)
    sizes = sorted({g[0].params for g in groups})
    prior = 2 * intervals.NOISE_PRIOR**2  # of a ratio of two runs
    repeated = sum(len({p.trunk for g in groups for p in g if g[0].params == s}) - 1 for s in sizes)
    within = float(np.mean([r.var(ddof=1) if len(r) > 1 else 0.0 for r in ratios])) * repeated
    df = intervals.NOISE_PRIOR_DF + repeated
    sd = np.sqrt((intervals.NOISE_PRIOR_DF * prior + within) / df)
    error = sd * rng.standard_t(df, (len(sizes), draws))
    error[:, 0] = 0.0
    return np.array([error[sizes.index(g[0].params)] / np.sqrt(len(g)) for g in groups])


def _worth(base: Fit, at: Pair, shift: Array, theta: Array) -> Array:
    """(draws,) doublings of a loss exp(shift) times the law's at that pair's size and tokens."""
    value, draws = base.loss(at.params, at.tokens), base.predict_draws(at.params, at.tokens)[:, 0]
    law = np.concatenate([value, draws])
    before, after = (base.compute_for(x, theta) for x in (law, law * np.exp(shift)))
    if np.isnan(before[0]):  # law > E, so only without a frontier
        raise FitError(
            "The law of the plain runs has no best split: N or D do not matter in it.",
            hint="Compare more runs, or larger ones, by a larger budget.",
        )
    found = np.log2(_bounded(after) / before)
    return np.asarray(np.where(np.isnan(before), found[0], found))


def _doublings(base: Fit, ours: Array, other: Fit, theirs: Array, flops: float) -> Array:
    """(1 + draws,) doublings at one compute."""
    reached = other.split().optimum(theirs, flops)[2]
    if not np.isfinite(reached[0]):
        raise FitError("The second law has no best split: N or D do not matter in it.", hint="Add runs.")
    reached = np.where(np.isfinite(reached), reached, reached[0])
    return np.asarray(np.log2(_bounded(base.compute_for(reached, ours)) / flops))


def _interval(row: Array, level: float, of: str = "doublings") -> Interval:
    """A value first, its draws after it."""
    low, high = intervals.quantiles(row[1:], level)
    value = float(row[0])
    return Interval(value=value, low=min(low, value), high=max(high, value), level=level, of=of)


def _words(found: Interval) -> str:
    return f"{found.value:+.2f} doublings [{found.low:+.2f}, {found.high:+.2f}]"


def _is_sure(found: Interval) -> bool:
    return found.low > 0 or found.high < 0


def _sentence(scales: Sequence[ScaleGain], trend: Interval) -> str:
    last = scales[-1]
    if last.doublings.value >= np.log2(UNBOUNDED_FLOPS / last.flops) - 1:
        return f"No compute brings the baseline to what the change reaches at {last.flops:.3g} FLOPs."
    out = f"At {last.flops:.3g} FLOPs the change is worth {_words(last.doublings)}"
    out += "." if _is_sure(last.doublings) else ": not told apart from nothing."
    return out if len(scales) == 1 else f"{out} {_trend_words(trend)}"


def _trend_words(trend: Interval) -> str:
    if not _is_sure(trend):
        return f"Whether that grows or shrinks with scale cannot be told ({_words(trend)} a tenfold)."
    way = "grows" if trend.value > 0 else "shrinks"
    return f"It {way} with scale: {_words(trend)} a tenfold of compute."


def _mean_sentence(mean: Interval, trend: Interval) -> str:
    out = f"The change is worth {_words(mean)} of compute on average"
    out += "." if _is_sure(mean) else ": not told apart from nothing."
    return f"{out} {_trend_words(trend)}"


def _units(ratio: float) -> str:
    """A question where one recipe's losses are ln 2 times the other's, or as if."""
    if abs(abs(np.log(ratio)) - np.log(1 / np.log(2))) > ALIKE:
        return ""
    return (
        f" Their losses differ by a factor {ratio:.2f}: is one table in nats and the other in bits"
        " (--map loss=COLUMN:bits)?"
    )


def is_defined(result: Gain) -> bool:
    """Whether the baseline law reaches the loss at all (L > E of the fitted law)."""
    return result.flops_base.value < UNBOUNDED_FLOPS


def _bounded(base: Array) -> Array:
    """C_base with `UNBOUNDED_FLOPS` where it is undefined or larger."""
    return np.asarray(np.minimum(np.where(np.isnan(base), np.inf, base), UNBOUNDED_FLOPS))


# -- inference: what serving costs -----------------------------------------------------------------------


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
    drawn = _Drawn.of(fit, dense, interval, seed)
    losses = loss + _noise_sd("loss_se", loss_se) * drawn.noise[:, 0]
    base, params, undefined = drawn.base(losses)
    compute = float(fit.compute_for(loss)[0])
    measured, sizes = fit.observations.compute(), [d.params for d in drawn.dense]
    inside = measured.min() <= compute <= measured.max() and sizes[0] <= params[0] <= sizes[-1]
    own = cost.spread * drawn.noise[:, 1]
    return {
        name: InferenceGain(
            q=cost.of(name),
            q_base=_interval(np.exp(row), interval, of="baseline cost"),
            doublings=_interval(
                (row - np.log(cost.of(name)) - (own if name != BYTES else 0.0)) / LN2, interval
            ),
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
    drawn = _Drawn.of(fit, dense, interval, seed)
    first = losses[0] + _noise_sd("loss_se", loss_se) * drawn.noise[:, 0]
    second = first + losses[1] - losses[0] + _noise_sd("change_se", change_se) * drawn.noise[:, 3]
    logs = [
        drawn.base(loss)[0][PRODUCT] - np.log(cost.of(PRODUCT)) - cost.spread * noise
        for loss, cost, noise in zip((first, second), costs, drawn.noise[:, 1:3].T, strict=True)
    ]
    return _interval((logs[1] - logs[0]) / LN2, interval)


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
    params = np.where(undefined, UNBOUNDED_PARAMS, fit.split().optimum(theta, _bounded(compute))[0])
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
