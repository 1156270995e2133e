"""How a written answer looks, whole and in chunks: as a completion, or as a chat's."""

from __future__ import annotations

import json
import secrets
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from isoflop.serve.protocol import LENGTH, Token
from isoflop.serve.sse import HOLE, around, event

IMPOSSIBLE = -9999.0  # log-probability of what cannot be


class Form(ABC):
    """Documents and events of one answer to a request; `usage`: chunks say that theirs comes at the end."""

    prefix: str  # of ids
    kind: str  # of chunks, as OpenAI names it

    def __init__(self, model: str, *, usage: bool) -> None:
        self.base = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}", "object": self.kind,
            "created": int(datetime.now(UTC).timestamp()), "model": model,
        }  # fmt: skip
        self.usage: dict[str, Any] = {"usage": None} if usage else {}
        self.written: dict[int, int] = {}  # characters of each answer so far
        self.parts: dict[int, tuple[str, str]] = {}  # of each answer's events, around the text

    def piece(self, index: int, text: str, tokens: Sequence[Token]) -> str:
        """The event of some more text."""
        opening = ""
        if index not in self.parts:
            self.parts[index], self.written[index] = around(self._chunk(index, HOLE)), 0
            opening = self.opening(index)
        if tokens:
            told = self.told(tokens, self.written[index])
            self.written[index] += len(text)
            return opening + event(self._chunk(index, text, told))
        before, after = self.parts[index]
        return f"{opening}{before}{json.dumps(text)}{after}"

    def ending(self, index: int, reason: str) -> str:
        """The event of an answer's end."""
        opening = "" if index in self.parts else self.opening(index)
        return opening + event(self._chunk(index, None, None, reason))

    def last(self, usage: dict[str, Any]) -> str:
        """The event that says how many tokens there were, where that was asked."""
        return event({**self.base, "choices": [], "usage": usage}) if self.usage else ""

    def document(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer that is not streamed."""
        return {**self.base, "object": self.kind.removesuffix(".chunk"), "choices": choices, "usage": usage}

    def _chunk(
        self, index: int, text: str | None, told: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, **self.delta(text), "logprobs": told, "finish_reason": reason}
        return {**self.base, "choices": [choice], **self.usage}

    @abstractmethod
    def opening(self, index: int) -> str:
        """What comes before an answer's text."""

    @abstractmethod
    def delta(self, text: str | None) -> dict[str, Any]:
        """The part of a chunk that has the text; None: no more of it."""

    @abstractmethod
    def told(self, tokens: Sequence[Token], written: int) -> dict[str, Any]:
        """Log-probabilities of tokens that come after so many characters."""

    @abstractmethod
    def whole(self, index: int, text: str, tokens: Sequence[Token] | None, reason: str) -> dict[str, Any]:
        """An answer that is not streamed; `tokens` where probabilities were asked for."""


class CompletionForm(Form):
    prefix, kind = "cmpl", "text_completion"

    def opening(self, index: int) -> str:
        return ""

    def delta(self, text: str | None) -> dict[str, Any]:
        return {"text": text or ""}

    def echoed(self, index: int, text: str, first: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """A prompt as its own answer: nothing is told of its first token, but the text."""
        told = self.told(tokens, len(first))
        before = {"tokens": first, "token_logprobs": None, "top_logprobs": None, "text_offset": 0}
        both = {name: [before[name], *values] for name, values in told.items()}
        return {"index": index, "text": text, "logprobs": both, "finish_reason": LENGTH}

    def told(self, tokens: Sequence[Token], written: int) -> dict[str, Any]:
        offsets = []
        for token in tokens:
            offsets.append(written)
            written += len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [_finite(token.logprob) for token in tokens],
            "top_logprobs": [{text: _finite(p) for text, p in token.alternatives} for token in tokens],
            "text_offset": offsets,
        }

    def whole(self, index: int, text: str, tokens: Sequence[Token] | None, reason: str) -> dict[str, Any]:
        told = None if tokens is None else self.told(tokens, 0)
        return {"index": index, "text": text, "logprobs": told, "finish_reason": reason}


class ChatForm(Form):
    prefix, kind = "chatcmpl", "chat.completion.chunk"

    def opening(self, index: int) -> str:
        chunk = self._chunk(index, "")
        chunk["choices"][0]["delta"] = {"role": "assistant", "content": ""}
        return event(chunk)

    def delta(self, text: str | None) -> dict[str, Any]:
        return {"delta": {} if text is None else {"content": text}}

    def told(self, tokens: Sequence[Token], written: int) -> dict[str, Any]:
        content = [
            {**_token(t.text, t.logprob), "top_logprobs": [_token(*each) for each in t.alternatives]}
            for t in tokens
        ]
        return {"content": content, "refusal": None}

    def whole(self, index: int, text: str, tokens: Sequence[Token] | None, reason: str) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if tokens is None else self.told(tokens, 0),
            "finish_reason": reason,
        }


def _token(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


def _finite(logprob: float) -> float:
    """JSON knows no infinity; OpenAI writes it so."""
    return max(logprob, IMPOSSIBLE)
