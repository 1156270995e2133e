"""What the server holds: models by name, its settings, who hears of calls, and what masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from isoflop.errors import IsoflopError
from isoflop.serve.calls import Call, Observer
from isoflop.serve.chats import Template
from isoflop.serve.keys import Keys
from isoflop.serve.protocol import (
    Classifies,
    Embeds,
    Engine,
    Hears,
    RequestError,
    Span,
    Tags,
    Tokenizes,
    Writes,
)
from isoflop.serve.settings import Settings

ABILITIES: dict[Any, str] = {
    Tokenizes: "has no tokenizer to ask",
    Writes: "does not write text",
    Embeds: "does not embed texts",
    Classifies: "does not classify texts",
    Tags: "does not tag texts",
    Hears: "does not transcribe sounds",
}


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


@dataclass
class Gateway:
    """`models` may be changed while it serves: a call keeps the model that it began with."""

    models: dict[str, Model]
    settings: Settings = field(default_factory=Settings)
    keys: Keys | None = None  # None: for an open server
    observers: Sequence[Observer] = ()
    masker: Callable[[Sequence[str]], Masker] | None = None  # makes one for these kinds

    def __post_init__(self) -> None:
        if self.settings.mask:
            self.masking(())

    def model(self, call: Call, name: str, ability: Any) -> tuple[Model, Any]:
        """The model of that name, which the call notes, and its engine, which has that ability.

        Raises RequestError where there is none.
        """
        found = self.named(name)
        call.model, call.model_hash, call.engine = found.name, found.hash, found.engine.name
        if not isinstance(found.engine, ability):
            can = [other for other in self.models.values() if isinstance(other.engine, ability)]
            instead = f"; {', '.join(model.name for model in can)} can" if can else ""
            raise RequestError(
                f"the model {name} {ABILITIES[ability]}{instead}",
                status=404, code="model_not_suited", param="model",
            )  # fmt: skip
        return found, found.engine

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
