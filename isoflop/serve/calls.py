"""One request as it passes: made by the guard, filled in on its way, told to who measures and who records."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from isoflop.serve.keys import Key
from isoflop.serve.traces import Traces

# Kinds of errors that others look for.
DISCONNECTED = "disconnected"  # the client went before its answer ended
MASKING_FAILED = "masking_failed"
GATED = "unavailable"  # a gate refused it
GOOD, FAILED, REFUSED = "answered", "failed", "refused"  # what became of a call; the last by its own fault
MAIN, CANARY, SHADOW = "main", "canary", "shadow"  # what a model answers as


@dataclass
class Call:
    """Times are of `time.monotonic()`; None: it never came to that."""

    path: str  # as asked
    key: Key | None = None  # None: open, or refused
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")
    route: str = ""  # template of the path, as the metrics name it; "": no such path
    model: str = ""  # that answers
    model_hash: str = ""
    engine: str = ""
    role: str = MAIN  # of the model
    stream: bool = False
    began: float = field(default_factory=time.monotonic)
    first: float | None = None  # piece of the answer
    last: float | None = None
    ended: float | None = None
    queued: float | None = None  # seconds
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    characters: tuple[int, ...] | None = None  # of the prompt by class (drift.py); None: nobody asks
    scored: bool = False  # texts of somebody's choice were scored: they are no prompts of users
    masked: Counter[str] = field(default_factory=Counter)  # items by kind
    status: int = 0  # of HTTP
    error: str = ""  # kind of what went wrong, as "rate_limit_exceeded"; "": nothing
    finish: str = ""  # why the answer ended
    asked: list[str] = field(
        default_factory=list
    )  # as the engine saw it; only where the audit log keeps texts
    answered: dict[int, str] = field(default_factory=dict)  # likewise, by the number of the answer
    compared: bool = False  # a shadow gets the same, so `answered` is kept until both are there
    traces: Traces | None = None  # of its texts, where somebody will ask whether a text was one of them

    def piece(self) -> None:
        """A piece of the answer has come."""
        now = time.monotonic()
        self.first = now if self.first is None else self.first
        self.last = now

    def wrote(self, seconds: float) -> None:
        """The piece that came last was begun so long before."""
        if self.first is not None and self.last is not None:
            self.first = max(self.began, min(self.first, self.last - seconds))

    @property
    def failed(self) -> bool:
        """By the server's own fault: a status of 5xx, or an error after the answer had begun."""
        return self.status >= 500 or (self.status < 400 and self.error not in ("", DISCONNECTED))


class Observer(Protocol):
    """Hears of calls, on the event loop: what takes long is not for it."""

    def began(self, call: Call) -> None:
        """A call has passed the guard."""

    def ended(self, call: Call) -> None:
        """It is over, for whatever reason; also what the guard refused."""


@runtime_checkable
class Gate(Observer, Protocol):
    """An observer without which no call may begin."""

    def refuses(self) -> str:
        """Why none may now; "": they may."""


def call_of(scope: MutableMapping[str, Any]) -> Call:
    """The call of a request, with the template of its path once a route has been found."""
    state = scope.setdefault("state", {})
    call: Call = state.setdefault("call", Call(scope["path"]))
    call.route = getattr(scope.get("route"), "path", "")
    return call
