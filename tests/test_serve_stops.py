"""Texts that end an answer, however its pieces are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from isoflop.serve.engines.stops import Stops
from isoflop.serve.protocol import Piece


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """What is shown of an answer, and whether a text ended it."""
    found = Stops(stops)
    out = []
    for piece in pieces:
        out += found.push(Piece(piece, 1))
        if found.hit:
            return "".join(p.text for p in out), True
    return "".join(p.text for p in [*out, *found.rest()]), False


@given(st.lists(st.text("ab", min_size=1, max_size=3)), st.lists(st.text("ab", min_size=1, max_size=4)))
def test_all_before_the_first_stop_is_shown(pieces: list[str], stops: list[str]) -> None:
    text, hit = shown(pieces, stops)
    whole = "".join(pieces)
    assert hit == any(stop in whole for stop in stops)
    assert not any(stop in text for stop in stops)
    assert whole.startswith(text)
    if hit:  # one begins where the text ends; in one piece with another that began earlier it may be later
        assert any(whole.startswith(stop, len(text)) for stop in stops)
    else:
        assert text == whole


def test_pieces_go_on_as_soon_as_no_stop_can_begin_in_them() -> None:
    stops = Stops(["\n\nQ:"])
    assert [p.text for p in stops.push(Piece("one", 1))] == ["one"]
    assert stops.push(Piece(" two\n", 2)) == []
    assert stops.push(Piece("\n", 1)) == []
    assert stops.push(Piece("three", 1)) == [Piece(" two\n", 2), Piece("\n", 1), Piece("three", 1)]
    assert stops.push(Piece("end\n\nQ", 1)) == []
    assert stops.push(Piece(": more", 1)) == [Piece("end", 1)]
    assert stops.hit


def test_without_stops_nothing_is_held() -> None:
    assert Stops([]).push(Piece("a", 1)) == [Piece("a", 1)]
