"""API keys: made, checked and revoked in the project's ledger.

A key is isk_ID_SECRET. The ledger has the id and a salted hash of the secret, which nobody is shown again.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from isoflop.budget import SECONDS
from isoflop.errors import IsoflopError, ServeError
from isoflop.quantities import Quantity
from isoflop.records import Record

if TYPE_CHECKING:
    from isoflop.store import Project

SCOPES = ("infer", "admin", "metrics")
PREFIX, KIND = "isk", "key"
LIFE = 1.0  # seconds after which the ledger is read again; what is twice as old is not used
NAME_LENGTH = 64
LIFETIME = Quantity("a time or a date", {**SECONDS, "w": 7 * 86400.0}, "30d, 12h or 2030-01-31")


class Key(Record):
    """What the ledger has of a key: not the key."""

    id: str  # the public part, with which the key begins
    name: str
    salt: str
    hash: str
    scopes: tuple[str, ...] = ("infer",)
    rpm: int | None = None  # requests a minute
    tpm: int | None = None  # tokens a minute
    made: str = ""  # UTC, ISO 8601
    expires: str | None = None
    revoked: str | None = None

    @property
    def state(self) -> str:
        """In one word: valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        expired = self.expires is not None and datetime.fromisoformat(self.expires) <= datetime.now(UTC)
        return "expired" if expired else "valid"


class KeyRefused(Exception):
    """What was sent opens nothing; the message may be told to who sent it."""


# Stands for an id that is not known, so that it takes as long as one that is; nothing has this hash.
NOBODY = Key(id="", name="nobody", salt=secrets.token_hex(16), hash=secrets.token_hex(32))


class Keys:
    """The keys of a project. A running server learns of new and revoked ones within two seconds."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self._known: dict[str, Key] = {}
        self._read_at = -math.inf
        self._failure: IsoflopError | None = None
        self._reading: asyncio.Task[None] | None = None
        # A thread of its own: the event loop's may all be computing answers.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")

    def new(
        self,
        name: str,
        *,
        scopes: Sequence[str] = ("infer",),
        rpm: int | None = None,
        tpm: int | None = None,
        expires: str | None = None,
    ) -> tuple[str, Key]:
        """A key, which is told this once, and its record. Raises ServeError."""
        if not (name.isprintable() and 0 < len(name.strip()) <= NAME_LENGTH):
            hint = f"use up to {NAME_LENGTH} printable characters"
            raise ServeError(f"a key cannot be named {name!r}", hint=hint)
        for scope in scopes:
            if scope not in SCOPES:
                raise ServeError(f"there is no scope {scope!r}", hint=f"use some of {', '.join(SCOPES)}")
        if any(key.name == name and key.state == "valid" for key in self.all()):
            hint = f"use another name, or `isoflop keys revoke {name}` first"
            raise ServeError(f"{self.project.folder} has a key named {name!r} already", hint=hint)
        now = datetime.now(UTC)
        id, secret, salt = secrets.token_hex(8), secrets.token_urlsafe(32), secrets.token_hex(16)
        key = Key(
            id=id, name=name, salt=salt, hash=_hash(salt, secret), scopes=tuple(dict.fromkeys(scopes)),
            rpm=rpm, tpm=tpm, made=_written(now), 
            expires=None if expires is None else _written(_end_of(expires, now)),
        )  # fmt: skip
        self._put(key)
        return f"{PREFIX}_{id}_{secret}", key

    def all(self) -> list[Key]:
        """Every key, in the order in which they were made or revoked."""
        return self.project.all(KIND, Key)

    def revoke(self, name_or_id: str) -> Key:
        """End a key for good. Raises ServeError where none or several are meant."""
        live = [key for key in self.all() if key.revoked is None]
        found = [key for key in live if key.id == name_or_id] or [k for k in live if k.name == name_or_id]
        if len(found) != 1:
            which = f": {', '.join(key.id for key in found)}" if found else " that could be revoked"
            raise ServeError(
                f"{name_or_id!r} names {len(found) or 'no'} {'keys' if found else 'key'} of "
                f"{self.project.folder}{which}",
                hint="write the id; `isoflop keys list` shows them",
            )
        revoked = found[0].model_copy(update={"revoked": _written(datetime.now(UTC))})
        self._put(revoked)
        return revoked

    def _put(self, key: Key) -> None:
        self.project.put(KIND, key)
        self._read_at = -math.inf

    async def check(self, text: str) -> Key:
        """The record of a key as it was sent.

        Raises KeyRefused, which tells nothing to who has no key, and IsoflopError where the ledger cannot be
        read.
        """
        await self._be_fresh()
        prefix, id, secret = (*text.split("_", 2), "", "")[:3]
        key = self._known.get(id if prefix == PREFIX else "", NOBODY)
        right = hmac.compare_digest(key.hash, _hash(key.salt, secret))
        if not right or key.state == "revoked":
            raise KeyRefused("this API key is not valid")
        if key.state == "expired":
            raise KeyRefused(f"this API key expired at {key.expires}")
        return key

    async def _be_fresh(self) -> None:
        """Read the ledger again where it is time: beside requests that use what is known, or before them."""
        if time.monotonic() - self._read_at < LIFE:
            return
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        if time.monotonic() - self._read_at >= 2 * LIFE:
            await asyncio.shield(self._reading)
            if self._failure is not None:
                raise self._failure

    async def _read(self) -> None:
        began = time.monotonic()
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, self.all)
        except IsoflopError as exc:
            self._failure = exc
        else:
            self._known, self._read_at, self._failure = {key.id: key for key in found}, began, None


def _hash(salt: str, secret: str) -> str:
    """A fast one will do: slow ones are for secrets that can be guessed, and this one has 256 random bits."""
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _written(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds")


def _end_of(expires: str, now: datetime) -> datetime:
    """When a key ends that is to last so long, or until then. A date is its first moment in UTC."""
    at = None
    with suppress(ValueError):
        at = datetime.fromisoformat(expires)
    if at is None:
        with suppress(OverflowError):
            at = now + timedelta(seconds=LIFETIME.read("--expires", expires))
    if at is not None and at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    if at is None or at <= now:
        raise ServeError(f"a key cannot expire at {expires!r}", hint=f"write e.g. {LIFETIME.examples}")
    return at
