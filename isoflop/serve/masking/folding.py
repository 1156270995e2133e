"""Text as recognisers read it: digits and signs of every script as ASCII, without what cannot be seen.

So a card number is found in full-width digits, and with zero-width spaces between them. A run of more than
16 hidden characters ends a match, or a stream would have to hold any number of them back.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field

_HIDDEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\ufe00-\ufe0f\ufeff"
)
_RUN = re.compile(f"[{_HIDDEN}]+")
_HELD = 16
_BREAK = "\0"
_KNOWN = 20_000  # characters whose plain form is remembered


class _Plain(dict[int, str]):
    """The ASCII character that a code point stands for, else itself."""

    def __missing__(self, code: int) -> str:
        plain = _plain(chr(code))
        if len(self) < _KNOWN:
            self[code] = plain
        return plain


def _plain(char: str) -> str:
    digit, category = unicodedata.decimal(char, None), unicodedata.category(char)
    if digit is not None:
        return str(digit)
    if category in ("Zs", "Pd") or char == "\u2212":  # spaces, dashes and the minus
        return " " if category == "Zs" else "-"
    plain = unicodedata.normalize("NFKC", char)
    return plain if len(plain) == 1 and " " < plain <= "~" else char


_PLAIN = _Plain()


@dataclass(frozen=True)
class Folded:
    """A text as it is read, and where each of its characters was."""

    text: str
    size: int  # characters of the original
    places: list[int] = field(default_factory=list)  # in the original; empty: the same
    open: int = 0  # hidden characters at the end, which may become more

    def begin(self, at: int) -> int:
        """Where in the original the character `at` is."""
        if not self.places:
            return at
        return self.places[at] if at < len(self.places) else self.size - self.open

    def end(self, at: int) -> int:
        """Where in the original the character before `at` ends."""
        return at if not self.places or at == 0 else self.places[at - 1] + 1


def fold(text: str) -> Folded:
    """How a text is read."""
    if text.isascii():
        return Folded(text, len(text))
    plain = text.translate(_PLAIN)
    if not _RUN.search(plain):
        return Folded(plain, len(text))
    parts: list[str] = []
    places: list[int] = []
    at = held = 0
    for run in _RUN.finditer(plain):
        parts.append(plain[at : run.start()])
        places.extend(range(at, run.start()))
        at = run.end()
        held = at - run.start()
        if held > _HELD:
            parts.append(_BREAK)
            places.append(at - 1)
    still = held if at == len(text) and held <= _HELD else 0
    return Folded("".join(parts) + plain[at:], len(text), [*places, *range(at, len(text))], still)
