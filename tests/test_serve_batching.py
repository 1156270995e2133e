"""Requests that wait together are computed together, and none spoils another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.serve.engines.batching import Batcher
from isoflop.serve.protocol import EngineError


class Doubling:
    """Doubles numbers, once it is let go; refuses batches with a 13 in them."""

    def __init__(self) -> None:
        self.free, self.began = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.began.set()
        assert self.free.wait(60)
        if 13 in items:
            raise ValueError("unlucky")
        return [2 * item for item in items]


@asynccontextmanager
async def batcher(items: int = 4, padded: int = 100) -> AsyncIterator[tuple[Batcher[int, int], Doubling]]:
    compute = Doubling()
    with ThreadPoolExecutor(1) as thread:
        try:
            yield Batcher(compute, thread, items=items, padded=padded), compute
        finally:
            compute.free.set()


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        await work()

    asyncio.run(whole())


async def blocked(made: Batcher[int, int], compute: Doubling) -> asyncio.Task[list[int]]:
    """A first request that keeps the thread, so that others wait."""
    first = asyncio.create_task(made.ask([1], [1]))
    await asyncio.to_thread(compute.began.wait, 60)
    return first


def test_what_waits_together_is_computed_together_and_in_order() -> None:
    async def work() -> None:
        async with batcher() as (made, compute):
            first = await blocked(made, compute)
            others = [asyncio.create_task(made.ask([n, n + 1], [1, 1])) for n in (10, 20, 30)]
            await asyncio.sleep(0)
            compute.free.set()
            assert await first == [2]
            assert await asyncio.gather(*others) == [[20, 22], [40, 42], [60, 62]]
            assert compute.batches == [[1], [10, 11, 20, 21], [30, 31]]
            assert made.sizes == {1: 1, 4: 1, 2: 1}

    run(work)


def test_padding_counts() -> None:
    async def work() -> None:
        async with batcher(items=9, padded=10) as (made, compute):
            compute.free.set()
            assert await made.ask([1, 2, 3, 4, 5], [2, 5, 4, 50, 1]) == [2, 4, 6, 8, 10]
            assert compute.batches == [[1, 2], [3], [4], [5]]

    run(work)


def test_one_that_cannot_be_fails_alone() -> None:
    async def work() -> None:
        async with batcher() as (made, compute):
            first = await blocked(made, compute)
            bad = asyncio.create_task(made.ask([12, 13], [1, 1]))
            good = asyncio.create_task(made.ask([14], [1]))
            await asyncio.sleep(0)
            compute.free.set()
            with pytest.raises(ValueError, match="unlucky"):
                await bad
            assert (await first, await good) == ([2], [28])

    run(work)


def test_who_gave_up_is_not_computed() -> None:
    async def work() -> None:
        async with batcher() as (made, compute):
            first = await blocked(made, compute)
            left, stays = (asyncio.create_task(made.ask([n], [1])) for n in (5, 6))
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            compute.free.set()
            assert (await first, await stays) == ([2], [12])
            assert compute.batches == [[1], [6]]

    run(work)


def test_who_gives_up_while_it_is_computed_disturbs_nobody() -> None:
    async def work() -> None:
        async with batcher() as (made, compute):
            first = await blocked(made, compute)
            first.cancel()
            compute.free.set()
            assert await made.ask([7], [1]) == [14]

    run(work)


def test_at_the_end_whoever_waits_is_told() -> None:
    async def work() -> None:
        async with batcher() as (made, compute):
            first = await blocked(made, compute)
            waits = asyncio.create_task(made.ask([5], [1]))
            await asyncio.sleep(0)
            made.close()
            compute.free.set()
            with pytest.raises(EngineError, match="closed"):
                await waits
            assert await first == [2]

    run(work)


@settings(deadline=None, max_examples=25)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=20))
def test_every_item_is_computed_once_within_the_limits(sizes: list[int]) -> None:
    async def work() -> None:
        async with batcher(items=4, padded=20) as (made, compute):
            compute.free.set()
            numbers = [100 + n for n in range(len(sizes))]
            assert await made.ask(numbers, sizes) == [2 * n for n in numbers]
            assert list(chain(*compute.batches)) == numbers
            for batch in compute.batches:
                largest = max(sizes[n - 100] for n in batch)
                assert len(batch) <= 4
                assert len(batch) == 1 or len(batch) * largest <= 20

    run(work)
