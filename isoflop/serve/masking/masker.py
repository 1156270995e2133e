"""Masks texts, whole or as they come: what a stream says in the end is what the whole text would have become.

A recogniser's matches depend on the text around them alone. So a stream may let go whatever lies before the
last words that could still become a match; of words without end, all but the longest match.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from isoflop.errors import ServeError
from isoflop.serve.masking import credentials, phones
from isoflop.serve.masking.folding import fold
from isoflop.serve.masking.recognisers import CARD, CN_ID, EMAIL, IBAN, IPV4, IPV6, MAY_LINK, WORDS
from isoflop.serve.masking.restoring import LITERAL, RestoreStream, restored
from isoflop.serve.protocol import Span

ALL = (  # of two that find the same, the first names it
    credentials.PEM, credentials.JWT, credentials.ISSUED, credentials.URL, credentials.NAMED,
    EMAIL, CN_ID, CARD, IBAN, IPV4, IPV6, phones.INTERNATIONAL, phones.NATIONAL, phones.NAMED,
)  # fmt: skip
KINDS = tuple(sorted({recogniser.kind for recogniser in ALL}))
_CONTEXT = 96  # characters before a match that its pattern may read


class Masked(NamedTuple):
    """A text without personal data, and how many items it had of each kind."""

    text: str
    found: Counter[str]


class Masker:
    """Masks some kinds. One that is reversible is for one session: it remembers what it masked."""

    def __init__(self, kinds: Sequence[str], *, reversible: bool = False) -> None:
        for kind in kinds:
            if kind not in KINDS:
                raise ServeError(
                    f"there is no kind of personal data named {kind!r}",
                    hint=f"name some of {', '.join(KINDS)}",
                )
        self.reversible = reversible
        self.recognisers = tuple(r for r in ALL if r.kind in kinds) + ((LITERAL,) if reversible else ())
        self.window = 2 + max((r.longest for r in self.recognisers if r.opening is None), default=0)
        self.values: dict[str, str] = {}  # by placeholder, where it is reversible
        self._placeholders: dict[tuple[str, str], str] = {}
        self._numbers: Counter[str] = Counter()

    def mask(self, text: str) -> Masked:
        """The whole text, masked."""
        stream = self.stream()
        return Masked(stream.push(text, last=True), stream.found)

    def items(self, text: str) -> list[Span]:
        """What is masked in a whole text, in order."""
        stream = self.stream()
        stream.push(text, last=True)
        return [item for item in stream.items if item.tag != LITERAL.kind]

    def stream(self) -> MaskStream:
        """For a text that comes in pieces."""
        return MaskStream(self)

    def restore(self, text: str) -> str:
        """The text with what was masked in this session."""
        return restored(text, self.values)

    def restoring(self) -> RestoreStream:
        """For a text to restore that comes in pieces."""
        return RestoreStream(self.values)

    def placeholder(self, kind: str, value: str) -> str:
        """What stands for a value."""
        name = kind.upper()
        if not self.reversible:
            return f"[{name}]"
        known = self._placeholders.get((kind, value))
        if known is None:
            self._numbers[kind] += 1
            known = self._placeholders[kind, value] = f"[{name}_{self._numbers[kind]}]"
            self.values[known] = value
        return known


class MaskStream:
    """One text that comes in pieces. After an error nothing is let go: the same error comes again."""

    def __init__(self, masker: Masker) -> None:
        self.found: Counter[str] = Counter()
        self.items: list[Span] = []  # of the last piece, where they are in what was left and it
        self._masker = masker
        self._before = ""  # what patterns may read of what is decided, folded
        self._held = ""  # the rest
        self._covered = 0  # its folded characters that a placeholder already stands for
        self._resume = [0] * len(masker.recognisers)  # where each goes on, from the beginning of `_before`

    def push(self, text: str, *, last: bool = False) -> str:
        """What can be said after this piece."""
        held = self._held = self._held + text
        folded = fold(held)
        read, begin = self._before + folded.text, len(self._before)
        cut = len(read) if last else self._decided(read, begin)
        if cut == begin and not last:
            return ""
        resume, items = list(self._resume), list[Span]()
        parts: list[str] = []
        at = begin + self._covered
        said = folded.end(self._covered)
        for start, back, which in sorted(self._matches(read, begin, cut, resume)):
            if -back <= at:
                continue
            kind = self._masker.recognisers[which].kind
            first, end = folded.begin(max(start, at) - begin), folded.end(-back - begin)
            parts += held[said:first], self._masker.placeholder(kind, held[first:end])
            items.append(Span(kind, first, end))
            at, said = -back, end
        until = len(held) if last else folded.begin(cut - begin)
        if at <= cut:
            parts.append(held[said:until])
        self._before, self._held = read[max(0, cut - _CONTEXT) : cut], held[until:]
        self._covered = max(0, at - cut)
        self._resume = [max(0, place - cut + len(self._before)) for place in resume]
        self.items = items
        self.found.update(item.tag for item in items if item.tag != LITERAL.kind)
        return "".join(parts)

    def end(self) -> str:
        """What is left, at the end of the text."""
        return self.push("", last=True)

    def cut(self) -> str:
        """What is left where the text is cut: nothing, as it may be the beginning of something to mask."""
        return ""

    def _decided(self, read: str, begin: int) -> int:
        """Up to where no match can begin that further text would change."""
        size = len(read)
        cut, words = size, None
        for words in WORDS.finditer(read, max(begin, size - self._masker.window)):  # noqa: B007
            pass
        if words and (words.end() == size or MAY_LINK.match(read, words.end())):
            cut = words.start()
        for recogniser in self._masker.recognisers:
            if recogniser.opening:
                opened = recogniser.opening.search(read, max(begin, size - recogniser.longest))
                cut = min(cut, opened.start()) if opened else cut
        return cut

    def _matches(self, read: str, begin: int, cut: int, resume: list[int]) -> Iterator[tuple[int, int, int]]:
        """Start, end and recogniser of what starts before `cut`. Ends are negative: of those that start
        together the longest comes first."""
        for i, recogniser in enumerate(self._masker.recognisers):
            at = max(resume[i], begin - recogniser.reads_before, 0)
            if recogniser.trigger and not recogniser.trigger.search(read, at):
                continue
            while (match := recogniser.pattern.search(read, at)) and match.start() < cut:
                span = recogniser.accept(match)
                if span is None:
                    at = match.start() + 1
                elif span[0] < cut:
                    yield span[0], -span[1], i
                    at = resume[i] = span[1]
                else:
                    break
