"""When growth of the largest training run meets what data, power, chips, money and time allow: Monte Carlo.

In each draw growth goes through the largest known run, every limit is a path of FLOPs over the years, and a
limit binds where growth first reaches it. What limits share (a run's days, its share of peak) is drawn once,
so their dates are joint, and the share of draws in which each is the first is its probability.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.errors import TrendError
from isoflop.laws.intervals import check_level, quantiles
from isoflop.laws.result import Fit
from isoflop.laws.solve import Array
from isoflop.limits import conversions
from isoflop.limits.answers import Band, IndustryAnswer, IndustryLimit, central, first_of
from isoflop.limits.assumptions import BINDS, HORIZON, LIMITS, Assumptions
from isoflop.limits.growth import Averaged, Exponential
from isoflop.trend.growth import Draws

STEP = 0.1  # years, of the grid between whose points dates interpolate
FEASIBLE_YEAR = 2030.0  # for which Epoch AI 2024 gave its figures
BLOCK = 10_000  # draws at once, for memory
LEAST_DRAWS, MOST_DRAWS = 100, 1_000_000
TABLE_POINTS = 64  # of the conversion of tokens, which is all but a power law
LARGEST = 600.0  # ln FLOP: infinity, at a growth model's singularity, would not interpolate
LN2 = float(np.log(2.0))


@dataclass(frozen=True)
class Futures:
    """Some draws of everything, and the years at which limits are asked for."""

    assumptions: Assumptions
    law: Fit
    draws: Mapping[str, Array]  # (n,) by quantity
    years: Array  # (t,)

    def log(self, name: str) -> Array:
        """(n, 1) logarithm of what does not change."""
        return np.log(self.draws[name])[:, None]

    def grown(self, name: str, growth: str, *, falls: bool = False) -> Array:
        """(n, t) logarithm of what grows, or falls, by a factor each year."""
        start = self.assumptions.quantities[name].year
        assert start is not None  # the reader saw to it
        rate = -self.log(growth) if falls else self.log(growth)
        return self.log(name) + rate * (self.years - start)

    @property
    def seconds(self) -> Array:
        return self.log("run.days") + float(np.log(conversions.SECONDS_A_DAY))

    @property
    def utilisation(self) -> Array:
        """Share of the 16-bit peak; above 1 where fewer bits are faster than it."""
        return self.log("run.utilisation") + self.log("run.precision")


def _data(f: Futures) -> Array:
    tokens = f.grown("data.tokens", "data.growth") + f.log("data.beyond_text") - f.log("data.overtraining")
    grid = np.linspace(tokens.min(), tokens.max(), TABLE_POINTS)
    table = conversions.of_tokens(f.law, grid, np.repeat(f.law.theta, TABLE_POINTS, axis=0))
    # Overtrained by k, a model of compute C sees k times the best split's tokens.
    return np.interp(tokens, grid, table)


def _power(f: Futures, where: str) -> Array:
    watts = f.grown(f"{where}.watts", f"{where}.growth")
    efficiency = f.grown("run.flops_per_joule", "run.efficiency_growth")
    return conversions.of_power(watts, f.seconds, efficiency, f.utilisation)


def _chips(f: Futures) -> Array:
    chips = f.grown("chips.made", "chips.growth") + f.log("chips.years") + f.log("chips.share")
    return conversions.of_chips(chips, f.log("run.chip_flops"), f.seconds, f.utilisation)


def _money(f: Futures) -> Array:
    price = f.grown("run.usd_per_chip_hour", "run.price_performance", falls=True)
    usd = f.grown("money.usd", "money.growth")
    return conversions.of_money(usd, price, f.log("run.chip_flops"), f.utilisation)


def _latency(f: Futures) -> Array:
    return f.log("latency.flops")


def _loss(f: Futures) -> Array:
    gap = np.log(f.draws["loss.gap"])
    return conversions.of_gap(f.law, gap, np.repeat(f.law.theta, len(gap), axis=0))[:, None]


# Of each limit what it is, and (n, t) or (n, 1) ln FLOP that it allows.
PATHS: dict[str, tuple[str, Callable[[Futures], Array]]] = {
    "data": ("text, images and video to train on", _data),
    "campus-power": ("power of one campus", lambda f: _power(f, "campus-power")),
    "spread-power": ("power of many campuses", lambda f: _power(f, "spread-power")),
    "chips": ("chips made for one run", _chips),
    "money": ("the dearest run that investors bear", _money),
    "latency": ("moving data between chips in time", _latency),
    "loss": ("loss as good as irreducible", _loss),
}
assert tuple(PATHS) == LIMITS


@dataclass(frozen=True)
class _Met:
    """Where growth meets the limits, of n draws; infinite where it does not."""

    dates: Array  # (n, limits)
    log_flops: Array  # (n, limits)
    feasible: Array  # (n, limits) ln FLOP in the feasible year
    holds: NDArray[np.bool_]  # (n, limits) whether the limit is there at all
    start: Array  # (n,) ln FLOP of the largest run
    growth: Array  # (n, whole years)


def industry(
    assumptions: Assumptions,
    *,
    growth: Averaged | None = None,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.9,
) -> IndustryAnswer:
    """When each limit binds, which is the first, and how many doublings are left until then.

    `growth` (None: the steady rate of the assumptions) says how the largest run grows from the largest known
    one on. Raises TrendError for fewer than 100 draws or over a million, FitError for a level that makes no
    sense.
    """
    check_draws(draws)
    check_level(level)
    start = assumptions.quantities["growth.frontier"].year
    assert start is not None  # the reader saw to it
    years = np.append(np.arange(start, HORIZON, STEP), HORIZON)
    model = growth or Exponential.of(assumptions)
    rng, law = np.random.default_rng(seed), Fit.of_published(assumptions.law)
    sizes = [min(BLOCK, draws - i) for i in range(0, draws, BLOCK)]
    parts = [_block(Futures(assumptions, law, assumptions.draws(n, rng), years), model, rng) for n in sizes]
    met = _Met(*(np.concatenate(part) for part in zip(*(vars(p).values() for p in parts), strict=True)))
    return _answer(met, assumptions, level, years, seed, model.words)


def check_draws(draws: int) -> None:
    """Raises TrendError for too few draws to speak of an interval, or more than memory holds."""
    if not LEAST_DRAWS <= draws <= MOST_DRAWS:
        few = draws < LEAST_DRAWS
        raise TrendError(
            f"{draws:,} draws are too {'few for intervals' if few else 'many to keep'}.",
            hint=f"Give {LEAST_DRAWS} to {MOST_DRAWS:,}, e.g. 10000.",
        )


def _block(f: Futures, model: Draws, rng: np.random.Generator) -> _Met:
    n, years = len(f.draws["growth.frontier"]), f.years
    shape = np.nan_to_num(model.draws(years, n, rng), nan=LARGEST, neginf=-LARGEST)
    shape, over = np.minimum(shape, LARGEST), shape[:, :1] >= LARGEST
    # Where a table's growth has passed its singularity by now, whatever limit there is binds at once.
    growth = f.log("growth.frontier") + np.where(over, shape, shape - shape[:, :1])
    dates, log_flops, feasible = (np.full((n, len(LIMITS)), np.inf) for _ in range(3))
    holds = rng.random((n, len(LIMITS))) < np.array([f.assumptions.applies[name] for name in LIMITS])
    for i, name in enumerate(LIMITS):
        if f"{name}.{BINDS}" in f.draws:
            dates[:, i] = np.maximum(f.draws[f"{name}.{BINDS}"], years[0])
            log_flops[:, i] = _at(growth, years, dates[:, i])
        else:
            path = np.broadcast_to(PATHS[name][1](f), growth.shape)
            dates[:, i], log_flops[:, i] = crossing(years, growth, path)
            feasible[:, i] = path[:, int(np.abs(years - _feasible_year(years)).argmin())]
    dates[~holds], log_flops[~holds] = np.inf, np.inf
    return _Met(dates, log_flops, feasible, holds, growth[:, 0], growth[:, :: round(1 / STEP)])


def _feasible_year(years: Array) -> float:
    """`FEASIBLE_YEAR`, or the first one where that is over."""
    return max(FEASIBLE_YEAR, float(years[0]))


def crossing(years: Array, growth: Array, limit: Array) -> tuple[Array, Array]:
    """(n,) dates at which growth (n, t) first reaches a limit (n, t), and the ln FLOP there; inf if never.

    Where the limit lies below growth from the start the date is the start, and the ln FLOP the limit's.
    """
    over = growth - limit
    at = (over >= 0).argmax(axis=1)
    row, before = np.arange(len(over)), np.maximum(at - 1, 0)
    left, right = over[row, before], over[row, at]
    step = right - left
    part = np.where(step > 0, right / np.where(step > 0, step, 1.0), 0.0)  # back from the point reached
    dates = years[at] - part * (years[at] - years[before])
    flops = growth[row, at] - part * (growth[row, at] - growth[row, before])
    flops = np.where(at == 0, limit[:, 0], flops)
    never = over[row, at] < 0
    return np.where(never, np.inf, dates), np.where(never, np.inf, flops)


def _at(growth: Array, years: Array, dates: Array) -> Array:
    """(n,) growth (n, t) at dates of each draw's own, of the grid's point before."""
    index = np.clip(np.searchsorted(years, dates, side="right") - 1, 0, len(years) - 1)
    return np.asarray(growth[np.arange(len(growth)), index])


def _answer(
    met: _Met, assumptions: Assumptions, level: float, years: Array, seed: int, words: str
) -> IndustryAnswer:
    earliest = met.dates.min(axis=1)
    # Of several that bind from the start, the lowest is the first.
    among = np.where(met.dates == earliest[:, None], met.log_flops, np.inf)
    lowest, first = among.min(axis=1), first_of(among)
    left = (met.log_flops - met.start[:, None]) / LN2
    limits = [
        IndustryLimit(
            name=name, what=PATHS[name][0], applies=assumptions.applies[name],
            date=central(met.dates[rows, i], level, "date"),
            flops=central(np.exp(met.log_flops[rows, i]), level, "FLOP"),
            doublings=central(left[rows, i], level, "doublings"),
            feasible=central(np.exp(met.feasible[rows, i]), level, "FLOP"),
            reached=float(np.isfinite(met.dates[rows, i]).mean()), first=float(first[i]),
        )
        for i, name in enumerate(LIMITS)
        if (rows := met.holds[:, i]).any()
    ]  # fmt: skip
    return IndustryAnswer(
        draws=len(earliest), seed=seed, level=level, start=float(years[0]),
        frontier=central(np.exp(met.start), level, "FLOP"), horizon=HORIZON,
        feasible_year=_feasible_year(years), limits=tuple(limits), date=central(earliest, level, "date"),
        flops=central(np.exp(lowest), level, "FLOP"),
        doublings=central((lowest - met.start) / LN2, level, "doublings"),
        free=float(np.isinf(earliest).mean()), band=_band(met.growth, years[:: round(1 / STEP)], level),
        growth=words, assumptions=assumptions.path, snapshot=assumptions.snapshot,
    )  # fmt: skip


def _band(growth: Array, years: Array, level: float) -> Band:
    ends = np.array([quantiles(column, level) for column in growth.T])
    low, middle, high = (
        tuple(np.exp(v).tolist()) for v in (ends[:, 0], np.median(growth, axis=0), ends[:, 1])
    )
    return Band(years=tuple(years.tolist()), low=low, middle=middle, high=high)
