"""What one recipe is worth over another, by their laws or pair by pair."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.errors import FitError
from isoflop.gain.compute import UNBOUNDED_FLOPS, bounded, drawn
from isoflop.laws import intervals
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.records import Interval, Record

ALIKE = 0.02  # of ln(ratio), under which two losses look like nats and bits of the same


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
    trend = drawn((found[-1] - found[0]) / tens, interval)
    scales = tuple(
        ScaleGain(flops=c, doublings=drawn(row, interval), extrapolated=not low <= c <= high)
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
    trend = drawn((tens - tens.mean()) @ found / spread, interval)
    mean = drawn(found.mean(axis=0), interval)
    scales = tuple(
        ScaleGain(flops=g[0].flops, doublings=drawn(row, interval), extrapolated=False)
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
    found = np.log2(bounded(after) / before)
    return np.asarray(np.where(np.isnan(before), found[0], found))


def _doublings(base: Fit, ours: Array, other: Fit, theirs: Array, flops: float) -> Array:
    """(1 + draws,) doublings at one compute."""
    reached = other.split().optimum(theirs, flops)[2]
    if not np.isfinite(reached[0]):
        raise FitError("The second law has no best split: N or D do not matter in it.", hint="Add runs.")
    reached = np.where(np.isfinite(reached), reached, reached[0])
    return np.asarray(np.log2(bounded(base.compute_for(reached, ours)) / flops))


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
