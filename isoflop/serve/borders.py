"""What goes from one text on into the next: a number that somebody writes in two messages of a chat.

Joined texts are read twice: with a space where one ends in some, or the next begins with some, and nothing
elsewhere; and the other way round, as somebody may leave out spaces or add line ends. Of long texts only the
words near their ends are read: so this costs twice what masking each for itself does at most.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from isoflop.serve.gateway import Masker
from isoflop.serve.protocol import Span

NEAR = 128  # characters of each end, and the rest of the word there
BREAK = "\n\0\n"  # in place of what is far from both: no item goes over it
KNOWN_BY = 96  # characters before an item, as "password is", that may be in the text before
SPACE = re.compile(r"\s")


class Part(NamedTuple):
    """Some of a text, and where it is in the joined one."""

    number: int
    begin: int
    end: int
    at: int


def apart(masker: Masker, texts: Sequence[str]) -> tuple[list[str], Counter[str]]:
    """One speaker's texts, masked already, without what goes from one into the next; and how many items that
    were of each kind. A placeholder stands for each share of an item."""
    left, found = list(texts), Counter[str]()
    for spaced in (True, False):
        joined, parts = _joined(left, spaced)
        ends = {part.number: part.end for part in parts}
        for item in reversed(masker.items(joined)):
            shares = list(_shares(item, parts))
            if not _goes_over(shares, ends):
                continue
            found[item.tag] += 1
            placeholder = masker.placeholder(item.tag, joined[item.start : item.end])
            for number, begin, end in shares:
                left[number] = left[number][:begin] + placeholder + left[number][end:]
    return left, found


def _joined(texts: Sequence[str], spaced: bool) -> tuple[str, list[Part]]:
    """The texts, without the space around each, and their parts.

    `spaced`: a space is between them where there was some; else where there was none.
    """
    written: list[str] = []
    parts: list[Part] = []
    at, space = 0, False  # at the end of the text before
    for number, text in enumerate(texts):
        space = space or text[:1].isspace()
        between = " " if written and space == spaced else ""
        for begin, end in _ends(text):
            written += between, text[begin:end]
            at += len(between)
            parts.append(Part(number, begin, end, at))
            at, between, space = at + end - begin, BREAK, text[-1].isspace()
    return "".join(written), parts


def _ends(text: str) -> Iterator[tuple[int, int]]:
    """Where a text's first and last words are; together, where little is between them."""
    begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
    if begin >= end:
        return
    space = SPACE.search(text, begin + NEAR, end)
    first = space.start() if space else end
    last = end - NEAR
    while last > first and not text[last - 1].isspace():
        last -= 1
    if last <= first:
        yield begin, end
    else:
        yield begin, first
        yield last, end


def _goes_over(shares: Sequence[tuple[int, int, int]], ends: Mapping[int, int]) -> bool:
    """Whether an item is in several texts, or where a text begins or ends, so that its neighbour tells what
    it is; `ends` are those of the texts."""
    first, begin, _ = shares[0]
    last, _, end = shares[-1]
    known_before = first > min(ends) and begin < KNOWN_BY
    known_after = last < max(ends) and end == ends[last]
    return first != last or known_before or known_after


def _shares(item: Span, parts: Sequence[Part]) -> Iterator[tuple[int, int, int]]:
    """Text by number, and where in it some of the item is."""
    for part in parts[bisect_right(parts, item.start, key=lambda part: part.at) - 1 :]:
        if part.at >= item.end:
            return
        begin = part.begin + max(0, item.start - part.at)
        end = min(part.end, part.begin + item.end - part.at)
        if begin < end:
            yield part.number, begin, end
