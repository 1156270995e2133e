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
        self._special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._silent = 0  # tokens since the last piece that no decoder shows

    def push(self, id: int, told: Token | None = None) -> Piece | None:
        """One token more; what can be said now."""
        if told is not None:
            self._told.append(told)
        if id in self._special or self._tokenizer.id_to_token(id) is None:
            self._silent += 1
            return None
        self._ids.append(id)
        end = self._whole()
        text = self._text(end)
        return self._piece(text, end) if text else None

    def end(self) -> Piece | None:
        """What was held back, once no more tokens come; tokens without a text are in it, too."""
        end = len(self._ids)
        text = self._text(end)
        return self._piece(text, end) if end > self._said or self._silent else None

    def _whole(self) -> int:
        """Where the tokens end whose characters are whole, or whose bytes are too old to become one."""
        last, waits = len(self._ids), len(self._ids) - self._read > LONGEST
        for end in range(last, last - (LONGEST if waits else 1), -1):
            if not self._decoded(end).endswith(BROKEN):
                return end
        return last - LONGEST + 1 if waits else self._read

    def _decoded(self, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[self._context : end], skip_special_tokens=True))

    def _text(self, end: int) -> str:
        """Characters that the tokens up to there add."""
        before, now = self._decoded(self._read), self._decoded(end)
        if len(now) <= len(before):
            return ""
        # Bytes that are no character tell what follows nothing, and are counted otherwise beside others.
        self._context, self._read = end if now.endswith(BROKEN) else self._read, end
        return now[len(before) :]

    def _piece(self, text: str, end: int) -> Piece:
        """A piece of all tokens up to there that none has had yet."""
        size, self._silent = end - self._said + self._silent, 0
        tokens, self._told = tuple(self._told[:size]), self._told[size:]
        self._said = end
        return Piece(text, size, tokens)
