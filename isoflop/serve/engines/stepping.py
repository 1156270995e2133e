"""Text of an engine that gives logits, token by token, in a thread of this process: one request at a time.

So serve model folders in torch (`torch_lm`), and exports to ONNX Runtime, OpenVINO and torch's int8.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from isoflop.engines import ONNX, OPENVINO, is_export, open_engine
from isoflop.errors import CorruptError
from isoflop.serve.engines.pieces import Pieces
from isoflop.serve.engines.sampling import Sampler, likeliest
from isoflop.serve.engines.stops import Stops
from isoflop.serve.protocol import LENGTH, STOP, Ending, EngineError, Generation, Piece, RequestError, Token

PART = 256  # prompt tokens that are fed at once: in between a request can be given up
NAMES = {ONNX: "ONNX Runtime", OPENVINO: "OpenVINO"}


class Steps(Protocol):
    """What an engine of `isoflop.engines` has, as far as it is asked here."""

    context: int
    vocab_size: int

    def feed(self, ids: Sequence[int], *, every: bool) -> NDArray[np.float32]: ...
    def reset(self) -> None: ...


@runtime_checkable
class Rewinds(Protocol):
    """One that can keep the beginning of what it was fed."""

    def rewind(self, tokens: int) -> None:
        """Forget all but so many of the first tokens."""


class Stepping:
    """A model folder, or an export of one to a folder. The prompt's beginning that the last request had,
    too, is not computed again where the engine can keep it."""

    slots, schemas = 1, False

    def __init__(self, path: Path, *, threads: int, context: int | None = None) -> None:
        self._path, self._threads, self._asked = path, threads, context
        self.name = next((name for file, name in NAMES.items() if (path / file).is_file()), "torch")
        self.context = 0  # until it is loaded
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="isoflop-serve")
        self._opened, self._closing = ExitStack(), threading.Event()
        self._fed: list[int] = []

    async def start(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._load)

    async def alive(self) -> bool:
        return self.context > 0 and not self._closing.is_set()

    async def close(self) -> None:
        self._closing.set()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._opened.close)
        self._thread.shutdown(cancel_futures=True)

    def _load(self) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(self._path / "tokenizer.json"))
        except Exception as error:  # it has no class of its own for what it cannot read
            raise CorruptError(
                f"{self._path} has no tokenizer.json that opens: {str(error).splitlines()[0]}",
                hint="restore the file, or export the model again",
            ) from None
        self._steps = self._opened.enter_context(self._engine())
        self._starts, self._ends = special_ids(self._path)
        self.context = min(self._steps.context, self._asked or self._steps.context)
        self._steps.feed([0], every=False)  # the first call of a library is its slowest

    def _engine(self) -> AbstractContextManager[Steps]:
        if is_export(self._path):
            return open_engine(self._path, threads=self._threads)
        from isoflop.serve.engines.torch_lm import TorchLM

        return closing(TorchLM(self._path, threads=self._threads))

    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Names of special tokens are these tokens in any case: transformers knows no other way."""
        found = await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=False)
        return list(found.ids)

    async def detokenize(self, ids: Sequence[int]) -> str:
        found: str = await asyncio.to_thread(
            self._tokenizer.decode, self._known(ids), skip_special_tokens=False
        )
        return found

    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        ids, began = await self._prompt(asked), time.monotonic()
        told: asyncio.Queue[Piece | Ending | Exception] = asyncio.Queue()
        loop, given_up = asyncio.get_running_loop(), threading.Event()

        def tell(found: Piece | Ending | Exception) -> None:
            loop.call_soon_threadsafe(told.put_nowait, found)

        try:
            running = self._thread.submit(self._answer, asked, ids, began, tell, given_up)
        except RuntimeError:  # the thread has ended
            raise EngineError(f"{self.name} is closed") from None
        done = asyncio.wrap_future(running)
        done.add_done_callback(lambda _: told.put_nowait(EngineError(f"{self.name} was closed")))
        try:
            while True:
                found = await told.get()
                if isinstance(found, Exception):
                    raise found
                yield found
                if isinstance(found, Ending):
                    return
        finally:
            given_up.set()
            if not running.cancel():
                await asyncio.wait([done])  # the slot is free when it has ended

    async def score(self, ids: Sequence[int], alternatives: int = 0) -> list[Token]:
        known = self._known(ids)
        if len(known) > self.context + 1:  # nothing follows the last one
            raise self._too_long(len(known))
        given_up = threading.Event()
        try:
            running = self._thread.submit(self._scored, known, alternatives, given_up)
        except RuntimeError:  # the thread has ended
            raise EngineError(f"{self.name} is closed") from None
        done = asyncio.wrap_future(running)
        try:
            return await asyncio.shield(done)
        finally:
            given_up.set()
            if not running.cancel():
                await asyncio.wait([done])

    def _known(self, ids: Sequence[int]) -> list[int]:
        """Raises RequestError for an id that is no token."""
        wrong = next((id for id in ids if not 0 <= id < self._steps.vocab_size), None)
        if wrong is not None:
            raise RequestError(
                f"{wrong} is no token of the model, which has ids below {self._steps.vocab_size}"
            )
        return list(ids)

    async def _prompt(self, asked: Generation) -> list[int]:
        """Its ids as the tokenizer begins texts, or the token that begins documents where it has none."""
        if isinstance(asked.prompt, str):
            ids = (await asyncio.to_thread(self._tokenizer.encode, asked.prompt)).ids
            if ids[:2] == [*self._starts, *self._starts]:  # a chat's own text has it, too
                ids = ids[1:]
        else:
            ids = self._known(asked.prompt)
        ids = ids or self._starts
        if not ids:
            raise RequestError("the prompt is empty, and the model has no token that begins a text")
        if len(ids) >= self.context:
            raise self._too_long(len(ids))
        return ids

    def _too_long(self, tokens: int) -> RequestError:
        return RequestError(
            f"the prompt has {tokens} tokens, and the model holds {self.context} with the answer",
            code="context_length_exceeded",
        )

    # -- in the thread ----------------------------------------------------------------------------------

    def _answer(
        self, asked: Generation, ids: list[int], began: float,
        tell: Callable[[Piece | Ending | Exception], None], given_up: threading.Event,
    ) -> None:  # fmt: skip
        queued = time.monotonic() - began
        try:
            for found in self._written(asked, ids, queued):
                if given_up.is_set() or self._closing.is_set():
                    return
                if found is not None:
                    tell(found)
        except Exception as error:  # of any library: the caller hears of it, the next request may do
            self._forget()
            tell(self._failure(error))

    def _failure(self, error: Exception) -> EngineError:
        why = (str(error) or type(error).__name__).splitlines()[0]
        return EngineError(f"{self.name} failed: {why}")

    def _written(self, asked: Generation, ids: list[int], queued: float) -> Iterator[Piece | Ending | None]:
        """Pieces and the ending, and None in between, where it can be given up."""
        kept = self._begun(ids)
        for start in range(kept, len(ids), PART):
            logits_v = self._feed(ids[start : start + PART])
            yield None
        sample = Sampler(temperature=asked.temperature, top_p=asked.top_p, seed=asked.seed)
        pieces, stops = Pieces(self._tokenizer, ids), Stops(list(filter(None, asked.stop)))
        most, said, ended = min(asked.max_tokens, self.context - len(ids)), 0, False
        while said < most and not stops.hit:
            token = sample(logits_v)
            if ended := token in self._ends:
                break
            said += 1
            piece = pieces.push(token, self._told(token, logits_v, asked.logprobs))
            yield from stops.push(piece) if piece else [None]
            if said < most and not stops.hit:
                logits_v = self._feed([token])
        if not stops.hit and (last := pieces.end()):
            yield from stops.push(last)
        if not stops.hit:
            yield from stops.rest()
        yield Ending(STOP if ended or stops.hit else LENGTH, len(ids), said, queued, kept)

    def _scored(self, ids: list[int], alternatives: int, given_up: threading.Event) -> list[Token]:
        found: list[Token] = []
        try:
            self._forget()
            for start in range(0, len(ids) - 1, PART):
                if given_up.is_set() or self._closing.is_set():
                    raise EngineError("it was closed")
                fed, following = ids[start : start + PART], ids[start + 1 : start + 1 + PART]
                logits_tv = self._steps.feed(fed[: len(following)], every=True)
                both = zip(following, logits_tv, strict=True)
                found += [self._likely(id, logits_v, alternatives) for id, logits_v in both]
            return found
        except Exception as error:  # of any library: the caller hears of it, the next request may do
            raise self._failure(error) from error
        finally:
            self._forget()

    def _begun(self, ids: Sequence[int]) -> int:
        """How many of its first tokens the engine has kept; the last one is always fed, for its logits."""
        same = next((i for i, (a, b) in enumerate(zip(self._fed, ids, strict=False)) if a != b),
                    min(len(self._fed), len(ids)))  # fmt: skip
        kept = min(same, len(ids) - 1) if isinstance(self._steps, Rewinds) else 0
        if isinstance(self._steps, Rewinds):
            self._steps.rewind(kept)
        else:
            self._steps.reset()
        self._fed = self._fed[:kept]
        return kept

    def _feed(self, ids: list[int]) -> NDArray[np.float32]:
        """Logits after the last of them."""
        found: NDArray[np.float32] = self._steps.feed(ids, every=False)[0]
        self._fed += ids
        return found

    def _forget(self) -> None:
        self._steps.reset()
        self._fed = []

    def _told(self, id: int, logits_v: NDArray[np.float32], count: int | None) -> Token | None:
        if count is None:
            return None
        return self._likely(id, logits_v, count)

    def _likely(self, id: int, logits_v: NDArray[np.float32], count: int) -> Token:
        logp, best = likeliest(logits_v, id, count)
        return Token(self._text(id), logp, tuple((self._text(other), share) for other, share in best))

    def _text(self, id: int) -> str:
        found: str = self._tokenizer.decode([id], skip_special_tokens=False)
        return found


def special_ids(folder: Path) -> tuple[list[int], set[int]]:
    """The token that begins a text, where there is one, and those that end one, as a folder's files say."""
    found: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):  # the latter is for writing
        path = folder / name
        found |= json.loads(path.read_text()) if path.is_file() else {}
    ends = found.get("eos_token_id")
    start = found.get("bos_token_id", ends if isinstance(ends, int) else None)
    listed = ends if isinstance(ends, list) else [ends]
    return [start] if isinstance(start, int) else [], {id for id in listed if isinstance(id, int)}
