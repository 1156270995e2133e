"""Texts as an engine and a client may see them. Where masking fails, the request fails: nothing goes on."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from isoflop.errors import IsoflopError
from isoflop.serve.borders import apart
from isoflop.serve.calls import MASKING_FAILED, Call
from isoflop.serve.engines.stops import Stops
from isoflop.serve.gateway import Gateway, Masker
from isoflop.serve.protocol import LENGTH, Piece, RequestError
from isoflop.serve.traces import Turn

log = logging.getLogger(__name__)
T = TypeVar("T")
Given = TypeVar("Given", str, list[str])

LONG = 10_000  # characters, which take milliseconds


def masker_of(gateway: Gateway, kinds: Sequence[str] | None = None) -> Masker | None:
    """What masks a request that names these kinds, if anything does. Raises RequestError for unknown ones."""
    try:
        return gateway.masking(kinds or ())
    except IsoflopError as error:
        raise RequestError(f"{error.message}; {error.hint}", code="unknown_mask", param="mask") from error


async def masked(call: Call, masker: Masker | None, text: str) -> str:
    """A text without what is masked in it, which the call counts."""
    if masker is None:
        return text
    with masking_fails():
        found = await aside(masker.mask, text)
    call.masked.update(found.found)
    return found.text


async def asked_of(gateway: Gateway, call: Call, masker: Masker | None, text: str) -> str:
    """A text of the request as the engine may see it, which is noted for the audit log."""
    found = await masked(call, masker, text)
    noted(gateway, call, found)
    return found


def noted(gateway: Gateway, call: Call, *texts: str) -> None:
    """Texts of the request, as the engine may see them, are for the audit log."""
    if gateway.settings.audit_text:
        call.asked += texts


async def masked_turns(call: Call, masker: Masker | None, turns: Sequence[Turn]) -> list[Turn]:
    """A chat without what is masked in it, also where it goes on in the speaker's next message."""
    if masker is None:
        return list(turns)
    texts = [await masked(call, masker, text) for _, text in turns]
    for role in dict.fromkeys(role for role, _ in turns):
        own = [i for i, (who, _) in enumerate(turns) if who == role]
        with masking_fails():
            left, found = await aside(partial(apart, masker), [texts[i] for i in own])
        call.masked.update(found)
        for i, text in zip(own, left, strict=True):
            texts[i] = text
    return [(role, text) for (role, _), text in zip(turns, texts, strict=True)]


async def aside(function: Callable[[Given], T], given: Given) -> T:
    """Call it: with a long text, or texts, in a thread, so that others are answered meanwhile."""
    size = len(given) if isinstance(given, str) else sum(map(len, given))
    return await asyncio.to_thread(function, given) if size > LONG else function(given)


def check_schema(masker: Masker, schema: Any) -> None:
    """Raises RequestError for a schema with what is masked: without it, it would mean something else."""
    with masking_fails():
        kinds = {kind for text in _texts(schema) for kind, count in masker.mask(text).found.items() if count}
    if kinds:
        raise RequestError(
            f"the schema has what is masked here ({', '.join(sorted(kinds))}): leave it out",
            code="masked", param="response_format",
        )  # fmt: skip


def _texts(value: Any) -> Iterator[str]:
    """All names and values of a JSON document."""
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _texts(each)
    else:
        yield str(value)


class Screen:
    """One answer behind its mask. The client's stops are found in what it may see: else where they cut would
    tell of the rest."""

    def __init__(self, masker: Masker, stops: Sequence[str]) -> None:
        self._stream, self._stops = masker.stream(), Stops(stops)

    @property
    def found(self) -> Counter[str]:
        """Items by kind, so far."""
        return self._stream.found

    @property
    def stopped(self) -> bool:
        """Whether one of the stops has come."""
        return self._stops.hit

    def push(self, text: str, reason: str | None = None) -> str:
        """What can go out after this piece; `reason` where it is the last.

        Of an answer that was cut, the words that could have become something to mask are left out.
        """
        with masking_fails():
            text = self._stream.push(text)
            if reason is not None:
                text += self._stream.cut() if reason == LENGTH else self._stream.end()
        free = self._stops.push(Piece(text, 0))
        if reason and not self.stopped:
            free += self._stops.rest()
        return "".join(piece.text for piece in free)


@contextmanager
def masking_fails() -> Iterator[None]:
    """Any exception in this block is RequestError of status 500; its text may hold what was to be masked."""
    try:
        yield
    except Exception as error:
        log.error("masking failed: %s", type(error).__name__)
        raise RequestError("masking failed", status=500, code=MASKING_FAILED) from None
