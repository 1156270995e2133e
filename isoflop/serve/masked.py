"""Prompts as an engine may see them. Where masking fails, the request fails: nothing goes on unmasked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from isoflop.errors import IsoflopError
from isoflop.serve.calls import MASKING_FAILED, Call
from isoflop.serve.gateway import Gateway, Masker
from isoflop.serve.protocol import RequestError

log = logging.getLogger(__name__)


def masker_of(gateway: Gateway, kinds: Sequence[str] | None) -> Masker | None:
    """What masks a request that names these kinds, if anything does. Raises RequestError for unknown ones."""
    try:
        return gateway.masking(kinds or ())
    except IsoflopError as error:
        raise RequestError(f"{error.message}; {error.hint}", code="unknown_mask", param="mask") from error


def masked(call: Call, masker: Masker | None, text: str) -> str:
    """A prompt without what is masked in it, which the call counts."""
    if masker is None:
        return text
    with masking_fails():
        found = masker.mask(text)
    call.masked.update(found.found)
    return found.text


@contextmanager
def masking_fails() -> Iterator[None]:
    """Any exception in this block is RequestError of status 500; its text may hold what was to be masked."""
    try:
        yield
    except Exception as error:
        log.error("masking failed: %s", type(error).__name__)
        raise RequestError("masking failed", status=500, code=MASKING_FAILED) from None
