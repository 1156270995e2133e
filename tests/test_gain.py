"""Doublings against the frontier they invert."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from isoflop.errors import FitError
from isoflop.gain import (
    BYTES,
    PRODUCT,
    SECONDS,
    UNBOUNDED_FLOPS,
    DenseCost,
    Pair,
    ServingCost,
    gain,
    inference,
    inference_over,
    is_defined,
    paired,
    params_for,
)
from isoflop.laws import Fit, fit
from isoflop.records import Gain


@cache
def law() -> Fit:
    """40 runs of a known law, 0.1% noise."""
    N = np.repeat(1e6 * 2.0 ** np.arange(8), 5)
    D = N * 5.0 * np.tile(2.0 ** np.arange(5), 8)
    L = 1.8 + 480.0 / N**0.35 + 2100.0 / D**0.37
    L *= np.exp(0.001 * np.random.default_rng(0).standard_normal(len(L)))
    return fit({"params": N, "tokens": D, "loss": L}, bootstrap=300)


def test_a_run_on_the_frontier_gains_nothing() -> None:
    best = law().optimum(1e17)
    found = gain(law(), best.loss.value, 1e17)
    assert found.doublings.value == pytest.approx(0.0, abs=1e-6)
    assert found.doublings.low < 0 < found.doublings.high
    assert not found.extrapolated
    assert found.undefined_share == 0.0


def test_half_the_compute_is_one_doubling_and_costs_are_kept() -> None:
    best = law().optimum(1e17)
    found = gain(law(), best.loss.value, 5e16, costs={"teacher": 2e16, "student": 3e16})
    assert found.doublings.value == pytest.approx(1.0, abs=1e-6)
    assert found.costs == {"teacher": 2e16, "student": 3e16}


def test_the_closed_form_of_the_design() -> None:
    """C_base(L) = C0 ((L0 - E)/(L - E))^((a+b)/(a b))."""
    p = law().params
    power = (p["alpha"] + p["beta"]) / (p["alpha"] * p["beta"])
    first = law().optimum(1e16).loss.value
    expected = 1e16 * ((first - p["E"]) / (3.0 - p["E"])) ** power
    assert gain(law(), 3.0, 1e16).flops_base.value == pytest.approx(expected, rel=1e-9)


def test_noise_of_the_loss_widens_the_interval_and_seeds_are_explicit() -> None:
    sure, unsure = gain(law(), 3.5, 1e16), gain(law(), 3.5, 1e16, loss_se=0.05)
    assert unsure.doublings.high - unsure.doublings.low > sure.doublings.high - sure.doublings.low
    assert gain(law(), 3.5, 1e16, loss_se=0.05) == unsure
    assert gain(law(), 3.5, 1e16, loss_se=0.05, seed=1) != unsure


def test_extrapolated_outside_the_measured_runs() -> None:
    assert gain(law(), law().optimum(1e22).loss.value, 1e17).extrapolated
    assert gain(law(), law().optimum(1e12).loss.value, 1e17).extrapolated


def test_below_the_floor_is_undefined_and_strict_json() -> None:
    found = gain(law(), 0.5 * law().params["E"], 1e17)
    assert not is_defined(found)
    assert found.undefined_share == 1.0
    assert found.flops_base.value == UNBOUNDED_FLOPS
    assert found.extrapolated

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(found.to_json(), parse_constant=refuse)
    assert Gain.from_json(found.to_json()) == found


def test_near_the_floor_some_draws_are_undefined() -> None:
    floor = law().conf_int(0.5)["E"]
    found = gain(law(), floor.high, 1e17, loss_se=0.001)
    assert 0.05 < found.undefined_share < 0.95
    assert found.flops_base.high == UNBOUNDED_FLOPS


@pytest.mark.parametrize(
    "bad",
    [{"loss": 0.0}, {"loss": float("nan")}, {"flops": -1.0}, {"loss_se": -0.1}, {"costs": {"teacher": -1.0}}],
)
def test_impossible_numbers_are_named(bad: dict[str, object]) -> None:
    with pytest.raises(FitError):
        gain(law(), **{"loss": 3.0, "flops": 1e17, **bad})  # type: ignore[arg-type]


def pairs_of(doublings: float, seeds: int = 3, extra: float = 0.0) -> list[Pair]:
    """Runs of three sizes, each a pair with what `doublings` more compute would reach on the frontier."""
    base, out = law(), []
    for scale, (N, D) in enumerate(((2e6, 4e7), (8e6, 1.6e8), (3.2e7, 6.4e8))):
        loss = float(base.loss(N, D)[0])
        reached = base.optimum(2.0**doublings * float(base.compute_for(loss, base.theta)[0])).loss.value
        out += [
            Pair(
                trunk=f"{scale} {seed}", scale=scale, params=N, tokens=D, flops=6 * N * D,
                flops_other=6 * N * D * 2.0**extra, loss=loss * noise, loss_other=reached * noise,
            )
            for seed, noise in zip(range(seeds), (1.0, 1.01, 0.99), strict=False)
        ]  # fmt: skip
    return out


@pytest.mark.parametrize("doublings", [-0.5, 0.0, 0.7])
def test_pairs_tell_the_doublings_that_they_were_made_with(doublings: float) -> None:
    found = paired(law(), pairs_of(doublings))
    assert found.mean is not None
    assert found.mean.value == pytest.approx(doublings, abs=1e-6)
    assert found.mean.low < doublings < found.mean.high
    assert [s.doublings.value for s in found.scales] == pytest.approx([doublings] * 3, abs=1e-6)
    assert found.trend.value == pytest.approx(0.0, abs=1e-6)
    assert ("not told apart" in found.sentence) == (doublings == 0.0)


def test_compute_that_the_change_added_is_taken_off() -> None:
    plain, dear = (paired(law(), pairs_of(0.7, extra=extra)).mean for extra in (0.0, 1.0))
    assert plain is not None
    assert dear is not None
    assert dear.value == pytest.approx(plain.value - 1.0)


def test_more_seeds_narrow_the_interval_and_disagreeing_ones_widen_it() -> None:
    one, three = (paired(law(), pairs_of(0.3, seeds=n)).mean for n in (1, 3))
    apart = [
        p.model_copy(update={"loss_other": p.loss_other * factor})
        for p, factor in zip(pairs_of(0.3), (0.97, 1.0, 1.03) * 3, strict=True)
    ]
    wide = paired(law(), apart).mean
    assert one is not None
    assert three is not None
    assert wide is not None
    assert three.high - three.low < one.high - one.low < wide.high - wide.low


def test_the_order_of_pairs_does_not_matter_and_none_is_refused() -> None:
    pairs = pairs_of(0.3)
    assert paired(law(), pairs[::-1]) == paired(law(), pairs)
    with pytest.raises(FitError, match="no pairs"):
        paired(law(), [])


# -- inference -----------------------------------------------------------------------------------------

LEAST, MOST = 3e6, 3e8  # dense sizes


def dense(spread: float = 0.0) -> list[DenseCost]:
    """Four bytes a parameter and a file's own 1 MB; a nanosecond a parameter to the power 0.9."""
    sizes = np.geomspace(LEAST, MOST, 9).tolist()
    return [DenseCost(params=n, bytes=1e6 + 4 * n, seconds=1e-9 * n**0.9, spread=spread) for n in sizes]


def dense_at(params: float, spread: float = 0.0) -> ServingCost:
    return ServingCost(bytes=1e6 + 4 * params, seconds=1e-9 * params**0.9, spread=spread)


def test_a_dense_model_on_the_frontier_is_worth_nothing_where_it_serves() -> None:
    best = law().optimum(1e18)
    found = inference(law(), best.loss.value, dense_at(best.params.value), dense())
    assert list(found) == [BYTES, SECONDS, PRODUCT]
    for worth in found.values():
        assert worth.doublings.value == pytest.approx(0.0, abs=0.02)
        assert worth.doublings.low < 0 < worth.doublings.high
        assert not worth.extrapolated
        assert worth.undefined_share == 0.0


def test_a_quarter_of_the_bytes_in_half_the_time_is_three_doublings() -> None:
    best = law().optimum(1e18)
    whole = dense_at(best.params.value)
    less = ServingCost(bytes=whole.bytes / 4, seconds=whole.seconds / 2)
    before, after = (inference(law(), best.loss.value, cost, dense()) for cost in (whole, less))
    more = {name: after[name].doublings.value - before[name].doublings.value for name in after}
    assert more == pytest.approx({BYTES: 2.0, SECONDS: 1.0, PRODUCT: 3.0})
    assert after[PRODUCT].q == less.bytes * less.seconds


def test_base_costs_are_those_of_the_size_that_reaches_the_loss() -> None:
    best = law().optimum(1e18)
    assert params_for(law(), best.loss.value) == pytest.approx(best.params.value, rel=1e-6)
    base = inference(law(), best.loss.value, dense_at(1e7), dense())
    assert base[SECONDS].q_base.value == pytest.approx(1e-9 * best.params.value**0.9, rel=1e-6)


def test_beyond_the_sizes_the_line_goes_on_and_says_so() -> None:
    for flops in (1e13, 1e23):
        best = law().optimum(flops)
        assert not LEAST < best.params.value < MOST
        found = inference(law(), best.loss.value, dense_at(best.params.value), dense())
        assert found[SECONDS].extrapolated
        assert found[SECONDS].doublings.value == pytest.approx(0.0, abs=0.01)


def test_a_loss_that_no_size_reaches_is_undefined() -> None:
    found = inference(law(), 0.9 * law().params["E"], dense_at(1e7), dense())
    assert found[BYTES].undefined_share == 1.0
    assert found[BYTES].extrapolated
    assert np.isfinite(found[PRODUCT].doublings.value)


def test_spreads_of_speed_and_noise_of_the_loss_widen_the_interval() -> None:
    loss = law().optimum(1e18).loss.value

    def width(cost: str, spread: float, dense_spread: float, loss_se: float) -> float:
        found = inference(law(), loss, dense_at(1e7, spread), dense(dense_spread), loss_se=loss_se)[cost]
        return found.doublings.high - found.doublings.low

    sure = width(SECONDS, 0.0, 0.0, 0.0)
    assert width(SECONDS, 0.5, 0.0, 0.0) > width(SECONDS, 0.0, 0.5, 0.0) > sure
    assert width(SECONDS, 0.0, 0.0, 0.05) > sure
    assert width(BYTES, 0.5, 0.5, 0.0) == width(BYTES, 0.0, 0.0, 0.0)


def test_two_models_are_compared_by_the_same_draws() -> None:
    loss = law().optimum(1e18).loss.value
    whole, half = dense_at(1e7), ServingCost(bytes=dense_at(1e7).bytes / 2, seconds=dense_at(1e7).seconds)
    over = inference_over(law(), (loss, loss), (whole, half), dense(0.5), loss_se=0.05)
    assert (over.low, over.value, over.high) == pytest.approx((1.0, 1.0, 1.0))
    worse = inference_over(law(), (loss, 1.01 * loss), (whole, half), dense(), change_se=0.001)
    assert worse.low < worse.value < worse.high < 1.0


def test_inference_needs_two_sizes_and_numbers_that_could_be() -> None:
    with pytest.raises(FitError, match="two dense models or more"):
        inference(law(), 3.0, dense_at(1e7), dense()[:1])
    with pytest.raises(FitError, match="loss_se is -1"):
        inference(law(), 3.0, dense_at(1e7), dense(), loss_se=-1)
