"""Tokens become text as they come: whole characters alone, and nothing of a text that ends the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer

from isoflop.serve.protocol import Piece, Token

BROKEN = "�"  # what decoders write for bytes that are no character, or not yet
LONGEST = 4  # bytes of a character, and so tokens at most
BEFORE = 4  # tokens of the prompt that tell the decoder whether a space comes first


class Waiting(NamedTuple):
    """A token that no piece has had yet."""

    start: int  # characters of the answer before it
    told: Token | None


class Pieces:
    """The text of one answer; `stopped` once a stop text has come."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        self._ids = list(prompt[-BEFORE:])
        self._context, self._read = 0, len(self._ids)  # what is decoded begins there, what is new there
        self._held, self._out = "", 0  # characters that may begin a stop text; those that went out
        self._waiting: list[Waiting] = []
        self.stopped = False

    def push(self, id: int, told: Token | None = None) -> Piece | None:
        """One token more; what can be said now."""
        self._ids.append(id)
        self._waiting.append(Waiting(self._out + len(self._held), told))
        self._held += self._decoded(len(self._ids) - self._read > LONGEST)
        at = min((i for text in self._stop if (i := self._held.find(text)) >= 0), default=None)
        if at is not None:
            self.stopped = True
            return self._piece(at)
        kept = max((_begun(self._held, text) for text in self._stop), default=0)
        return self._piece(len(self._held) - kept)

    def end(self) -> Piece | None:
        """What was held back, once no more tokens come: nothing of a stop text."""
        if self.stopped:
            return None
        self._held += self._decoded(True)
        piece = self._piece(len(self._held))
        left, self._waiting = self._waiting, []  # without any text, as special tokens are
        if not left:
            return piece
        more = tuple(told for _, told in left if told is not None)
        return Piece(piece.text if piece else "", (piece.size if piece else 0) + len(left),
                     (*(piece.tokens if piece else ()), *more))  # fmt: skip

    def _decoded(self, all: bool) -> str:
        """Characters that the last tokens add; none while the last of them is not whole, but for `all`."""
        before = self._text(self._ids[self._context : self._read])
        now = self._text(self._ids[self._context :])
        if len(now) <= len(before) or (now.endswith(BROKEN) and not all):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return now[len(before) :]

    def _text(self, ids: Sequence[int]) -> str:
        found: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return found

    def _piece(self, length: int) -> Piece | None:
        """The first characters of those held, with the tokens that begin in them."""
        if length <= 0:
            return None
        text, self._held = self._held[:length], self._held[length:]
        self._out += length
        said = [told for start, told in self._waiting if start < self._out]
        self._waiting = self._waiting[len(said) :]
        return Piece(text, len(said), tuple(told for told in said if told is not None))


def _begun(text: str, stop: str) -> int:
    """Characters at the end of a text with which the stop text begins."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
