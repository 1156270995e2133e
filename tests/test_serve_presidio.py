"""Presidio beside our own recognisers: what it finds in whole texts, in streams, and that it fails closed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from asking import COMPLETIONS, Asked
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import ServeError
from isoflop.serve.masking import KINDS, Masker, presidio
from isoflop.serve.masking.presidio import LONGEST, Presidio, _sentences, preferred

SSN, NHS, COIN = "536-90-4399", "943 476 5919", "16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ"
OF_NUMBERS = ("card", "crypto", "email", "uk_nhs", "us_ssn")
TEXTS = [
    f"My SSN is {SSN}, yes.", "A card: 4111 1111 1111 1111!", "Mail ann@example.org\nor call.",
    f"NHS {NHS} ", COIN, "Nothing is here. ", "word " * 30, "x" * 600, "Mr. Hyde? ",
    "4111 1111 ", "\n", " ", "1111 1111",
]  # fmt: skip


def test_without_the_extra_ours_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presidio, "find_spec", lambda name: None)
    assert preferred() is Masker


@pytest.fixture(scope="module")
def masker() -> Presidio:
    pytest.importorskip("presidio_analyzer", reason="the extra isoflop[presidio] is not installed")
    assert preferred() is Presidio
    return Presidio(OF_NUMBERS)


def test_both_are_found(masker: Presidio) -> None:
    text = f"My SSN is {SSN}, my card 4111 1111 1111 1111, mail ann@example.org or pay {COIN}."
    masked = masker.mask(text)
    assert masked.text == "My SSN is [US_SSN], my card [CARD], mail [EMAIL] or pay [CRYPTO]."
    assert masked.found == {"us_ssn": 1, "card": 1, "email": 1, "crypto": 1}
    found = masker.items(text)
    assert [(item.tag, text[item.start : item.end]) for item in found] == [
        ("us_ssn", SSN), ("card", "4111 1111 1111 1111"), ("email", "ann@example.org"), ("crypto", COIN),
    ]  # fmt: skip


def test_only_what_was_asked_for_is_masked(masker: Presidio) -> None:
    text = f"My SSN is {SSN}, my card 4111 1111 1111 1111."
    assert Presidio(["card"]).mask(text).text == f"My SSN is {SSN}, my card [CARD]."
    assert Presidio(["us_ssn"]).mask(text).text == "My SSN is [US_SSN], my card 4111 1111 1111 1111."


def test_words_around_a_number_tell_what_it_is(masker: Presidio) -> None:
    passport = Presidio(["us_passport"])
    assert passport.mask("My passport is 912803456.").text == "My passport is [US_PASSPORT]."
    assert passport.mask("It weighs 912803456.").text == "It weighs 912803456."


def test_of_two_that_lie_over_each_other_the_text_is_masked_once(masker: Presidio) -> None:
    masked = Presidio(["uk_nhs", "phone"]).mask("NHS 943-476-5919, thanks")
    assert (masked.text in ("NHS [PHONE], thanks", "NHS [UK_NHS], thanks"), sum(masked.found.values())) == (
        True,
        1,
    )


@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.sampled_from(TEXTS), max_size=5), cuts=st.lists(st.integers(0, 900), max_size=9))
def test_a_stream_says_what_the_whole_text_would(masker: Presidio, texts: list[str], cuts: list[int]) -> None:
    text = "".join(texts)
    ends = sorted({0, *(min(cut, len(text)) for cut in cuts), len(text)})
    stream, said = masker.stream(), ""
    for begin, end in pairwise(ends):
        said += stream.push(text[begin:end])
    said += stream.end()
    whole = masker.mask(text)
    assert (said, stream.found) == (whole.text, whole.found)


@settings(deadline=None)
@given(st.text("ab .\n!", max_size=2000), st.integers(0, 2000))
def test_sentences_are_the_same_whatever_follows(text: str, cut: int) -> None:
    whole = list(_sentences(text, last=True))
    assert "".join(whole) == text
    assert all(len(sentence) <= LONGEST for sentence in whole)
    begun = list(_sentences(text[:cut], last=False))
    assert begun == whole[: len(begun)]
    assert len(text[:cut]) - sum(map(len, begun)) < LONGEST


def test_a_stream_goes_out_by_sentences(masker: Presidio) -> None:
    stream = masker.stream()
    assert stream.push("One is here. Two is ") == "One is here. "
    assert stream.push(f"{SSN}") == ""
    assert stream.cut() == "Two is "  # of what was cut, no part of what may be something
    whole = masker.stream()
    assert whole.push(f"Two is {SSN}") + whole.end() == "Two is [US_SSN]"


def test_names_of_people(masker: Presidio) -> None:
    if "person" not in presidio._analyzer().entities:
        with pytest.raises(ServeError, match="'person'") as caught:
            Presidio(["email", "person"])
        assert "spacy download" in caught.value.hint
        pytest.skip("no model of spaCy is installed")
    named = Presidio(["email", "person", "location"])
    text = "My name is John Smith and I live in London. Write to john@example.org."
    assert named.mask(text).text == "My name is [PERSON] and I live in [LOCATION]. Write to [EMAIL]."
    assert named.mask("[EMAIL] is [CARD].").text == "[EMAIL] is [CARD]."


def test_kinds_that_nobody_knows(masker: Presidio) -> None:
    with pytest.raises(ServeError, match="'shoe_size'") as caught:
        Presidio(["email", "shoe_size"])
    assert "us_ssn" in caught.value.hint
    assert all(Presidio([kind]) for kind in KINDS)


def test_nothing_is_fetched(masker: Presidio, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*given: Any) -> Any:
        raise AssertionError(given)

    monkeypatch.setattr("socket.getaddrinfo", reached)
    text = "See https://example.co.uk/a or write to ann@example.co.uk."
    assert masker.mask(text).text == "See https://example.co.uk/a or write to [EMAIL]."


def test_where_it_fails_the_request_fails(masker: Presidio, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(masker=Presidio, settings={"mask": OF_NUMBERS})
    prompt = f"my SSN is {SSN}"
    answer = asked(COMPLETIONS, {"model": "my-model", "prompt": prompt})
    assert answer.json()["choices"][0]["text"] == "my SSN is [US_SSN]"

    def broken(*given: Any, **named: Any) -> Any:
        raise MemoryError(prompt)

    monkeypatch.setattr(presidio._analyzer().engine, "analyze", broken)
    for stream in (False, True):
        failed = asked(COMPLETIONS, {"model": "my-model", "prompt": prompt, "stream": stream})
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "masking_failed")
        assert SSN not in failed.text
