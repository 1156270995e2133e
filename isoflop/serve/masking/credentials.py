"""Keys and passwords: by the prefixes of those who issue them, by their form, and by the word before them."""

from __future__ import annotations

import math
import re
from collections import Counter

from isoflop.serve.masking.recognisers import Match, Recogniser, Span

_VALUE = r"[!#$%&*+\-./0-9:=?@A-Z\\^_a-z~]"
_LETTER_AND_DIGIT = re.compile("(?=.*[A-Za-z])(?=.*[0-9])")
_DIGIT_OR_SIGN = re.compile("[0-9!@#$%^&*?~+]")
_STRONG, _BITS = 16, 3.0  # characters of a key, and bits of entropy a character, at least


def _issued(match: Match) -> Span | None:
    return match.span() if match["aws"] or re.search("[0-9]", match["rest"]) else None


ISSUED = Recogniser(
    "key",
    re.compile(
        "[Aghinprsx](?<![A-Za-z0-9].)(?:(?:(?<=s)k-|(?<=[sr])k_(?:live|test)_|(?<=i)sk_|(?<=g)h[oprsu]_"
        "|(?<=g)ithub_pat_|(?<=g)lpat-|(?<=h)f_|(?<=n)pm_|(?<=p)ypi-|(?<=x)ox[abeoprs]-|(?<=A)Iza)"
        "(?P<rest>[A-Za-z0-9_-]{16,256}+)|(?<=A)(?:KI|SI)A(?P<aws>[A-Z0-9]{16})(?![A-Za-z0-9]))"
    ),
    270,
    _issued,
)  # fmt: skip

_PART = "[A-Za-z0-9_-]"
JWT = Recogniser(
    "key",
    re.compile(rf"e(?<![A-Za-z0-9].)yJ{_PART}{{8,1024}}+\.{_PART}{{8,4096}}+(?:\.{_PART}{{0,2048}}+){{0,3}}"),
    11300,
    opening=re.compile(rf"eyJ(?:{_PART}|\.)*+\Z"),
)  # fmt: skip

_BEGIN = "-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
_BODY = r"(?:[A-Za-z0-9+/=\s\\:,.]|-(?!-)){0,8000}+"
_LINE = r"(?:\s|\\[nr]){0,4}[A-Za-z0-9+/=]{20,128}+"  # of a block whose end is missing
PEM = Recogniser(
    "key",
    re.compile(rf"{_BEGIN}(?:{_BODY}-----END [A-Z0-9 ]{{0,60}}-----|(?:{_LINE}){{0,60}}+)"),
    8300,
    opening=re.compile(
        rf"-----BEGIN[A-Z0-9 ]{{0,61}}-{{0,5}}\Z"
        rf"|{_BEGIN}{_BODY}-{{0,5}}(?:E|EN|END[A-Z0-9 ]{{0,61}}-{{0,5}})?\Z"
    ),
)  # fmt: skip


def _entropy(text: str) -> float:
    """Bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _named(match: Match) -> Span | None:
    value = match["value"].rstrip(".:\\")
    if "://" in value:
        return None
    strong = len(value) >= _STRONG and _entropy(value) >= _BITS and _LETTER_AND_DIGIT.match(value)
    chosen = match["chosen"] and len(value) >= 6 and _DIGIT_OR_SIGN.search(value)
    return (match.start("value"), match.start("value") + len(value)) if strong or chosen else None


NAMED = Recogniser(
    "key",
    re.compile(
        r"[ABCPSTabcpst密口令](?i:(?P<chosen>(?<=p)(?:ass(?:word|wd|phrase|code)|wd)|(?<=密)码|(?<=口)令)"
        r"|(?<=p)rivate[ _-]?key|(?<=a)(?:pi[ _-]?key|ccess[ _-]?key|uthorization)|(?<=b)earer(?= )"
        r"|(?<=c)redentials?|(?<=s)ecret(?:[ _-]?(?:access[ _-]?)?key)?|(?<=t)oken|(?<=密)钥|(?<=令)牌)"
        r"""\\?["']?[ \t]{0,2}(?i:[:=]{1,2}>?|is|是|为|(?<=bearer ))[ \t]{0,2}"""
        r"""(?i:(?:bearer|basic|token)[ \t])?\\?["']?"""
        rf"(?P<value>{_VALUE}{{6,1024}}+)"
    ),
    60 + 1024,
    _named,
    reads_before=60,
)  # fmt: skip

_USER = r"[!#$%&*+\-.0-9=?A-Z^_a-z~]"
URL = Recogniser(
    "key",
    re.compile(rf"://{_USER}{{1,64}}:(?P<value>{_USER}{{1,128}})@"),
    200,
    lambda match: match.span("value"),
    reads_before=70,
)  # fmt: skip
