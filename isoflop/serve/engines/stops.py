"""Texts that end an answer, found in pieces of it however they are cut."""

from __future__ import annotations

from collections.abc import Sequence

from isoflop.serve.protocol import Piece


class Stops:
    """Holds pieces back for as long as one of the texts may begin in them."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = stops, list[Piece]()
        self.hit = False  # one has come: what it was in is not part of the answer, nor what follows

    def push(self, piece: Piece) -> list[Piece]:
        """What may go on: all before a text that ends the answer, or before one that may."""
        if not self._stops:
            return [piece]
        self._held.append(piece)
        text = "".join(held.text for held in self._held)
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self.hit = bool(found)
        return self._until(min(found) if found else len(text) - self._begun(text))

    def rest(self) -> list[Piece]:
        """What was held back when the answer has ended otherwise."""
        return self._held

    def _begun(self, text: str) -> int:
        """Characters at the end of a text that may become one that ends the answer."""
        return max(
            next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
            for stop in self._stops
        )

    def _until(self, end: int) -> list[Piece]:
        """Whole pieces up to here; the one that a text cuts goes with what is before it."""
        free, at = list[Piece](), 0
        while self._held and at + len(self._held[0].text) <= end:
            free.append(self._held.pop(0))
            at += len(free[-1].text)
        if self.hit and at < end:
            free.append(self._held[0]._replace(text=self._held[0].text[: end - at]))
        return free
