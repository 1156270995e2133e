"""What the server holds: models by name, its settings, who hears of calls, and what masks."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from isoflop.errors import IsoflopError
from isoflop.serve.calls import CANARY, MAIN, Call, Observer
from isoflop.serve.chats import Template
from isoflop.serve.keys import Keys
from isoflop.serve.protocol import (
    Classifies,
    Embeds,
    Engine,
    Hears,
    RequestError,
    Scores,
    Span,
    Tags,
    Tokenizes,
    Writes,
)
from isoflop.serve.settings import Settings
from isoflop.serve.shadowing import Shadowing

if TYPE_CHECKING:
    from isoflop.serve.deploying.records import Standing

ABILITIES: dict[Any, str] = {
    Tokenizes: "has no tokenizer to ask",
    Writes: "does not write text",
    Scores: "does not tell how likely a given text is",
    Embeds: "does not embed texts",
    Classifies: "does not classify texts",
    Tags: "does not tag texts",
    Hears: "does not transcribe sounds",
}


_ABLE: dict[tuple[type, Any], bool] = {}  # to look for a protocol's methods takes longer than a token


def able(engine: Engine, ability: Any) -> bool:
    """Whether an engine has what a protocol asks for; all engines of its class do alike."""
    kind = type(engine), ability
    if kind not in _ABLE:
        _ABLE[kind] = isinstance(engine, ability)
    return _ABLE[kind]


class Masked(Protocol):
    @property
    def text(self) -> str: ...

    @property
    def found(self) -> Counter[str]:
        """Items by kind."""


class MaskStream(Protocol):
    """Masks a text that comes in pieces."""

    @property
    def found(self) -> Counter[str]:
        """Items by kind, so far."""

    def push(self, text: str) -> str:
        """What can go out now."""

    def end(self) -> str:
        """The rest."""

    def cut(self) -> str:
        """The rest, in place of `end` where the text was cut: without words that may be half of something."""


class Masker(Protocol):
    """Takes personal data out of texts. Whatever it raises makes the request fail."""

    def mask(self, text: str) -> Masked: ...

    def items(self, text: str) -> Sequence[Span]:
        """What is masked in a text, in order, by kind; none lies over another."""

    def placeholder(self, kind: str, value: str) -> str:
        """What stands for a value."""

    def stream(self) -> MaskStream: ...


@dataclass(frozen=True)
class Model:
    """A model that is served, with what the ledger knows of it."""

    name: str
    engine: Engine
    hash: str = ""  # of its content
    bits_per_byte: float | None = None
    bytes: int | None = None
    template: Template | None = None  # of chats; None: the plain one
    made: int = field(default_factory=lambda: int(datetime.now(UTC).timestamp()))
    path: str = ""  # as a deployment names it


@dataclass(frozen=True)
class Beside:
    """A model beside the one of the same name."""

    model: Model
    share: float  # of the requests that it answers (a canary), or gets too (a shadow)


class InUse:
    """Which engine each call holds (an Observer)."""

    def __init__(self) -> None:
        self._held: dict[str, Engine] = {}  # by the call's id
        self._waiting: list[asyncio.Event] = []

    def take(self, call: Call, engine: Engine) -> None:
        self._held[call.id] = engine

    def began(self, call: Call) -> None: ...

    def ended(self, call: Call) -> None:
        self._held.pop(call.id, None)
        for event in self._waiting:
            event.set()

    async def free(self, engine: Engine) -> None:
        """Returns once no call holds the engine."""
        event = asyncio.Event()
        self._waiting.append(event)
        try:
            while any(held is engine for held in self._held.values()):
                event.clear()
                await event.wait()
        finally:
            self._waiting.remove(event)


@dataclass
class Gateway:
    """`models` may be changed while it serves: a call keeps the model that it began with.

    Which requests a canary answers is drawn for each, not by key: so the share holds however few keys there
    are, and every key's requests are in both parts, which then differ by the model alone. A client that
    needs one model throughout is not for a canary.
    """

    models: dict[str, Model]
    settings: Settings = field(default_factory=Settings)
    keys: Keys | None = None  # None: for an open server
    observers: Sequence[Observer] = ()
    masker: Callable[[Sequence[str]], Masker] | None = None  # makes one for these kinds
    canaries: dict[str, Beside] = field(default_factory=dict)  # by the name of the model
    shadows: dict[str, Beside] = field(default_factory=dict)
    standing: dict[str, Standing] = field(default_factory=dict)  # what is made of each name's deployment
    in_use: InUse = field(default_factory=InUse)
    shadowing: Shadowing = field(default_factory=Shadowing)
    draw: Callable[[], float] = random.random

    def __post_init__(self) -> None:
        if self.settings.mask:
            self.masking(())

    def model(self, call: Call, name: str, ability: Any) -> tuple[Model, Any]:
        """The model of that name, which the call notes, and its engine, which has that ability.

        Raises RequestError where there is none.
        """
        found, canary = self.named(name), self.canaries.get(name)
        call.role = MAIN
        if canary is not None and self.draw() < canary.share:
            found, call.role = canary.model, CANARY
        call.model, call.model_hash, call.engine = found.name, found.hash, found.engine.name
        self.in_use.take(call, found.engine)
        if not able(found.engine, ability):
            can = [other for other in self.models.values() if able(other.engine, ability)]
            instead = f"; {', '.join(model.name for model in can)} can" if can else ""
            raise RequestError(
                f"the model {name} {ABILITIES[ability]}{instead}",
                status=404, code="model_not_suited", param="model",
            )  # fmt: skip
        return found, found.engine

    def loaded(self) -> list[tuple[str, Model]]:
        """Role and model of all that answer clients."""
        canaries = [(CANARY, canary.model) for canary in self.canaries.values()]
        return [*((MAIN, model) for model in self.models.values()), *canaries]

    def named(self, name: str) -> Model:
        """The model of that name. Raises RequestError."""
        if name not in self.models:
            raise RequestError(
                f"there is no model {name!r}; /v1/models lists what there is",
                status=404, code="model_not_found", param="model",
            )  # fmt: skip
        return self.models[name]

    def masking(self, kinds: Sequence[str]) -> Masker | None:
        """What masks these kinds and those of the server's policy; None: nothing is masked.

        Raises IsoflopError for kinds that it does not know, and where nothing is there that masks.
        """
        wanted = tuple(sorted({*self.settings.mask, *kinds}))
        if not wanted:
            return None
        if self.masker is None:
            raise IsoflopError("this server was started without what masks", hint="leave mask out")
        return self.masker(wanted)
