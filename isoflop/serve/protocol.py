"""What the gateway asks of an engine. Each ability is a protocol of its own; an engine has those it can.

Engines take plain prompts: chats are rendered by the gateway, and so are n answers asked as n generations.
Everything runs on one event loop; what computes in this process does so in threads. An async generator that
is closed early (`aclose`), or whose reader is cancelled, ends its generation and frees its slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

STOP, LENGTH = "stop", "length"  # why a generation ended, in OpenAI's words


@dataclass(frozen=True)
class Generation:
    """One text to go on with."""

    prompt: str | tuple[int, ...]  # text, before which the engine puts the model's first token; or ids alone
    max_tokens: int  # at most, 1 or more: a context that is full ends it too, with LENGTH
    temperature: float = 1.0  # 0: the likeliest token
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # texts that end it and are not part of it
    seed: int | None = None
    logprobs: int | None = None  # alternatives of each token that are told; None: no probabilities at all
    schema: Mapping[str, Any] | None = None  # JSON schema that the text shall fit
    whole: bool = False  # nobody sees a piece before the last has come


class Token(NamedTuple):
    """A token of the answer."""

    text: str
    logprob: float  # nats, before temperature and top-p
    alternatives: tuple[tuple[str, float], ...] = ()  # text and logprob, the likeliest first


class Piece(NamedTuple):
    """Some more of the answer: whole characters."""

    text: str
    size: int  # tokens that it stands for
    tokens: tuple[Token, ...] = ()  # where probabilities were asked for


class Ending(NamedTuple):
    """The last that a generation yields."""

    reason: str  # STOP or LENGTH
    prompt_tokens: int
    completion_tokens: int
    queued: float | None = None  # seconds before the engine began, where it says so
    cached: int = 0  # prompt tokens that were not computed again
    writing: float | None = None  # seconds since its first token, where the pieces do not tell


class Label(NamedTuple):
    """A label and its probability."""

    label: str
    probability: float


class Span(NamedTuple):
    """A tagged part of a text."""

    tag: str
    start: int  # characters, the end excluded
    end: int


class Heard(NamedTuple):
    """A transcribed sound."""

    text: str
    seconds: float  # of the sound


class Engine(Protocol):
    """A model that is loaded and ready."""

    name: str  # of the engine, as "llama.cpp"
    context: int  # most tokens of a prompt and its answer together
    slots: int  # requests that it computes at the same time; more wait in its queue

    async def start(self) -> None:
        """Load the model. Raises IsoflopError where it cannot be."""

    async def alive(self) -> bool:
        """Whether it would answer a request now."""

    async def close(self) -> None:
        """End what it runs, and give its memory back."""


@runtime_checkable
class Tokenizes(Protocol):
    async def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids of a text, nothing added; `special`: names of special tokens in it are these tokens."""

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of token ids."""


@runtime_checkable
class Writes(Tokenizes, Protocol):
    schemas: bool  # whether it can keep to a JSON schema

    def generate(self, asked: Generation) -> AsyncIterator[Piece | Ending]:
        """Pieces as they come, then one Ending.

        Raises RequestError where the prompt does not fit, EngineError where the engine failed.
        """


@runtime_checkable
class Scores(Tokenizes, Protocol):
    async def score(self, ids: Sequence[int], alternatives: int = 0) -> list[Token]:
        """The tokens of a text but its first, each as likely as those before it make it; nothing is added.

        Raises RequestError where they do not fit, EngineError where the engine failed.
        """


@runtime_checkable
class Embeds(Protocol):
    async def embed(self, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """A vector of each text, and the tokens of all."""


@runtime_checkable
class Classifies(Protocol):
    async def classify(self, texts: Sequence[str]) -> tuple[list[list[Label]], int]:
        """Labels of each text, the likeliest first, and the tokens of all."""


@runtime_checkable
class Tags(Protocol):
    async def tag(self, texts: Sequence[str]) -> tuple[list[list[Span]], int]:
        """Tagged spans of each text in order, and the tokens of all."""


@runtime_checkable
class Hears(Protocol):
    async def transcribe(self, sound: bytes, language: str | None) -> Heard:
        """The text of a sound file. Raises RequestError where it cannot be read."""


class RequestError(Exception):
    """A request that cannot be answered, by its own fault: an answer of status 4xx in OpenAI's shape."""

    def __init__(
        self, message: str, *, status: int = 400, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.code, self.param = message, status, code, param


class EngineError(Exception):
    """The engine failed or is gone; the same request may be sent again (status 503)."""
