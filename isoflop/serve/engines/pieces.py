"""Tokens become text as they come, in whole characters."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

from isoflop.serve.protocol import Piece, Token

BROKEN = "�"  # what decoders write for bytes that are no character, or not yet
LONGEST = 4  # bytes of a character, and so tokens at most
BEFORE = 4  # tokens of the prompt that tell the decoder whether a space comes first


class Pieces:
    """The text of one answer."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int]) -> None:
        self._tokenizer, self._ids = tokenizer, list(prompt[-BEFORE:])
        self._context, self._read = 0, len(self._ids)  # what is decoded begins there, what is new there
        self._said = self._read  # tokens that are in pieces
        self._told: list[Token] = []  # of the others

    def push(self, id: int, told: Token | None = None) -> Piece | None:
        """One token more; what can be said now."""
        self._ids.append(id)
        if told is not None:
            self._told.append(told)
        text = self._text(all=len(self._ids) - self._read > LONGEST)
        return self._piece(text) if text else None

    def end(self) -> Piece | None:
        """What was held back, once no more tokens come; tokens without a text are in it, too."""
        text = self._text(all=True)
        return self._piece(text) if len(self._ids) > self._said else None

    def _text(self, *, all: bool) -> str:
        """Characters that the last tokens add; none while the last of them is not whole, but for `all`."""
        before, now = (
            self._tokenizer.decode(ids, skip_special_tokens=True)
            for ids in (self._ids[self._context : self._read], self._ids[self._context :])
        )
        if len(now) <= len(before) or (now.endswith(BROKEN) and not all):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return str(now[len(before) :])

    def _piece(self, text: str) -> Piece:
        """A piece of all tokens that none has had yet."""
        size, tokens = len(self._ids) - self._said, tuple(self._told)
        self._said, self._told = len(self._ids), []
        return Piece(text, size, tokens)
