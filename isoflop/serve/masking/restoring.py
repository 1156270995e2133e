"""Numbered placeholders back to what they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping

from isoflop.serve.masking.recognisers import Recogniser

_PLACEHOLDER = re.compile(r"\[[A-Z_]{2,10}_[0-9]{1,9}\]")
_BEGUN = re.compile(r"\[[A-Z_]{0,11}[0-9]{0,9}\Z")
LITERAL = Recogniser("text", _PLACEHOLDER, 23)  # in a text to mask: it gets a placeholder of its own


def restored(text: str, values: Mapping[str, str]) -> str:
    """The text with the values of its placeholders; unknown ones stay."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[0], match[0]), text)


class RestoreStream:
    """A text that comes in pieces, in which a placeholder may be split."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values, self._held = values, ""

    def push(self, text: str) -> str:
        """What can be said after this piece."""
        text = self._held + text
        begun = _BEGUN.search(text)
        cut = begun.start() if begun else len(text)
        self._held = text[cut:]
        return restored(text[:cut], self._values)

    def end(self) -> str:
        """What is left, at the end of the text."""
        text, self._held = self._held, ""
        return restored(text, self._values)
