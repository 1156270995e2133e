"""Personal data that goes from one message of a chat on into the speaker's next."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from asking import CHAT, Asked
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serving import Words

from isoflop.serve.borders import NEAR, apart
from isoflop.serve.calls import Call
from isoflop.serve.masked import masked_turns
from isoflop.serve.masking import KINDS, Masker
from isoflop.serve.traces import Turn

MASKER = Masker(KINDS)
ITEMS = {
    "4111 1111 1111 1111": "card", "5500005555555559": "card", "3782-822463-10005": "card",
    "ann.example@mail.example.org": "email", "DE89 3704 0044 0532 0130 00": "iban",
    "GB29NWBK60161331926819": "iban",
    "192.168.100.23": "ip", "2001:db8:85a3::8a2e:370:7334": "ip", "11010519491231002X": "cn_id",
    "+49 30 901820": "phone", "(212) 555-0199": "phone", "13812345678": "phone",
    "sk-Zx9Qw8Er7Ty6Ui5Op4As3": "key", "password: hunter2!x": "key", "redis://bob:s3cret@localhost": "key",
}  # fmt: skip
PROSE = ["", "Hello. ", "it is ", "the day 12 was ", "so:\n", "long words " * 40]
GAPS = ["", " ", "\n", " \n "]


def masked(turns: list[Turn], masker: Any = MASKER) -> tuple[list[str], Call]:
    call = Call("/v1/chat/completions")
    return [text for _, text in asyncio.run(masked_turns(call, masker, turns))], call


def test_every_item_is_one() -> None:
    assert {item: set(MASKER.mask(item).found) for item in ITEMS} == {i: {kind} for i, kind in ITEMS.items()}


@settings(deadline=None)
@given(
    item=st.sampled_from(sorted(ITEMS)), cuts=st.lists(st.integers(1, 30), min_size=1, max_size=2),
    before=st.sampled_from(PROSE), after=st.sampled_from(PROSE), gaps=st.tuples(*[st.sampled_from(GAPS)] * 2),
    between=st.booleans(),
)  # fmt: skip
@example("4111 1111 1111 1111", [9], PROSE[1], PROSE[2], ("", ""), True)
@example("4111 1111 1111 1111", [4, 9], PROSE[1], PROSE[2], ("", ""), False)
@example("ann.example@mail.example.org", [12], PROSE[5], PROSE[5], (" ", "\n"), False)
def test_no_item_is_whole_after_its_parts_are_joined(
    item: str, cuts: list[int], before: str, after: str, gaps: tuple[str, str], between: bool
) -> None:
    """Wherever it was split, into two messages or three, with or without others' between them."""
    ends = sorted({0, *(cut % len(item) for cut in cuts), len(item)})
    pieces = [item[a:b] for a, b in pairwise(ends)]
    (found,) = MASKER.items(item)
    secret = item[found.start : found.end]
    pieces = [before + pieces[0], *pieces[1:]]
    pieces[-1] += " " + after
    said = [gaps[0] + piece + gaps[1] for piece in pieces] if len(pieces) == 2 else pieces
    turns = [turn for text in said for turn in (("user", text), *([("assistant", "Go on.")] * between))]
    left = [text for text, (role, _) in zip(masked(turns)[0], turns, strict=True) if role == "user"]
    joins = {"".join(left)}
    if len(pieces) == 2:
        joins |= {separator.join(text.strip() for text in left) for separator in ("", " ")}
    for joined in joins:
        assert secret.replace(" ", "") not in joined.replace(" ", "")
        assert not MASKER.mask(joined).found, joined


@settings(deadline=None)
@given(st.lists(st.text("abx 1-\n", max_size=300), max_size=5))
def test_texts_without_items_stay_as_they_are(texts: list[str]) -> None:
    clean = [MASKER.mask(text).text for text in texts]
    assert apart(MASKER, clean) == (clean, {})


def test_placeholders_stand_for_both_shares() -> None:
    turns = [
        ("user", "My card is 4111 1111 "),
        ("assistant", "Yes?"),
        ("user", "1111 1111, thanks. 1111 1111"),
    ]
    left, call = masked(turns)
    assert left == ["My card is [CARD] ", "Yes?", "[CARD], thanks. 1111 1111"]
    assert call.masked == {"card": 1}
    left, call = masked(
        [("user", "my password is"), ("user", "hunter2! and ann@example.org"), ("user", "ok")]
    )
    assert left == ["my password is", "[KEY] and [EMAIL]", "ok"]


def test_what_one_message_has_alone_is_not_taken_for_more() -> None:
    turns = [("user", "Write to ann@example.com"), ("user", "Hello 4111 1111"), ("assistant", "1111 1111")]
    assert masked(turns)[0] == ["Write to [EMAIL]", "Hello 4111 1111", "1111 1111"]


def test_of_long_messages_the_ends_alone_are_read() -> None:
    read: list[int] = []

    class Counting(Masker):
        def items(self, text: str) -> Any:
            read.append(len(text))
            return super().items(text)

    long = "some words " * 10_000
    left, call = masked([("user", long + "4111 1111"), ("user", "1111 1111 " + long)], Counting(KINDS))
    assert (left[0].endswith("words [CARD]"), left[1].startswith("[CARD] some")) == (True, True)
    assert call.masked == {"card": 1}
    assert max(read) < 6 * NEAR
    assert len(read) == 2


def test_what_fails_there_fails_the_request() -> None:
    class Failing(Words):
        def items(self, text: str) -> Any:
            raise LookupError(text)

    asked = Asked(masker=Failing, settings={"mask": ("bob",)})
    answer = asked(CHAT, {"model": "my-model", "messages": [{"role": "user", "content": "hi"}] * 2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "masking_failed")
    assert "hi" not in answer.text


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_gateway_masks_over_messages(role: str) -> None:
    asked = Asked(masker=Masker, settings={"mask": ("card",), "audit_text": True})
    messages = [{"role": role, "content": "4111 1111 1111"}, {"role": "user", "content": "so"}]
    messages += [{"role": "system", "content": "1111"}]
    answer = asked(CHAT, {"model": "my-model", "messages": messages}).json()
    assert answer["choices"][0]["message"]["content"] == "System: [CARD] User: so System: [CARD] Assistant:"
    assert asked.call.asked == ["[CARD]", "so", "[CARD]"]
    assert asked.call.masked == {"card": 1}
