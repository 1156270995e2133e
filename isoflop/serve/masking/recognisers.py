"""What finds personal data: patterns that run in linear time, and checks of what they find.

Patterns read folded text. A match lies within one match of `WORDS`, which is how a stream knows what it
may let go: numbers in groups and IBANs alone go over a single space, and no match over a line's end but that
of a PEM block.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from stdnum import luhn, numdb
from stdnum.cn import ric
from stdnum.exceptions import ValidationError
from stdnum.iban import is_valid as is_iban

LETTERS = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u04ff"
SIGNS = r"!#$%&'()*+\-./0-9:=?@\[\\\]^_~"
_WORD = f"[{LETTERS}{SIGNS}]++"
_NUMBER, _IBAN = "(?<=[0-9)])", "(?:(?<=[A-Za-z]{2}[0-9]{2})|(?<= [A-Z0-9]{4}))"
WORDS = re.compile(f"{_WORD}(?:(?:{_NUMBER} (?=[0-9(])|{_IBAN} (?=[A-Z0-9])){_WORD})*+")
MAY_LINK = re.compile(f"(?:{_NUMBER}|{_IBAN}) \\Z")

Span = tuple[int, int]
Match = re.Match[str]


def _all(match: Match) -> Span:
    return match.span()


@dataclass(frozen=True)
class Recogniser:
    """One way to find one kind."""

    kind: str
    pattern: re.Pattern[str]
    longest: int  # characters that the pattern can span
    accept: Callable[[Match], Span | None] = _all  # what of a match is personal data
    trigger: re.Pattern[str] | None = None  # quickly found in every text that may have a match
    reads_before: int = 0  # characters of a match before what is accepted, at most
    opening: re.Pattern[str] | None = None  # an unfinished match at the end of a text; None: of words alone


# as in icon@2x.png
_FILES = ("png", "jpg", "jpeg", "gif", "svg", "webp", "pdf", "js", "css", "html", "json", "xml", "txt")


def _email(match: Match) -> Span | None:
    return None if match["top"].lower() in _FILES else match.span()


_LOCAL = rf"[{LETTERS}0-9](?<![{LETTERS}0-9].)(?<![{LETTERS}0-9][._%+'-].)(?<![{LETTERS}0-9][._%+'-]{{2}}.)"
EMAIL = Recogniser(
    "email",
    re.compile(
        rf"{_LOCAL}(?:[._%+'-]{{0,2}}[{LETTERS}0-9]){{0,63}}(?:@|%40)(?:[{LETTERS}0-9-]{{1,63}}\.){{1,4}}"
        rf"(?P<top>xn--[A-Za-z0-9-]{{2,30}}|[{LETTERS}]{{2,24}})(?![{LETTERS}0-9])"
    ),
    485,
    _email,
    re.compile("@|%40"),
)  # fmt: skip


# -- numbers with check digits ---------------------------------------------------------------------------

_BRANDS = re.compile(  # first digits, and how many there are
    "4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"  # Visa
    "|5[1-5][0-9]{14}|2(?:22[1-9]|2[3-9][0-9]|[3-6][0-9]{2}|7[01][0-9]|720)[0-9]{12}"  # Mastercard
    "|3[47][0-9]{13}|3(?:0[0-59]|[689][0-9])[0-9]{11,16}"  # American Express; Diners
    "|35(?:2[89]|[3-8][0-9])[0-9]{12,15}|220[0-4][0-9]{12,15}"  # JCB; Mir
    "|(?:5[06-9]|6[0-9]|8[12])[0-9]{14,17}"  # Discover, UnionPay, Maestro, RuPay
)


def _digits(text: str) -> str:
    return "".join(filter(str.isdigit, text))


def _card(match: Match) -> Span | None:
    """With the last group, or without: a check code often follows."""
    for end in (match.end(), match.start("code") - 1) if match["code"] else (match.end(),):
        number = _digits(match.string[match.start() : end])
        if _BRANDS.fullmatch(number) and luhn.is_valid(number):
            return match.start(), end
    return None


CARD = Recogniser(
    "card",
    re.compile(
        r"[0-9](?<![A-Za-z0-9_].)(?<![0-9]\..)(?:[0-9]{12,18}"
        r"|[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1(?P<code>[0-9]{1,3}))?"
        r"|[0-9]{3}([ -])[0-9]{6}\3[0-9]{4,5})(?![A-Za-z0-9_]|\.[0-9])"
    ),
    25,
    _card,
)  # fmt: skip


def _resident(match: Match) -> Span | None:
    """A birthday and the check digit; not the place, of which no list is complete."""
    number = match[0].translate({ord(" "): None, ord("-"): None}).upper()
    try:
        ric.get_birth_date(number)
    except ValidationError:
        return None
    return match.span() if ric.calc_check_digit(number) == number[-1] else None


CN_ID = Recogniser(
    "cn_id",
    re.compile(
        r"[1-9](?<![A-Za-z0-9_].)[0-9]{5}[ -]?(?:18|19|20)[0-9]{6}[ -]?[0-9]{3}[0-9Xx](?![A-Za-z0-9_])"
    ),
    21,
    _resident,
)  # fmt: skip


@cache
def _iban_size(country: str) -> int:
    """Characters of a country's IBAN; 0: it has none."""
    known = numdb.get("iban").info(country)[0][1]
    return 4 + sum(map(int, re.findall("([0-9]+)!", known["bban"]))) if known else 0


def _iban(match: Match) -> Span | None:
    """As much as the country's IBANs have, up to the end of a word."""
    left = _iban_size(match[0][:2].upper())
    end = match.start()
    while left and end < match.end():
        left -= match.string[end].isalnum()
        end += 1
    if left or re.match("[A-Za-z0-9]", match.string[end : end + 1]):
        return None
    return (match.start(), end) if is_iban(match.string[match.start() : end], check_country=False) else None


IBAN = Recogniser(
    "iban",
    re.compile(
        r"[A-Za-z](?<![A-Za-z0-9_].)[A-Za-z][0-9]{2}(?:[A-Za-z0-9]{11,30}"
        r"|([ -])[A-Z0-9]{4}(?:\1[A-Z0-9]{4}){1,6}(?:\1[A-Z0-9]{1,4})?)(?![A-Za-z0-9])"
    ),
    45,
    _iban,
    re.compile("[A-Za-z]{2}[0-9]{2}"),
)  # fmt: skip


# -- addresses of machines -------------------------------------------------------------------------------

_DIGIT, _GROUPS = re.compile("[0-9]"), re.compile("[0-9A-Fa-f]+")


def _ip(match: Match) -> Span | None:
    """Somebody's: not this machine's own, nor a netmask."""
    end = match.end()
    if len(_GROUPS.findall(match[0])) < 2 or not _DIGIT.search(match[0]):  # as x[::2] and std::dec
        return None
    if match[0].endswith(":") and not match[0].endswith("::"):
        end -= 1
    try:
        address = ipaddress.ip_address(match.string[match.start() : end])
    except ValueError:
        return None
    nobody = address.is_loopback or address.is_unspecified or (address.version == 4 and address.is_reserved)
    return None if nobody else (match.start(), end)


IPV4 = Recogniser(
    "ip",
    re.compile(
        r"[0-9](?<![A-Za-z0-9_.].)(?<!ersion .)[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?![A-Za-z0-9_]|\.[0-9])"
    ),
    15,
    _ip,
)  # fmt: skip
IPV6 = Recogniser(
    "ip",
    re.compile(
        r"[0-9A-Fa-f:](?<![A-Za-z0-9_:.].)(?=[0-9A-Fa-f]{0,3}:)[0-9A-Fa-f:]{1,38}+"
        r"(?:(?:\.[0-9]{1,3}){3})?(?![A-Za-z0-9_]|\.[0-9])"
    ),
    52,
    _ip,
    re.compile(":[0-9A-Fa-f]{0,4}:"),
)  # fmt: skip
