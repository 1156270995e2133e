"""How much each key may ask a minute."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from limits import RateLimitItemPerMinute
from limits.aio.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string

from isoflop.errors import ServeError
from isoflop.serve.exchange import Headers, Refusal
from isoflop.serve.keys import Key

log = logging.getLogger(__name__)

RATINGS = RateLimitItemPerMinute(60)  # of each key, whatever else it may


class Rates:
    """Requests of the last 60 s, and tokens of the minute that began with the first of them.

    Tokens are known when a call ends, and may then be more than were left. A window that moves has no place
    for those, and one entry for each token; this one counts them all, and nothing begins before it is over.
    """

    def __init__(self, uri: str) -> None:
        try:
            storage = storage_from_string(f"async+{uri}", wrap_exceptions=True, implementation="redispy")
        except (ConfigurationError, ValueError) as exc:  # says the URI, which may have a password
            hint = "use memory:// or redis://HOST:PORT, which needs pip install 'isoflop[redis]'"
            raise ServeError(f"limits of keys cannot be kept in {_place(uri)}", hint=hint) from exc
        self._requests, self._tokens = MovingWindowRateLimiter(storage), FixedWindowRateLimiter(storage)

    async def admit(self, key: Key) -> Headers:
        """Count a request; headers that say what is left. Raises Refusal, 503 where it cannot be counted."""
        told: Headers = []
        with _counted():
            if key.tpm is not None:
                item = RateLimitItemPerMinute(key.tpm)
                reset, left = await self._tokens.get_window_stats(item, "tpm", key.id)
                told += _headers("tokens", key.tpm, left, reset)
                if left <= 0:
                    raise _too_many("tokens", "tokens", key.tpm, reset)
            if key.rpm is not None:
                item = RateLimitItemPerMinute(key.rpm)
                fits = await self._requests.hit(item, "rpm", key.id)
                reset, left = await self._requests.get_window_stats(item, "rpm", key.id)
                told += _headers("requests", key.rpm, left, reset)
                if not fits:
                    raise _too_many("requests", "requests", key.rpm, reset)
        return told

    async def admit_rating(self, key: Key) -> None:
        """Count feedback. Raises as `admit` does."""
        with _counted():
            if not await self._requests.hit(RATINGS, "feedback", key.id):
                reset, _ = await self._requests.get_window_stats(RATINGS, "feedback", key.id)
                raise _too_many("requests", "ratings", RATINGS.amount, reset)

    async def spend(self, key: Key, tokens: int) -> None:
        """Count the tokens of a call that is over."""
        if key.tpm is None or tokens == 0:
            return
        try:
            await self._tokens.hit(RateLimitItemPerMinute(key.tpm), "tpm", key.id, cost=tokens)
        except StorageError as exc:
            log.error("%d tokens of key %s were not counted: %s", tokens, key.name, exc.storage_error)


def _place(uri: str) -> str:
    """A URI without the password that it may have."""
    try:
        where = urlsplit(uri)
        return f"{where.scheme}://{where.hostname or ''}"
    except ValueError:
        return "what is no URI"


@contextmanager
def _counted() -> Iterator[None]:
    """Raises Refusal where what keeps the counts does not answer."""
    try:
        yield
    except StorageError as exc:
        log.error("limits of keys cannot be counted: %s", exc.storage_error)
        message = "the limits of this key cannot be counted now"
        raise Refusal(503, "limits_unavailable", message, headers=[("retry-after", "1")]) from exc


def _headers(what: str, limit: int, left: int, reset: float) -> Headers:
    """As OpenAI's."""
    return [
        (f"x-ratelimit-limit-{what}".encode(), b"%d" % limit),
        (f"x-ratelimit-remaining-{what}".encode(), b"%d" % max(0, left)),
        (f"x-ratelimit-reset-{what}".encode(), b"%.3gs" % max(0.0, reset - time.time())),
    ]


def _too_many(kind: str, what: str, limit: int, reset: float) -> Refusal:
    wait = max(1, math.ceil(reset - time.time()))
    message = f"this key may use {limit:,} {what} a minute; try again in {wait} s"
    headers = [("retry-after", str(wait))]
    return Refusal(429, "rate_limit_exceeded", message, kind=kind, headers=headers)
