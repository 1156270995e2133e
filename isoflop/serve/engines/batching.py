"""Requests that wait together are computed together: no engine in here, and no waiting for more to come."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from isoflop.serve.protocol import EngineError

Item = TypeVar("Item")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Waiting(Generic[Item, Found]):
    """One item, and who waits for it."""

    item: Item
    size: int
    answer: asyncio.Future[Found]


class Batcher(Generic[Item, Found]):
    """A queue before one thread, which takes what waits as soon as it is free, the oldest first.

    A batch has at most `items` items, and at most `padded` when each counts as its largest; one item alone
    may be larger. `compute` gives one result an item; where it fails for several, each is computed alone, so
    that one which cannot be fails alone. `sizes` counts the batches so far by their items.
    """

    def __init__(
        self, compute: Callable[[Sequence[Item]], Sequence[Found]], thread: ThreadPoolExecutor, *, items: int,
        padded: int,
    ) -> None:  # fmt: skip
        self._compute, self._thread, self._items, self._padded = compute, thread, items, padded
        self._waiting: deque[Waiting[Item, Found]] = deque()
        self._working: asyncio.Task[None] | None = None
        self.sizes: Counter[int] = Counter()

    async def ask(self, items: Sequence[Item], sizes: Sequence[int]) -> list[Found]:
        """Results in order. Raises what `compute` did for one of them; the others are then not waited for."""
        loop = asyncio.get_running_loop()
        mine = [
            Waiting(item, size, loop.create_future()) for item, size in zip(items, sizes, strict=True)
        ]  # fmt: skip
        self._waiting += mine
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        try:
            return list(await asyncio.gather(*(w.answer for w in mine)))
        finally:
            for w in mine:
                w.answer.cancel()  # of those that nobody waits for any more

    def close(self) -> None:
        """Whoever waits is told that it is over."""
        for w in self._waiting:
            if not w.answer.done():
                w.answer.set_exception(EngineError("the engine was closed"))
        self._waiting.clear()

    async def _work(self) -> None:
        while batch := self._next():
            for w, found in zip(batch, await self._results([w.item for w in batch]), strict=True):
                if w.answer.done():  # given up
                    continue
                if isinstance(found, Exception):
                    w.answer.set_exception(found)
                else:
                    w.answer.set_result(found)
        self._working = None

    def _next(self) -> list[Waiting[Item, Found]]:
        """The oldest that fit together; those that were given up are dropped."""
        batch: list[Waiting[Item, Found]] = []
        largest = 0
        while self._waiting and len(batch) < self._items:
            first = self._waiting[0]
            if not first.answer.done():
                largest = max(largest, first.size)
                if batch and largest * (len(batch) + 1) > self._padded:
                    break
                batch.append(first)
            self._waiting.popleft()
        return batch

    async def _results(self, items: Sequence[Item]) -> Sequence[Found | Exception]:
        """A result or an error of each."""
        loop = asyncio.get_running_loop()
        self.sizes[len(items)] += 1
        try:
            found = await loop.run_in_executor(self._thread, self._compute, items)
            assert len(found) == len(items)
            return found
        except Exception as error:  # whatever a library raises is for who asked
            if len(items) == 1:
                return [error]
        return [found for item in items for found in await self._results([item])]
