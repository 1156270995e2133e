"""An engine in front of replicas, for the gateway an engine like any other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Any, cast

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from isoflop.serve.protocol import Ending, EngineError, Generation, Heard, Label, Piece, Span, Token
from isoflop.serve.replicas.replica import About, Failed, Some

TRIES = 3  # of what was lost with a replica before it had answered
LOOK_SECONDS = 1.0  # between two counts of replicas
log = logging.getLogger(__name__)

ENDED = "the replica that answered has ended"


class Replicated:
    """Each has so many `slots`; `running` counts those that answer, and `delete` ends them all."""

    def __init__(
        self, handle: DeploymentHandle[Any], about: About, slots: int, running: Callable[[], int],
        delete: Callable[[], None],
    ) -> None:  # fmt: skip
        self._handle, self._running, self._delete = handle, running, delete
        self.name, self.context, self.schemas = about.name, about.context, about.schemas
        self._each, self.slots = slots, slots * running()

    async def start(self) -> None:
        self._looking = asyncio.create_task(self._look())

    async def alive(self) -> bool:
        return self.slots > 0

    async def close(self) -> None:
        self._looking.cancel()
        with suppress(asyncio.CancelledError):
            await self._looking
        await asyncio.to_thread(self._delete)

    async def _look(self) -> None:
        while True:
            try:
                self.slots = self._each * await asyncio.to_thread(self._running)
            except (RayError, RayServeException) as error:  # what manages them begins again
                log.warning("replicas cannot be counted: %s", type(error).__name__)
            await asyncio.sleep(LOOK_SECONDS)

    async def _asked(self, what: str, *given: Any) -> Any:
        """What one of them says. Raises as its engine does, and EngineError where all tries were lost."""
        for left in reversed(range(TRIES)):
            answer: Any = self._handle.ask.remote(what, *given)
            try:
                found = await answer
            except asyncio.CancelledError:
                answer.cancel()
                raise
            except (RayError, RayServeException) as error:
                if not (left and isinstance(error, RayActorError)):
                    raise EngineError(ENDED) from error
            else:
                if isinstance(found, Failed):
                    raise found.error()
                return found
        raise AssertionError


class Tokenizing(Replicated):
    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        return cast(list[int], await self._asked("tokenize", text, special))

    async def detokenize(self, ids: Sequence[int]) -> str:
        return cast(str, await self._asked("detokenize", tuple(ids)))


class Writing(Tokenizing):
    async def generate(self, asked: Generation) -> AsyncGenerator[Piece | Ending, None]:
        """Of a replica that ends before it has written anything, another one does its work."""
        since = time.monotonic()
        for left in reversed(range(TRIES)):
            answer: Any = self._handle.options(stream=True).write.remote(asked)
            waited: float | None = None
            try:
                async for some in answer:
                    found = cast(Some, some)
                    if waited is None:
                        waited = max(0.0, time.monotonic() - since - found.seconds)
                    for item in found.items:
                        yield (
                            item._replace(queued=waited + (item.queued or 0.0))
                            if isinstance(item, Ending)
                            else item
                        )
                    if found.failed:
                        raise found.failed.error()
                return
            except (RayError, RayServeException) as error:
                if waited is not None or not (left and isinstance(error, RayActorError)):
                    raise EngineError(ENDED) from error
            except BaseException:  # whoever asked has left, or reads no more
                answer.cancel()
                raise


class Scoring(Tokenizing):
    async def score(self, ids: Sequence[int], alternatives: int = 0) -> list[Token]:
        return cast(list[Token], await self._asked("score", tuple(ids), alternatives))


class Embedding(Replicated):
    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        return cast(tuple[list[list[float]], int], await self._asked("embed", list(texts)))


class Classifying(Replicated):
    async def classify(self, texts: Sequence[str]) -> tuple[list[list[Label]], int]:
        return cast(tuple[list[list[Label]], int], await self._asked("classify", list(texts)))


class Tagging(Replicated):
    async def tag(self, texts: Sequence[str]) -> tuple[list[list[Span]], int]:
        return cast(tuple[list[list[Span]], int], await self._asked("tag", list(texts)))


class Hearing(Replicated):
    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        return cast(Heard, await self._asked("transcribe", sound, language))


KINDS: dict[str, type[Replicated]] = {
    "Writes": Writing, "Scores": Scoring, "Tokenizes": Tokenizing, "Embeds": Embedding,
    "Classifies": Classifying, "Tags": Tagging, "Hears": Hearing,
}  # fmt: skip


def with_abilities(abilities: Sequence[str]) -> type[Replicated]:
    """The class that can what the replicas' engine can, and nothing else."""
    kinds = [kind for name, kind in KINDS.items() if name in abilities]
    if Writing in kinds or Scoring in kinds:  # which tokenize
        kinds.remove(Tokenizing)
    return type("Replicated", (*kinds, *([] if kinds else [Replicated])), {})
