"""Tags of tokens in one scheme, IOB2: B- begins an entity, I- goes on with it, O is none.

Ramshaw and Marcus, "Text chunking using transformation-based learning" (cmp-lg/9505040), with the change of
Tjong Kim Sang and Veenstra, "Representing text chunks" (cs/9907006): every entity begins with B-.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

OUTSIDE = "O"
BEGINS = {"B": True, "S": True, "U": True, "I": False, "E": False, "L": False, "M": False}  # by prefix


def is_plain(tags: Iterable[str]) -> bool:
    """Whether tags are names of kinds alone: any but O is without a prefix such as B- or I-."""
    return any(tag != OUTSIDE and not _prefixed(tag) for tag in tags)


def iob2(tags: Sequence[str], *, plain: bool) -> list[str]:
    """Tags of one row in IOB2.

    Of plain ones, a run of equal tags is one entity. Of prefixed ones, those of IOB1, BIOES, BMES and BILOU
    are read too: what stands after no token of its own kind begins an entity.
    """
    made: list[str] = []
    before = OUTSIDE  # kind of the token before
    for tag in map(str, tags):
        begins, kind = (BEGINS[tag[0]], tag[2:]) if _prefixed(tag) and not plain else (False, tag)
        if kind == OUTSIDE:
            made.append(OUTSIDE)
        else:
            made.append(f"{'B' if begins or kind != before else 'I'}-{kind}")
        before = kind
    return made


def _prefixed(tag: str) -> bool:
    return len(tag) > 2 and tag[0] in BEGINS and tag[1] == "-"
