"""Telephone numbers: international ones, national ones as they are usually grouped, and any after a word such
as "phone". Whether a number exists is asked of libphonenumber.
"""

from __future__ import annotations

import re

import phonenumbers

from isoflop.serve.masking.recognisers import Match, Recogniser, Span

_SEPARATOR = r"(?:[ -]?\(|\)[ -]?|[ ./-])?"
_END = "(?![A-Za-z0-9_])"
_LEAST, _MOST = 7, 15  # digits
_TRIES = 3  # last groups that may belong to something else
_GAP = re.compile(r"[ ./()-]+")
_OTHER = re.compile(  # dates, and four numbers with dots
    r"(?:19|20)[0-9]{2}([./-])[0-9]{1,2}\1[0-9]{1,2}\b|[0-9]{1,2}([./-])[0-9]{1,2}\2(?:19|20)[0-9]{2}\b"
    r"|[0-9]+(?:\.[0-9]+){3}\Z"
)


def _exists(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False


def _international(match: Match) -> Span | None:
    """The longest part, in whole groups, that is a number."""
    found = match[0]
    ends = [len(found), *(gap.start() for gap in reversed(list(_GAP.finditer(found))))]
    for end in ends[:_TRIES]:
        if len(_GAP.sub("", found[:end])) > _LEAST and _exists(
            "+" + found[:end].removeprefix("+").removeprefix("00"), None
        ):
            return match.start(), match.start() + end
    return None


INTERNATIONAL = Recogniser(
    "phone",
    re.compile(rf"[+0](?<![A-Za-z0-9_.+].)(?:(?<=\+)|(?<=0)0)\(?[1-9](?:{_SEPARATOR}[0-9]){{6,14}}{_END}"),
    61,
    _international,
    re.compile(r"\+|00"),
)  # fmt: skip


def _national(match: Match) -> Span | None:
    """A number of one of the regions that group their numbers so."""
    assert match.lastgroup is not None
    number = match[match.lastgroup]
    known = not _OTHER.match(number) and any(_exists(number, r) for r in match.lastgroup.split("_"))
    return match.span(match.lastgroup) if known else None


_GROUPINGS = {  # regions: how numbers are written there
    "US": r"(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .-])[2-9][0-9]{2}[ .-][0-9]{4}",
    "CN": r"(?:86[ -]?)?1[3-9][0-9](?:[0-9]{8}|-[0-9]{4}-[0-9]{4}| [0-9]{4} [0-9]{4})",
    "NL": r"06[ -][0-9]{8}",
    "FR": r"0[1-9](?:(?: [0-9]{2}){4}|(?:\.[0-9]{2}){4}|(?:-[0-9]{2}){4})",
    "GB": r"07[0-9]{9}|\(?0(?:2[0-9]\)? [0-9]{4}|1[0-9]1\)? [0-9]{3}) [0-9]{4}|\(?0[0-9]{4}\)? [0-9]{5,6}",
    "JP_CN": r"0[0-9]{1,3}-[0-9]{2,4}-[0-9]{4}|\(?0[0-9]{2,3}[) -][0-9]{7,8}",
    "AU_GB": r"\(?0[2-478]\)? [0-9]{4} [0-9]{4}|0[0-9]{3} [0-9]{3} [0-9]{3,4}",
    "DE_AT_IT": r"\(?0[1-9][0-9]{1,4}\)?[ /-][0-9]{5,8}|\(?0[1-9][0-9]{1,4}\)?[ /-][0-9]{3,4} [0-9]{3,5}",
}
NATIONAL = Recogniser(
    "phone",
    re.compile(
        "[(0-9](?<![A-Za-z0-9_+./-].)(?<=(?=(?:"  # by its first character, which can be searched for fast
        + "|".join(f"(?P<{regions}>{form})" for regions, form in _GROUPINGS.items())
        + ")(?![A-Za-z0-9_]|[./-][0-9])).)"
    ),
    24,
    _national,
)  # fmt: skip


def _named(match: Match) -> Span | None:
    number = match["number"]
    digits = sum(map(str.isdigit, number))
    return match.span("number") if _LEAST <= digits <= _MOST and not _OTHER.match(number) else None


NAMED = Recogniser(
    "phone",
    re.compile(
        r"[CFHMPSTWcfhmpstw电手](?<![A-Za-z].)(?i:(?<=t)el(?:ephone|efon)?|(?<=p)h(?:one)?|(?<=m)ob(?:ile|il)?"
        r"|(?<=c)(?:all|ell)|(?<=f)ax|(?<=w)hatsapp|(?<=s)ms|(?<=h)andy|(?<=电)话|(?<=手)机)"
        r"""[ _]?(?i:numbers?|no|nr|号码?)?["']?[.:=]{0,2} ?(?i:is|at|us at|me at|on|是|为)?[: ]{0,2}["']?"""
        rf"(?P<number>\+?\(?[0-9](?:{_SEPARATOR}[0-9]){{6,14}}){_END}"
    ),
    61 + 45,
    _named,
    reads_before=45,
)  # fmt: skip
