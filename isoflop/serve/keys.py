"""API keys: made, checked and revoked in the project's ledger."""

from __future__ import annotations

from isoflop.records import Record

SCOPES = ("infer", "admin", "metrics")


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
