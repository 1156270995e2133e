"""What engines share that compute batches in a thread of this process."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from isoflop.serve.engines.batching import Batcher
from isoflop.serve.protocol import EngineError, RequestError

Item = TypeVar("Item")
Found = TypeVar("Found")
Input = TypeVar("Input")
R = TypeVar("R")


class Batched(ABC, Generic[Item, Found]):
    """One thread reads requests and one computes: tokenizers of transformers are for one thread at a time."""

    name = "torch"
    context = 0  # until it is loaded

    def __init__(self, path: Path, *, threads: int, items: int, padded: int) -> None:
        self._path, self._threads, self.slots, self._padded = path, threads, items, padded
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="isoflop-read")
        self._computer = ThreadPoolExecutor(1, thread_name_prefix="isoflop-serve")
        self._open = False

    @abstractmethod
    def _load(self) -> None:
        """Read the model, in the thread that computes."""

    @abstractmethod
    def _compute(self, items: Sequence[Item]) -> Sequence[Found]:
        """A result of each, in the thread that computes."""

    async def start(self) -> None:
        self._batcher = Batcher(self._compute, self._computer, items=self.slots, padded=self._padded)
        await asyncio.get_running_loop().run_in_executor(self._computer, self._loaded)
        self._open = True

    def _loaded(self) -> None:
        import torch

        torch.set_num_threads(self._threads)  # of this thread
        self._load()

    async def alive(self) -> bool:
        return self._open

    async def close(self) -> None:
        if self._open:
            self._open = False
            self._batcher.close()
        await asyncio.to_thread(self._computer.shutdown, cancel_futures=True)
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _read(self, function: Callable[[Input], R], given: Input) -> R:
        """Call it in the thread that reads. Raises RequestError, or EngineError for what else it raises."""
        with self._telling():
            return await asyncio.get_running_loop().run_in_executor(self._reader, function, given)

    async def _computed(self, items: Sequence[Item], sizes: Sequence[int]) -> list[Found]:
        """Results in order. Raises as `_read` does."""
        with self._telling():
            return await self._batcher.ask(items, sizes)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Errors of any library, which the caller knows nothing of, are this engine's."""
        if not self._open:
            raise EngineError(f"{self.name} is closed")
        try:
            yield
        except (RequestError, EngineError):
            raise
        except Exception as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise EngineError(f"{self.name} failed: {why}") from error
