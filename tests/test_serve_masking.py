"""Personal data is masked in whole texts, in pieces of them and in logs, and nothing else is."""

from __future__ import annotations

import io
import ipaddress
import logging
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from personal import SENTENCES

from isoflop.errors import ServeError
from isoflop.serve.masking import KINDS, Masker, masked_logs

MARK = re.compile(r"\{([a-z_]+):([^}]*)\}")
PLACEHOLDER = re.compile(r"\[([A-Z_]+)_[0-9]+\]")
CARD, MAIL = "4111111111111111", "joe@example.com"
BODY = "\n".join("MIIEowIBAAKCAQEA1234567890abcdefghijklmnopqrstuvwxyz0123456789+/" for _ in range(30))
PEM = f"-----BEGIN RSA PRIVATE KEY-----\n{BODY}\nAAA=\n-----END RSA PRIVATE KEY-----"


def masked(text: str, *kinds: str) -> str:
    return Masker(kinds or KINDS).mask(text).text


def streamed(masker: Masker, text: str, size: int) -> tuple[str, Counter[str]]:
    stream = masker.stream()
    said = [stream.push(text[i : i + size]) for i in range(0, len(text), size)]
    return "".join(said) + stream.end(), stream.found


# -- what is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_found_and_little_else(kind: str) -> None:
    right = wrong = missed = 0
    for sentence in SENTENCES:
        marked = Counter(value for name, value in MARK.findall(sentence) if name == kind)
        masker = Masker(KINDS, reversible=True)
        text = masker.mask(MARK.sub(r"\2", sentence)).text
        found = Counter(
            masker.values[match[0]] for match in PLACEHOLDER.finditer(text) if match[1].lower() == kind
        )
        right += (found & marked).total()
        wrong += (found - marked).total()
        missed += (marked - found).total()
    assert right >= 5
    assert right / (right + wrong) >= 0.92
    assert right / (right + missed) >= 0.95


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"see https://example.com/?to={MAIL}&x=1", "see https://example.com/?to=[EMAIL]&x=1"),
        ("https://joe:secret@mail.example.com/", "https://joe:[EMAIL]/"),
        ("ftp://joe:se+cret!@host/", "ftp://joe:[KEY]@host/"),
        ("ftp://joe:se!cret@host.example/", "ftp://joe:[KEY][EMAIL]/"),  # an address begins in the password
        (f"{CARD}0000000000", f"{CARD}0000000000"),
        ("17 4111 1111 1111 1111 2027", "17 [CARD] 2027"),
        ("4111-1111-1111-1111-123", "[CARD]-123"),
        ("620102199001010257", "[CN_ID]"),  # a card's number, too
        ("v1.2.3.4, version 1.2.3.4, 1.2.3.4.5, 1.2.3.4.", "v1.2.3.4, version 1.2.3.4, 1.2.3.4.5, [IP]."),
        (f"password: +14155552671, password: {MAIL}", "password: [KEY], password: [KEY]"),
        (f"Bearer {MAIL}", "Bearer [EMAIL]"),
        ("DE89 3704 0044 0532 0130 00 12345", "[IBAN] 12345"),
    ],
)
def test_overlaps(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert streamed(Masker(KINDS), text, 1)[0] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("４１１１１１１１１１１１１１１１", "[CARD]"),
        ("٤١١١١١١١١١١١١١١١", "[CARD]"),  # Arabic digits
        ("𝟒𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏", "[CARD]"),  # of mathematics
        ("4111\u00a01111\u20091111\u30001111", "[CARD]"),  # other spaces
        ("4111\u20101111\u20101111\u20101111", "[CARD]"),  # another hyphen
        ("a 41\u200b11\u2060111111\ufeff111111 b", "a [CARD] b"),
        ("jo\u00ade@exam\u200dple.com", "[EMAIL]"),
        ("jo" + "\u200b" * 16 + "e@example.com", "[EMAIL]"),
        ("jo" + "\u200b" * 17 + "e@example.com", "jo" + "\u200b" * 17 + "[EMAIL]"),
        ("password: " + "\u200b" * 16 + "hunter22", "password: " + "\u200b" * 16 + "[KEY]"),
        ("password: " + "\u200b" * 17 + "hunter22", "password: " + "\u200b" * 17 + "hunter22"),
        ("\u200b \u200b", "\u200b \u200b"),
        ("joe＠example．com", "[EMAIL]"),
        ("卡4111111111111111号", "卡[CARD]号"),
        ("4111 1111\n1111 1111", "4111 1111\n1111 1111"),  # a line's end ends numbers
        ("4111  1111  1111  1111", "4111  1111  1111  1111"),  # as columns of a table
        (f"{MAIL}\r\n{MAIL}\n", "[EMAIL]\r\n[EMAIL]\n"),
    ],
)
def test_signs_of_every_script(text: str, expected: str) -> None:
    assert masked(text) == expected
    assert streamed(Masker(KINDS), text, 1)[0] == expected


def test_only_what_was_asked() -> None:
    text = f"{MAIL} {CARD} 8.8.8.8"
    found = Masker(["ip", "email"]).mask(text)
    assert found.text == f"[EMAIL] {CARD} [IP]"
    assert found.found == {"email": 1, "ip": 1}
    assert Masker([]).mask(text) == (text, {})
    with pytest.raises(ServeError, match="named 'mail'") as error:
        Masker(["mail"])
    assert "card, cn_id, email" in error.value.hint


def test_private_keys_whole_and_without_their_end() -> None:
    assert masked(f"a {PEM} b") == "a [KEY] b"
    assert masked(f"a {PEM[:1500]}") == "a [KEY]"
    assert masked(repr(PEM)) == "'[KEY]'"
    ended = masked(PEM.split("\nAAA=")[0] + "\nThat was it: (no end).")
    assert ended == "[KEY]\nThat was it: (no end)."


# -- pieces -------------------------------------------------------------------------------------------------

VALUES = sorted({value for sentence in SENTENCES for _, value in MARK.findall(sentence)})
BETWEEN = (
    *(
        "",
        " ",
        "\n",
        ".",
        ",",
        "-",
        "+",
        ":",
        "@",
        "_",
        "\u200b",
        "\u200b" * 17,
        "\u00a0",
        "我",
        "a",
        "1",
        "é",
    ),
    *(
        "[EMAIL_1]",
        "password: ",
        "tel ",
        "eyJ",
        "-----",
        PEM,
        PEM[:700],
        "://u:",
        "x" * 600,
        "1 " * 600,
        "  ",
    ),
    *("-----BEGIN PRIVATE KEY", "WORD GB29 TEST ", "%40", "'", '"', "\\n", "\0", "[", "]", "\u200b" * 9),
)
PARTS = st.sampled_from(VALUES) | st.sampled_from(BETWEEN) | st.text(max_size=9)
TEXTS = st.lists(PARTS, max_size=9).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    st.data(), TEXTS, st.booleans(), st.sampled_from([KINDS, ("email", "card"), ("phone",), ("key", "iban")])
)
def test_pieces_say_what_the_whole_says(
    data: st.DataObject, text: str, reversible: bool, kinds: tuple[str, ...]
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=40).map(sorted))
    whole = Masker(kinds, reversible=reversible).mask(text)
    masker = Masker(kinds, reversible=reversible)
    stream, said = masker.stream(), []
    for begin, end in pairwise([0, *cuts, len(text)]):
        said.append(stream.push(text[begin:end]))
        assert whole.text.startswith("".join(said))
    said.append(stream.end())
    assert ("".join(said), stream.found) == whole
    if reversible:
        restoring = masker.restoring()
        assert "".join(map(restoring.push, said)) + restoring.end() == text == masker.restore(whole.text)


def test_plain_words_go_out_at_their_end() -> None:
    stream = Masker(KINDS).stream()
    said = [
        stream.push(piece)
        for piece in ("The to", "ken", " of", ' "a', 'b", (x', "\n", "我是", "In 2024", " w")
    ]
    assert said == ["The ", "", "token ", 'of "', 'ab", ', "(x\n", "我是", "In ", "2024 "]
    assert stream.end() == "w"


def test_no_more_is_held_than_the_longest_match() -> None:
    for text in ("x" * 2500, "1 " * 1200, "a." * 1200, "AB12 " * 500, "-----BEGIN CERTIFICATE-----\n" + BODY):
        stream, said = Masker(KINDS).stream(), 0
        for i, char in enumerate(text, 1):
            said += len(stream.push(char))
            assert i - said <= 1200
    stream = Masker(["card"]).stream()
    assert len(stream.push("x" * 100)) >= 70


def test_a_private_key_is_held_to_its_end() -> None:
    stream = Masker(KINDS).stream()
    text = f"Here: {PEM} done"
    said = "".join(stream.push(text[i : i + 4]) for i in range(0, text.index("-----END"), 4))
    assert said == "Here: "
    stream = Masker(KINDS).stream()
    assert stream.push("-----BEGIN CERTIFICATE-----\n" + BODY + "\n").endswith("89+/\n")


BEGIN = "-----BEGIN PRIVATE KEY-----"
HOSTILE = (
    *(
        "a",
        "a.",
        "a..",
        "a@",
        "a@a.",
        "a%40",
        "1",
        "1 ",
        "1.",
        "1.1.1.999 ",
        ":",
        "a:",
        "00",
        "4111 ",
        "DE89",
    ),
    *("AB12 ", "eyJ", "eyJaaaaaaaa:", "-----BEGIN ", "password: aaaaaaaa ", "token=token ", "://a:", "sk-"),
    *("tel:1 ", "\u200b", "1\u200b", "(", "[EMAIL_1", "é"),
)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [*((piece, piece) for piece in HOSTILE), (BEGIN, "[KEY]"), (BEGIN + "A" * 500, "[KEY]")],
)
def test_a_megabyte_of_what_almost_matches(piece: str, expected: str) -> None:
    """A pattern that is not linear would take hours."""
    count = 1_000_000 // len(piece)
    assert masked(piece * count) == expected * count


@pytest.mark.parametrize(
    "piece",
    [
        "+1 2 3 4 5 6 7 8 9 ",
        "+1 999 999 9999 ",
        "0000-0000000 ",
        "555-555-5555 ",
        "DE89 3704 0044 0532 0130 01 ",
    ],
)
def test_many_numbers_that_do_not_exist(piece: str) -> None:
    text = piece * (50_000 // len(piece))
    assert masked(text, "iban", "phone") == text


# -- reversible ---------------------------------------------------------------------------------------------


def test_the_same_value_has_the_same_number() -> None:
    masker = Masker(KINDS, reversible=True)
    assert masker.mask(f"{MAIL}, ann@example.com, {MAIL}").text == "[EMAIL_1], [EMAIL_2], [EMAIL_1]"
    assert masker.mask(f"8.8.8.8 of {MAIL}").text == "[IP_1] of [EMAIL_1]"
    assert (
        masker.restore("To [EMAIL_2] from [IP_1], [EMAIL_3]") == "To ann@example.com from 8.8.8.8, [EMAIL_3]"
    )
    assert Masker(KINDS, reversible=True).restore("[EMAIL_1]") == "[EMAIL_1]"  # of another session


def test_placeholders_that_the_text_itself_has() -> None:
    masker = Masker(KINDS, reversible=True)
    whole = masker.mask(f"[EMAIL_1] is not {MAIL}")
    assert whole == ("[TEXT_1] is not [EMAIL_1]", {"email": 1})
    assert masker.restore(whole.text) == f"[EMAIL_1] is not {MAIL}"


def test_restoring_holds_back_placeholders_alone() -> None:
    masker = Masker(KINDS, reversible=True)
    masker.mask(MAIL)
    stream = masker.restoring()
    assert [stream.push(piece) for piece in ("see [", "EMAIL_", "1", "] [x", "] [A")] == [
        "see ", "", "", f"{MAIL} [x", "] ",
    ]  # fmt: skip
    assert stream.end() == "[A"


# -- failures and logs --------------------------------------------------------------------------------------


def broken(*_: object) -> None:
    raise RuntimeError("out of order")


def test_what_cannot_be_masked_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    masker = Masker(KINDS)
    stream = masker.stream()
    monkeypatch.setattr(ipaddress, "ip_address", broken)
    with pytest.raises(RuntimeError):
        masker.mask("from 8.8.8.8")
    for piece in ("secret from 8.8.8.8, ", "on"):
        with pytest.raises(RuntimeError):
            stream.push(piece)
    with pytest.raises(RuntimeError):
        stream.end()
    monkeypatch.undo()
    assert stream.end() == "secret from [IP], on"


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """With a handler of its own, as some libraries have, which is not propagated to ours."""
    logger, text = logging.Logger("test"), io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    before = logging.getLogRecordFactory()
    with masked_logs():
        yield logger, text
    assert logging.getLogRecordFactory() is before


def test_logs_are_masked(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, text = log
    logger.info("%s asked from %s:%d, 100%% of %s", MAIL, "8.8.8.8", 80, {"card": int(CARD)})
    assert text.getvalue() == "INFO [EMAIL] asked from [IP]:80, 100% of {'card': [CARD]}\n"


def test_tracebacks_and_stacks_in_logs_are_masked(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, text = log
    try:
        raise KeyError(MAIL)
    except KeyError:
        logger.exception("for %s", CARD, stack_info=True)
    lines = text.getvalue().splitlines()
    assert lines[0] == "ERROR for [CARD]"
    assert "KeyError: '[EMAIL]'" in lines
    assert any(line.startswith("Stack (most recent call last)") for line in lines)
    assert MAIL not in text.getvalue()


def test_a_record_that_cannot_be_masked_is_left_out(
    log: tuple[logging.Logger, io.StringIO],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    logger, text = log
    logger.warning("%d items", MAIL)  # which logging itself would print on stderr
    monkeypatch.setattr(ipaddress, "ip_address", broken)
    logger.warning("from 8.8.8.8")
    assert text.getvalue() == (
        "WARNING a record of test is left out: it could not be masked (TypeError)\n"
        "WARNING a record of test is left out: it could not be masked (RuntimeError)\n"
    )
    assert capsys.readouterr().err == ""
